"""I3D: Inception-v1 with its kernels inflated over time, for RGB clips (Carreira and Zisserman, arXiv 1705.07750).

The network that the Fréchet video distance looks through (arXiv 1812.01717). What it does is that of DeepMind's
TensorFlow program (`kinetics-i3d`), for which the published weights were trained: padding is TensorFlow's SAME, which
puts the odd pixel behind; batch normalisation is Sonnet's, with an offset, without a scale, with an epsilon of 1e-3
(ports to PyTorch differ: VideoGPT's has 1e-5); the logits of all times are averaged before any softmax. Inference only:
there is no dropout, and no statistic changes.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

SIZE = 224  # pixels of a side
MIN_FRAMES = 9  # time is halved three times, rounded up, and the average pooling wants two of what is left
_EPSILON = 1e-3


class MixedWidths(NamedTuple):
    """Channels of an Inception module's convolutions."""

    one: int  # branch 0: 1x1x1
    reduce_1: int  # branch 1: 1x1x1, then 3x3x3
    three_1: int
    reduce_2: int  # branch 2: the same, narrower
    three_2: int
    pooled: int  # branch 3: max pooling, then 1x1x1

    @property
    def out(self) -> int:
        """Channels of the four branches together."""
        return self.one + self.three_1 + self.three_2 + self.pooled


@dataclasses.dataclass(frozen=True)
class I3DConfig:
    """Widths. The defaults are the published network's; others are for tests.

    Attributes:
      classes: of Kinetics: 400, or 600.
      stem: channels of the first three convolutions.
      mixed_3, mixed_4, mixed_5: of the Inception modules b, c, ... of each resolution.
    """

    classes: int = 400
    stem: tuple[int, int, int] = (64, 64, 192)
    mixed_3: tuple[MixedWidths, ...] = (MixedWidths(64, 96, 128, 16, 32, 32), MixedWidths(128, 128, 192, 32, 96, 64))
    mixed_4: tuple[MixedWidths, ...] = (
        MixedWidths(192, 96, 208, 16, 48, 64),
        MixedWidths(160, 112, 224, 24, 64, 64),
        MixedWidths(128, 128, 256, 24, 64, 64),
        MixedWidths(112, 144, 288, 32, 64, 64),
        MixedWidths(256, 160, 320, 32, 128, 128),
    )
    mixed_5: tuple[MixedWidths, ...] = (
        MixedWidths(256, 160, 320, 32, 128, 128),
        MixedWidths(384, 192, 384, 48, 128, 128),
    )

    def narrowed(self, factor: int) -> "I3DConfig":
        """The same network with all channels (not the classes) divided by `factor`."""

        def divide(modules: tuple[MixedWidths, ...]) -> tuple[MixedWidths, ...]:
            return tuple(MixedWidths(*(width // factor for width in widths)) for widths in modules)

        stem = tuple(width // factor for width in self.stem)
        return I3DConfig(self.classes, stem, divide(self.mixed_3), divide(self.mixed_4), divide(self.mixed_5))


class Unit3D(nnx.Module):
    """Convolution, batch normalisation with fixed statistics, ReLU. Kernel `[time, height, width, in, out]`."""

    def __init__(self, in_features: int, out_features: int, *, size: int = 1, stride: int = 1, rngs: nnx.Rngs):
        shape = (size, size, size, in_features, out_features)
        self.kernel = nnx.Param(jax.nn.initializers.he_normal(in_axis=(0, 1, 2, 3))(rngs.params(), shape))
        self.mean = nnx.Param(jnp.zeros((out_features,)))
        self.variance = nnx.Param(jnp.ones((out_features,)))
        self.bias = nnx.Param(jnp.zeros((out_features,)))
        self.stride = stride

    def __call__(self, x: Float[Array, "clips frames height width in"]) -> Float[Array, "clips f h w out"]:
        y = jax.lax.conv_general_dilated(
            x, self.kernel[...], (self.stride,) * 3, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        scale = jax.lax.rsqrt(self.variance[...] + _EPSILON)
        return jax.nn.relu((y - self.mean[...]) * scale + self.bias[...])


class Mixed(nnx.Module):
    """An Inception module: four branches side by side."""

    def __init__(self, in_features: int, widths: MixedWidths, *, rngs: nnx.Rngs):
        self.b0 = Unit3D(in_features, widths.one, rngs=rngs)
        self.b1a = Unit3D(in_features, widths.reduce_1, rngs=rngs)
        self.b1b = Unit3D(widths.reduce_1, widths.three_1, size=3, rngs=rngs)
        self.b2a = Unit3D(in_features, widths.reduce_2, rngs=rngs)
        self.b2b = Unit3D(widths.reduce_2, widths.three_2, size=3, rngs=rngs)
        self.b3b = Unit3D(in_features, widths.pooled, rngs=rngs)

    def __call__(
        self, x: Float[Array, "clips frames height width in"]
    ) -> Float[Array, "clips frames height width out"]:
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)
        return jnp.concatenate(branches, -1)


class I3D(nnx.Module):
    """Clips to the logits of Kinetics' classes.

    The logits are the feature of the Fréchet video distance: its reference program takes the output
    `RGB/inception_i3d/Mean:0` of TF-Hub's `deepmind/i3d-kinetics-400`.
    """

    def __init__(self, config: I3DConfig, *, rngs: nnx.Rngs):
        self.config = config
        first, second, width = config.stem
        self.conv_1a = Unit3D(3, first, size=7, stride=2, rngs=rngs)
        self.conv_2b = Unit3D(first, second, rngs=rngs)
        self.conv_2c = Unit3D(second, width, size=3, rngs=rngs)
        levels = []
        for modules in (config.mixed_3, config.mixed_4, config.mixed_5):
            levels.append(nnx.List())
            for widths in modules:
                levels[-1].append(Mixed(width, widths, rngs=rngs))
                width = widths.out
        self.mixed_3, self.mixed_4, self.mixed_5 = levels
        self.logits = nnx.Param(jax.nn.initializers.lecun_normal()(rngs.params(), (width, config.classes)))
        self.logits_bias = nnx.Param(jnp.zeros((config.classes,)))

    def __call__(self, videos: Float[Array, "clips frames 224 224 3"]) -> Float[Array, "clips classes"]:
        """The logits, averaged over time.

        Args:
          videos: RGB in [-1, 1].

        Raises:
          ValueError: fewer than 9 frames.
        """
        if videos.shape[1] < MIN_FRAMES:
            raise ValueError(f"clips of {videos.shape[1]} frames: I3D needs {MIN_FRAMES} or more")
        x = _max_pool(self.conv_1a(videos), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.conv_2c(self.conv_2b(x)), (1, 3, 3), (1, 2, 2))
        for module in self.mixed_3:
            x = module(x)
        x = _max_pool(x, (3, 3, 3), (2, 2, 2))
        for module in self.mixed_4:
            x = module(x)
        x = _max_pool(x, (2, 2, 2), (2, 2, 2))
        for module in self.mixed_5:
            x = module(x)
        x = nnx.avg_pool(x, (2, 7, 7), (1, 1, 1), "VALID")[:, :, 0, 0]
        return (x @ self.logits[...] + self.logits_bias[...]).mean(1)


def _max_pool(x: Array, window: tuple[int, int, int], strides: tuple[int, int, int]) -> Array:
    return nnx.max_pool(x, window, strides, "SAME")
