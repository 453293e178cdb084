"""The conditional model's first convolution (paper section 4.2): expanded from J to ⟨J, C, M⟩, four channels more.

The kernel of the new channels is zero at first, so the conditional model starts as the model that it is fine-tuned
from. It is a parameter of its own beside the pre-trained kernel, which stays frozen.
"""

from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.diffusion.condition import CHANNELS
from lumiere_jax.models.layers import SpatialConv, zeros
from lumiere_jax.models.temporal import TemporalParam
from lumiere_jax.models.unet2d import UNet2D


class ExpandedConv(nnx.Module):
    """A pre-trained convolution with more input channels behind its own.

    Args:
      pretrained: the convolution.
    """

    def __init__(self, pretrained: SpatialConv, *, rngs: nnx.Rngs):
        size, _, self.in_channels, width = pretrained.kernel.shape
        self.spatial = pretrained
        self.condition = SpatialConv(
            CHANNELS, width, kernel_size=size, kernel_init=zeros, param=TemporalParam, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "batch frames height width in"]
    ) -> Float[Array, "batch frames height width out"]:
        return self.spatial(x[..., : self.in_channels]) + self.condition(x[..., self.in_channels :])


def expand_first_convolution(unet: UNet2D, *, rngs: nnx.Rngs) -> UNet2D:
    """Gives an inflated U-Net, in place, the input channels of C and M, and returns it."""
    unet.conv_in = ExpandedConv(unet.conv_in, rngs=rngs)
    return unet
