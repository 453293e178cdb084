"""Convolution, linear and normalisation layers over videos `[batch, frames, height, width, channels]`.

They are our own rather than Flax's for three reasons: the parameter's *type* says whether a stage trains it
(`TemporalParam` or plain `nnx.Param`), so every layer takes the type as an argument; normalisation is folded into one
scale and one shift per frame and channel, which is what XLA fuses well; and every layer computes in the dtype of its
input, so the stored dtype (float32 master or bfloat16 frozen) is independent of the compute dtype.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.distributed import partitioning

Initializer = Callable[..., Array]

fan_in_normal: Initializer = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
zeros: Initializer = jax.nn.initializers.zeros
# PyTorch's default scale. For the last layer of a residual branch: started at zero instead, the demo's image model
# learned much more slowly at first (docs/demo.md).
fan_in_third: Initializer = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def value(parameter: nnx.Param, dtype: jnp.dtype) -> Array:
    """A parameter in the type of the computation, and only then gathered from the devices that it is divided over."""
    return partitioning.gathered(parameter.get_value().astype(dtype))  # an array, or `Int8`


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis, kernel `[in, out]`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        kernel_init: Initializer = fan_in_normal,
        param: type[nnx.Param] = nnx.Param,
    ):
        self.kernel = param(kernel_init(rngs.params(), (in_features, out_features)))
        self.bias = param(jnp.zeros((out_features,)))

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch out"]:
        return x @ value(self.kernel, x.dtype) + value(self.bias, x.dtype)


class SpatialConv(nnx.Module):
    """A 2D convolution of each frame, zero-padded to the same size, kernel `[k, k, in, out]`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        kernel_size: int = 3,
        kernel_init: Initializer = fan_in_normal,
        param: type[nnx.Param] = nnx.Param,
    ):
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = param(kernel_init(rngs.params(), shape))
        self.bias = param(jnp.zeros((out_features,)))

    def __call__(
        self, x: Float[Array, "batch frames height width in"]
    ) -> Float[Array, "batch frames height width out"]:
        frames = x.reshape(-1, *x.shape[2:])
        y = jax.lax.conv_general_dilated(
            frames,
            value(self.kernel, x.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y + value(self.bias, x.dtype)
        return y.reshape(*x.shape[:2], *y.shape[1:])


class TemporalConv(nnx.Module):
    """A 1D convolution over time at each pixel, zero-padded to the same length, kernel `[k, in, out]`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        param: type[nnx.Param],
        kernel_size: int = 3,
        kernel_init: Initializer = fan_in_normal,
    ):
        self.kernel = param(kernel_init(rngs.params(), (kernel_size, in_features, out_features)))
        self.bias = param(jnp.zeros((out_features,)))

    def __call__(
        self, x: Float[Array, "batch frames height width in"]
    ) -> Float[Array, "batch frames height width out"]:
        return temporal_convolution(x, value(self.kernel, x.dtype)) + value(self.bias, x.dtype)


def temporal_convolution(
    x: Float[Array, "batch frames height width in"], kernel: Float[Array, "taps inputs outputs"]
) -> Float[Array, "batch frames height width out"]:
    """Each pixel's frames convolved with a kernel of odd length, zero-padded to the same length.

    Computed as what XLA runs fastest (docs/performance.md). A 2D convolution over frames and pixels: on a CPU, over
    three axes, it takes two to three times as long. For a TPU a 3D convolution whose batch are the pixels of a line:
    libtpu lays the batch out beside the channels, and a chip's one clip would leave half of each tile empty.
    """
    if len(kernel) == 1:
        return x @ kernel[0]
    if partitioning.platform() == "tpu":
        axes = ("BTHNC", "BTHIO", "BTHNC")
        return jax.lax.conv_general_dilated(x, kernel[None, :, None], (1, 1, 1), "SAME", dimension_numbers=axes)
    pixels, axes = x.reshape(*x.shape[:2], -1, x.shape[-1]), ("NTPC", "TPIO", "NTPC")
    y = jax.lax.conv_general_dilated(pixels, kernel[:, None], (1, 1), "SAME", dimension_numbers=axes)
    return y.reshape(*x.shape[:-1], -1)


class Moments(NamedTuple):
    """Of each channel, over pixels."""

    mean: Float[Array, "*batch features"]
    mean_square: Float[Array, "*batch features"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def moments(x: Float[Array, "*batch features"], axes: int) -> Moments:
    """Over the last `axes` axes before the channels, in float32 or wider.

    Its gradient keeps `x` alone; JAX's own would keep it in float32 besides.
    """
    over = tuple(range(-1 - axes, -1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return Moments(wide.mean(over), jnp.square(wide).mean(over))


def _moments_forward(x: Array, axes: int) -> tuple[Moments, Array]:
    return moments(x, axes), x


def _moments_backward(axes: int, x: Array, gradient: Moments) -> tuple[Array]:
    over = tuple(range(-1 - axes, -1))
    mean, mean_square = (jnp.expand_dims(each, over) / math.prod(x.shape[-1 - axes : -1]) for each in gradient)
    return ((mean + 2.0 * mean_square * x.astype(mean.dtype)).astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


class Affine(NamedTuple):
    """What a normalisation comes to: one factor and one summand for each channel of each frame."""

    scale: Float[Array, "*batch features"]
    shift: Float[Array, "*batch features"]

    def of(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """`scale * x + shift`, in the type of `x`, which may have more axes before its channels."""
        over = tuple(range(self.scale.ndim - 1 - x.ndim, -1))
        scale, shift = (jnp.expand_dims(each, over).astype(x.dtype) for each in self)
        return x * scale + shift


class GroupNorm(nnx.Module):
    """Group normalisation with statistics over the last `axes` axes before the channels, and over each group.

    With `axes=2` on a video the statistics stay per frame, as in the image model. The normalisation, its affine
    parameters and an optional modulation `(1 + scale) * . + shift` are folded into one multiply and one add.
    """

    def __init__(
        self,
        features: int,
        groups: int,
        *,
        epsilon: float = 1e-5,
        axes: int = 2,
        param: type[nnx.Param] = nnx.Param,
    ):
        if features % groups:
            raise ValueError(f"{features} channels do not divide into norm groups of {groups}; change norm_num_groups")
        self.scale = param(jnp.ones((features,)))
        self.bias = param(jnp.zeros((features,)))
        self.groups, self.epsilon, self.axes = groups, epsilon, axes

    def __call__(
        self, x: Float[Array, "*batch features"], modulation: tuple[Array, Array] | None = None
    ) -> Float[Array, "*batch features"]:
        return self.folded(moments(x, self.axes), modulation).of(x)

    def folded(self, moments: Moments, modulation: tuple[Array, Array] | None = None) -> Affine:
        """The normalisation of what has these moments; a modulation has their axes, or 1 in place of one."""
        mean, mean_square = (self._group_mean(each) for each in moments)
        variance = jnp.maximum(mean_square - jnp.square(mean), 0.0)
        scale = self.scale[...].astype(mean.dtype) * jax.lax.rsqrt(variance + self.epsilon)
        shift = self.bias[...].astype(mean.dtype) - mean * scale
        if modulation is not None:
            gain = 1.0 + modulation[0].astype(mean.dtype)
            scale, shift = scale * gain, shift * gain + modulation[1].astype(mean.dtype)
        return Affine(scale, shift)

    def _group_mean(self, per_channel: Array) -> Array:
        """At each channel the mean of its group."""
        # Products there and back: a broadcast goes into XLA's loops over pixels, here and in the gradient, which then
        # take several times as long on a CPU.
        size = per_channel.shape[-1] // self.groups
        members = jnp.repeat(jnp.eye(self.groups, dtype=per_channel.dtype), size, axis=1)
        grouped = jnp.matmul(per_channel, members.T / size, precision="highest")
        return jnp.matmul(grouped, members, precision="highest")


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis."""

    def __init__(self, features: int, *, epsilon: float = 1e-5, param: type[nnx.Param] = nnx.Param):
        self.scale = param(jnp.ones((features,)))
        self.bias = param(jnp.zeros((features,)))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)
