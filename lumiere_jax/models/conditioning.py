"""The conditional model's first convolution (paper section 4.2): expanded from J to ⟨J, C, M⟩, four channels more.

The kernel of the new channels is zero at first, so the conditional model starts as the model that it is fine-tuned
from. It is a parameter of its own beside the pre-trained kernel, which stays frozen. A network that is of no use
without what is given (temporal super-resolution) can start by seeing C as it sees J, through the pre-trained kernel:
from zero the new one grows by no more than a learning rate a step.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.diffusion.condition import CHANNELS
from lumiere_jax.models.layers import Initializer, SpatialConv, zeros
from lumiere_jax.models.temporal import TemporalParam
from lumiere_jax.models.unet2d import UNet2D


class ExpandedConv(nnx.Module):
    """A pre-trained convolution with more input channels behind its own.

    Args:
      pretrained: the convolution.
      kernel: at first, of the new channels: zeros, or of C's the pre-trained one's for J (not from the paper).
    """

    def __init__(self, pretrained: SpatialConv, *, kernel: Literal["zeros", "pretrained"] = "zeros", rngs: nnx.Rngs):
        size, _, self.in_channels, width = pretrained.kernel.shape
        self.spatial = pretrained
        init = zeros if kernel == "zeros" else _as_the_noisy_clip(pretrained)
        self.condition = SpatialConv(
            CHANNELS, width, kernel_size=size, kernel_init=init, param=TemporalParam, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "batch frames height width in"]
    ) -> Float[Array, "batch frames height width out"]:
        return self.spatial(x[..., : self.in_channels]) + self.condition(x[..., self.in_channels :])


def _as_the_noisy_clip(pretrained: SpatialConv) -> Initializer:
    def init(_key: jax.Array, shape: tuple[int, ...]) -> Array:
        of_clip = pretrained.kernel[...][:, :, : CHANNELS - 1]
        return jnp.zeros(shape).at[:, :, : CHANNELS - 1].set(of_clip)

    return init


def expand_first_convolution(
    unet: UNet2D, *, kernel: Literal["zeros", "pretrained"] = "zeros", rngs: nnx.Rngs
) -> UNet2D:
    """Gives an inflated U-Net, in place, the input channels of C and M, and returns it; arguments of `ExpandedConv`."""
    unet.conv_in = ExpandedConv(unet.conv_in, kernel=kernel, rngs=rngs)
    return unet
