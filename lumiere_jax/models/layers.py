"""Convolution, linear and normalisation layers over videos `[batch, frames, height, width, channels]`.

They are our own rather than Flax's for three reasons: the parameter's *type* says whether a stage trains it
(`TemporalParam` or plain `nnx.Param`), so every layer takes the type as an argument; normalisation is folded into one
scale and one shift per frame and channel, which is what XLA fuses well; and every layer computes in the dtype of its
input, so the stored dtype (float32 master or bfloat16 frozen) is independent of the compute dtype.
"""

from collections.abc import Callable

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


def _value(parameter: nnx.Param, dtype: jnp.dtype) -> Array:
    """In the type of the computation, and only then gathered from the devices that it is divided over."""
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
        return x @ _value(self.kernel, x.dtype) + _value(self.bias, x.dtype)


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
            _value(self.kernel, x.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y + _value(self.bias, x.dtype)
        return y.reshape(*x.shape[:2], *y.shape[1:])


class TemporalConv(nnx.Module):
    """A 1D convolution over time at each pixel, zero-padded to the same length, kernel `[k, in, out]`.

    Computed as what XLA runs fastest (docs/performance.md). A 2D convolution over frames and pixels: on a CPU, over
    three axes, it takes two to three times as long. For a TPU a 3D convolution whose batch are the pixels of a line:
    libtpu lays the batch out beside the channels, and a chip's one clip would leave half of each tile empty.
    """

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
        kernel = _value(self.kernel, x.dtype)
        if partitioning.platform() == "tpu":
            axes = ("BTHNC", "BTHIO", "BTHNC")
            y = jax.lax.conv_general_dilated(x, kernel[None, :, None], (1, 1, 1), "SAME", dimension_numbers=axes)
        else:
            pixels, axes = x.reshape(*x.shape[:2], -1, x.shape[-1]), ("NTPC", "TPIO", "NTPC")
            y = jax.lax.conv_general_dilated(pixels, kernel[:, None], (1, 1), "SAME", dimension_numbers=axes)
            y = y.reshape(*x.shape[:-1], -1)
        return y + _value(self.bias, x.dtype)


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
        accumulate = jnp.promote_types(x.dtype, jnp.float32)
        over = tuple(range(-1 - self.axes, -1))
        wide = x.astype(accumulate)
        mean, mean_square = self._group_mean(wide.mean(over)), self._group_mean(jnp.square(wide).mean(over))
        variance = jnp.maximum(mean_square - jnp.square(mean), 0.0)
        scale = self.scale[...].astype(accumulate) * jax.lax.rsqrt(variance + self.epsilon)
        shift = self.bias[...].astype(accumulate) - mean * scale
        scale, shift = jnp.expand_dims(scale, over), jnp.expand_dims(shift, over)
        if modulation is not None:
            gain = 1.0 + modulation[0].astype(accumulate)
            scale, shift = scale * gain, shift * gain + modulation[1].astype(accumulate)
        return x * scale.astype(x.dtype) + shift.astype(x.dtype)

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
