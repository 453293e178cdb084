"""C3D (Tran et al., arXiv 1412.0767) as it was trained on UCF101 for the inception score of videos.

The network of TGAN (arXiv 1611.06624) and TGANv2 (arXiv 1811.09245), whose authors published the weights: eight
convolutions and three linear layers. Its pooling rounds up, as Caffe's and Chainer's: the last map of 7x7 becomes 4x4.
Inference only, without dropout.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.models.layers import Linear

FRAMES, SIZE = 16, 112
CONVOLUTIONS = ("conv1a", "conv2a", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
LINEARS = ("fc6", "fc7", "fc8")
LAST_SIZE = 4  # pixels of a side that fc6 sees


@dataclasses.dataclass(frozen=True)
class C3DConfig:
    """Widths. The defaults are the published network's; others are for tests."""

    convolutions: tuple[int, ...] = (64, 128, 256, 256, 512, 512, 512, 512)  # as CONVOLUTIONS
    linear: tuple[int, int] = (4096, 4096)  # of fc6 and fc7
    classes: int = 101


class Conv3D(nnx.Module):
    """A 3x3x3 convolution, zero-padded to the same size, and ReLU. Kernel `[time, height, width, in, out]`."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        shape = (3, 3, 3, in_features, out_features)
        self.kernel = nnx.Param(jax.nn.initializers.he_normal(in_axis=(0, 1, 2, 3))(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((out_features,)))

    def __call__(
        self, x: Float[Array, "clips frames height width in"]
    ) -> Float[Array, "clips frames height width out"]:
        y = jax.lax.conv_general_dilated(
            x, self.kernel[...], (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        return jax.nn.relu(y + self.bias[...])


class C3D(nnx.Module):
    """Clips to the probabilities of UCF101's classes."""

    def __init__(self, config: C3DConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = (3, *config.convolutions)
        for name, before, after in zip(CONVOLUTIONS, widths[:-1], widths[1:], strict=True):
            setattr(self, name, Conv3D(before, after, rngs=rngs))
        widths = (widths[-1] * LAST_SIZE**2, *config.linear, config.classes)
        for name, before, after in zip(LINEARS, widths[:-1], widths[1:], strict=True):
            setattr(self, name, Linear(before, after, rngs=rngs))

    def __call__(self, videos: Float[Array, "clips 16 112 112 3"]) -> Float[Array, "clips classes"]:
        """The probabilities.

        Args:
          videos: BGR (not RGB), in levels of 0 to 255 less the mean of the training clips
            (`evaluation/inception_score.py` prepares them).
        """
        x = _pool(self.conv1a(videos), 1)
        x = _pool(self.conv2a(x), 2)
        x = _pool(self.conv3b(self.conv3a(x)), 2)
        x = _pool(self.conv4b(self.conv4a(x)), 2)
        x = _pool(self.conv5b(self.conv5a(x)), 2)
        x = jax.nn.relu(self.fc6(x.reshape(len(x), -1)))
        x = jax.nn.relu(self.fc7(x))
        return jax.nn.softmax(self.fc8(x), -1)


def _pool(x: Array, frames: int) -> Array:
    """Each maximum of `frames` x 2 x 2. SAME adds an odd row behind: what rounding up means."""
    return nnx.max_pool(x, (frames, 2, 2), (frames, 2, 2), "SAME")
