"""Normalise, activate, convolve over time: on a TPU one kernel, which goes over the video once.

An inflation block (paper Fig. 4b) does this twice: over three frames, and, for its projection, over one. These are few
operations, but each step is a pass over the video, and libtpu changes its layout before and after a temporal
convolution: at the finest level of `if_l` they took as long as the 2D convolutions (docs/performance.md). The kernel
has some pixels on the chip at a time, with all their frames:

    forward     h = act(scale x + shift);  y[t] = bias + sum_k h[t + k] W_k (+ residual);  sums of y and of y^2
    gradient    h again;  gradients of x, W_k and the bias, and of scale and shift, each a sum over pixels

so the statistics of the next normalisation, and the sums for the gradient of this one, come with it. Products are of
values in the type of `x`, added up in float32, as is all else. Results are not kept for the backward pass: to compute
them again takes three fifths of a 2D convolution's time, and saves a fourth of what a block keeps. Elsewhere, and for
what the kernel cannot do, XLA does the same. The kernel has been compiled for TPUs, and interpreted; it has never run.

A core computes with values while its matrix unit works, which is what a kernel should wait for. So the gradient goes
through a block in steps so small that most of what it computes stays in registers; and where there is an instruction
for the tanh and none for the error function, GELU is made of it, as its result is rounded to bfloat16 anyway.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lumiere_jax.distributed import partitioning
from lumiere_jax.models.layers import Affine, Moments, temporal_convolution
from lumiere_jax.models.spatial_layers import activation

_ROWS = 640  # of a block: the frames of all its pixels. Twice as many take 3 % fewer cycles, and twice the memory.
_PARTS = 2  # of a device's pixels: as many as a chip has cores, at most
_SUBLANES, _LANES = 8, 128
# Of a core's fast memory (VMEM): what a kernel may have, and what of it the weights and their gradients.
_FAST_MEMORY, _FAST_MEMORY_OF_WEIGHTS = 48 * 2**20, 24 * 2**20
TOO_LITTLE_FAST_MEMORY = ("TPU v2", "TPU v3", "TPU v4")  # 16 MiB
_WITHOUT_ERF = "TPU v5"  # as an instruction


class _Operands(NamedTuple):
    x: Float[Array, "batch frames height width in"]
    norm: Affine  # [batch, frames, in]
    kernel: Float[Array, "taps inputs outputs"]
    bias: Float[Array, " out"]
    residual: Float[Array, "batch frames height width out"] | None


class _Results(NamedTuple):
    y: Float[Array, "batch frames height width out"]
    total: Float[Array, "batch frames out"] | None  # over a frame's pixels
    squares: Float[Array, "batch frames out"] | None


class _Choices(NamedTuple):
    act: str
    has_sums: bool
    interpret: bool


def normalized_conv(
    x: Float[Array, "batch frames height width in"],
    norm: Affine,
    kernel: Float[Array, "taps inputs outputs"],
    bias: Float[Array, " out"],
    *,
    act: str,
    interpret: bool = False,
) -> tuple[Float[Array, "batch frames height width out"], Moments]:
    """`temporal_convolution(act(scale * x + shift), kernel) + bias`, and its moments over each frame's pixels.

    Args:
      x: the video.
      norm: scale and shift `[batch, frames, in]`, as `GroupNorm.folded` gives them.
      kernel: weights of an odd number of frames, the middle one at the frame itself.
      bias: added at each pixel.
      act: "gelu" or "silu".
      interpret: runs the kernel without a TPU, very slowly.
    """
    operands = _Operands(x, norm, kernel.astype(x.dtype), bias.astype(x.dtype), None)
    results = _convolved(_Choices(act, True, interpret), operands)
    pixels = math.prod(x.shape[2:4])
    return results.y, Moments(results.total / pixels, results.squares / pixels)


def add_normalized_product(
    residual: Float[Array, "batch frames height width out"],
    x: Float[Array, "batch frames height width in"],
    norm: Affine,
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, " out"],
    *,
    act: str,
    interpret: bool = False,
) -> Float[Array, "batch frames height width out"]:
    """`residual + act(scale * x + shift) @ kernel + bias`; arguments as for `normalized_conv`."""
    operands = _Operands(x, norm, kernel.astype(x.dtype)[None], bias.astype(x.dtype), residual)
    return _convolved(_Choices(act, False, interpret), operands).y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolved(choices: _Choices, operands: _Operands) -> _Results:
    return _on_platform(_forward, _by_xla, choices, operands)


def _convolved_forward(choices: _Choices, operands: _Operands) -> tuple[_Results, tuple]:
    results = _convolved(choices, operands)
    # The gradient of the sum of squares asks for what was squared.
    return results, (operands._replace(residual=None), results.y if choices.has_sums else None)


def _convolved_backward(choices: _Choices, kept: tuple, gradient: _Results) -> tuple[_Operands]:
    operands, y = kept
    gradients = _on_platform(_backward, _gradient_by_xla, choices, operands, y, gradient)
    return (gradients._replace(residual=None if choices.has_sums else gradient.y),)


_convolved.defvjp(_convolved_forward, _convolved_backward)


def _on_platform(kernel: Callable, by_xla: Callable, choices: _Choices, operands: _Operands, *more: Any) -> Any:
    kernel, by_xla = functools.partial(kernel, choices), functools.partial(by_xla, choices)
    if not _fits(operands):
        return by_xla(operands, *more)
    if choices.interpret:
        return kernel(operands, *more)
    return jax.lax.platform_dependent(operands, *more, tpu=kernel, default=by_xla)


def _by_xla(choices: _Choices, operands: _Operands) -> _Results:
    y = temporal_convolution(activation(choices.act, operands.norm.of(operands.x)), operands.kernel) + operands.bias
    y = y if operands.residual is None else y + operands.residual
    if not choices.has_sums:
        return _Results(y, None, None)
    wide = y.astype(operands.norm.scale.dtype)
    return _Results(y, wide.sum((2, 3)), jnp.square(wide).sum((2, 3)))


def _gradient_by_xla(choices: _Choices, operands: _Operands, _y: Array | None, gradient: _Results) -> _Operands:
    return jax.vjp(functools.partial(_by_xla, choices), operands)[1](gradient)[0]


def _fits(operands: _Operands) -> bool:
    """The frames of a pixel are whole tiles, and the weights with their gradient lie in fast memory."""
    if partitioning.device_kind() in TOO_LITTLE_FAST_MEMORY:
        return False
    taps, *channels = operands.kernel.shape
    weights = taps * math.prod(-(-size // _LANES) * _LANES for size in channels)
    size = weights * (operands.kernel.dtype.itemsize + 2 * 4)  # one sum of gradients is made, one is on its way out
    return operands.x.shape[1] % _SUBLANES == 0 and size <= _FAST_MEMORY_OF_WEIGHTS


def pixels_of_a_block(pixels: int, frames: int) -> int:
    """How many of a device's pixels a kernel has on the chip at a time: they divide each core's part."""
    of_part = pixels // math.gcd(_PARTS, pixels)
    return max(size for size in range(1, of_part + 1) if of_part % size == 0 and size * frames <= max(_ROWS, frames))


def _forward(choices: _Choices, operands: _Operands) -> _Results:
    x, norm, kernel, bias, residual = operands
    frames, features = x.shape[1], kernel.shape[-1]
    y, sums = _over_pixels(
        functools.partial(_forward_kernel, _by_instructions(choices.act, kernel.dtype)),
        "normalized_conv_forward",
        (x, residual),
        norm,
        (kernel, bias[None]),
        features,
        [(frames, features)] * 2 * choices.has_sums,
        choices.interpret,
    )
    return _Results(y, *([total.sum((1, 2)) for total in sums] or (None, None)))


def _backward(choices: _Choices, operands: _Operands, y: Array | None, gradient: _Results) -> _Operands:
    x, norm, kernel, bias, _ = operands
    frames, features = x.shape[1], x.shape[-1]
    dx, (scale, shift, weights, biases) = _over_pixels(
        functools.partial(_gradient_kernel, _by_instructions(choices.act, kernel.dtype)),
        "normalized_conv_gradient",
        (x, gradient.y, y),
        (norm, gradient._replace(y=None)),
        kernel,
        features,
        [(frames, features), (frames, features), kernel.shape, (1, len(bias))],
        choices.interpret,
        kept=[(features, kernel.dtype), (features, jnp.dtype("float32")), *[(len(bias), kernel.dtype)] * len(kernel)],
        # The gradient of what is added to a residual is that of the residual, too, and is read on.
        written_over=1 if choices.has_sums and gradient.y.shape == x.shape else None,
    )
    return _Operands(
        dx,
        Affine(scale.sum((1, 2)), shift.sum((1, 2))),
        weights.sum((0, 1, 2)).astype(kernel.dtype),
        biases.sum((0, 1, 2, 3)).astype(bias.dtype),
        None,
    )


def _over_pixels(
    kernel: Callable,
    name: str,
    videos: Any,
    of_frames: Any,
    weights: Any,
    features: int,
    sums: list[tuple[int, ...]],
    interpret: bool,
    kept: Sequence[tuple[int, jnp.dtype]] = (),
    written_over: int | None = None,
) -> tuple[Array, list[Array]]:
    """Runs a kernel over all pixels, on each device over its own.

    Args:
      kernel: of references to one block of pixels of `videos`; to `of_frames`; to `weights`; to the same block of a
        video, to write; to sums over pixels, to add to; and to what is `kept`.
      name: of the kernel.
      videos: a pytree of arrays `[batch, frames, height, width, channels]`, which the kernel sees as `[1, pixels,
        frames, channels]`: libtpu has the frames and the channels of a pixel beside each other.
      of_frames: a pytree of arrays `[batch, frames, channels]`.
      weights: a pytree of other arrays.
      features: channels of the video that is written.
      sums: the shapes of the sums, in float32.
      interpret: without a TPU.
      kept: channels and type of arrays `[rows, channels]` in fast memory, for the rows of a block.
      written_over: which of `videos` the written one takes the place of.

    Returns:
      the video, and each sum in parts, one of each device: `[batch, 1, devices, *shape]`.
    """

    def on_device(videos: Any, of_frames: Any, weights: Any) -> tuple[Array, list[Array]]:
        x = jax.tree.leaves(videos)[0]
        batch, frames, height, width, _ = x.shape
        parts = math.gcd(_PARTS, height * width)
        block = pixels_of_a_block(height * width, frames)
        blocks = height * width // parts // block

        def pixels_first(video: Array) -> Array:
            return jnp.moveaxis(video, 1, 3).reshape(batch, height * width, frames, -1)

        def of_block(video: Any) -> pl.BlockSpec:
            return pl.BlockSpec((1, block, *video.shape[2:]), lambda clip, part, i: (clip, part * blocks + i, 0, 0))

        def of_clip(array: Any) -> pl.BlockSpec:
            return pl.BlockSpec((1, *array.shape[1:]), lambda clip, part, i: (clip, 0, 0))

        def of_part(array: Any) -> pl.BlockSpec:
            zeros = (0,) * (array.ndim - 2)
            return pl.BlockSpec((1, 1, *array.shape[2:]), lambda clip, part, i: (clip, part, *zeros))

        videos = jax.tree.map(pixels_first, videos)
        y = jax.ShapeDtypeStruct((batch, height * width, frames, features), x.dtype)
        partial = [jax.ShapeDtypeStruct((batch, parts, *shape), jnp.float32) for shape in sums]
        y, *partial = pl.pallas_call(
            kernel,
            name=name,
            grid=(batch, parts, blocks),
            in_specs=[
                jax.tree.map(of_block, videos),
                jax.tree.map(of_clip, of_frames),
                jax.tree.map(lambda _: pl.BlockSpec(memory_space=pltpu.VMEM), weights),
            ],
            out_specs=[of_block(y), *map(of_part, partial)],
            out_shape=[y, *partial],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_FAST_MEMORY
            ),
            scratch_shapes=[pltpu.VMEM((block * frames, channels), dtype) for channels, dtype in kept],
            input_output_aliases={} if written_over is None else {written_over: 0},
            interpret=interpret,
        )(videos, of_frames, weights)
        y = jnp.moveaxis(y.reshape(batch, height, width, frames, features), 3, 1)
        return y, [array.sum(1, keepdims=True)[:, None] for array in partial]

    return partitioning.on_rows(on_device)(videos, of_frames, weights)


def _forward_kernel(
    act: str, videos: tuple, norm: Affine, weights: tuple, y: Any, total: Any = None, squares: Any = None
) -> None:
    (x, residual), (kernel, bias) = videos, weights
    _, pixels, frames, _ = x.shape
    taps = kernel.shape[0]
    h, _ = _activated(act, x[0].astype(jnp.float32) * norm.scale[0] + norm.shift[0])
    out = bias[...].astype(jnp.float32)
    for tap in range(taps):
        out = out + _product(_rows(_later(h, tap - taps // 2), kernel.dtype), kernel[tap], (1, 0))
    out = out.reshape(pixels, frames, -1)
    if residual is not None:
        out = out + residual[0].astype(jnp.float32)
    y[0] = out.astype(y.dtype)
    if total is not None:
        _start_sums(total, squares)
        total[0, 0] += out.sum(0)
        squares[0, 0] += jnp.square(out).sum(0)


def _gradient_kernel(
    act: str,
    videos: tuple,
    of_frames: tuple[Affine, _Results],
    kernel: Any,
    dx: Any,
    scale: Any,
    shift: Any,
    weights: Any,
    bias: Any,
    h: Any,
    slope: Any,
    *toward: Any,
) -> None:
    (x, dy, y), (norm, gradient) = videos, of_frames
    _, pixels, frames, _ = x.shape
    steps = _steps(pixels, frames, kernel.dtype)
    _start_sums(scale, shift, weights, bias)
    of_scale = of_shift = of_bias = 0.0
    for step, rows in steps:
        dout = dy[0, step].astype(jnp.float32)
        if y is not None:
            dout = dout + gradient.total[0] + 2.0 * gradient.squares[0] * y[0, step].astype(jnp.float32)
        for tap, of_tap in enumerate(toward):
            of_tap[rows] = _rows(_later(dout, len(toward) // 2 - tap), of_tap.dtype)
        of_bias += dout.sum(0)
        activated, its_slope = _activated(act, x[0, step].astype(jnp.float32) * norm.scale[0] + norm.shift[0])
        h[rows], slope[rows] = _rows(activated, h.dtype), _rows(its_slope, slope.dtype)
    dh = 0.0
    for tap, of_tap in enumerate(toward):
        dh = dh + _product(of_tap[...], kernel[tap], (1, 1))
        weights[0, 0, tap] += _product(h[...], of_tap[...], (0, 0))
    for step, rows in steps:
        da = (dh[rows] * slope[rows]).reshape(-1, frames, dh.shape[-1])
        dx[0, step] = (da * norm.scale[0]).astype(dx.dtype)
        of_scale += (da * x[0, step].astype(jnp.float32)).sum(0)
        of_shift += da.sum(0)
    scale[0, 0] += of_scale
    shift[0, 0] += of_shift
    bias[0, 0] += of_bias.sum(0)[None]


def _steps(pixels: int, frames: int, dtype: jnp.dtype) -> list[tuple[slice, slice]]:
    """As few pixels at a time as have whole tiles of rows, and their rows."""
    tile = _SUBLANES * 4 // dtype.itemsize
    step = tile // math.gcd(tile, frames)
    step = step if pixels % step == 0 else pixels
    return [(slice(i, i + step), slice(i * frames, (i + step) * frames)) for i in range(0, pixels, step)]


def _start_sums(*sums: Any) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for each in sums:
            each[...] = jnp.zeros_like(each)


def _by_instructions(act: str, dtype: jnp.dtype) -> str:
    """How a kernel computes an activation that is then rounded to `dtype`: `_activated`."""
    is_by_tanh = act == "gelu" and dtype == jnp.bfloat16 and partitioning.device_kind().startswith(_WITHOUT_ERF)
    return "gelu by tanh" if is_by_tanh else act


def _activated(act: str, x: Array) -> tuple[Array, Array]:
    """`activation`, and its slope: of what a kernel may use, and both at once.

    Args:
      act: "gelu", "silu"; or "gelu by tanh", which is wrong by 3e-5 at most, as much as rounding a value of .015 to
        bfloat16 may be, and its slope by 2e-4.
      x: in float32.
    """
    match act:
        case "gelu":
            probability = 0.5 + 0.5 * jax.lax.erf(math.sqrt(0.5) * x)
            density = math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * jnp.square(x))
        case "gelu by tanh":
            # Of the odd polynomials of this degree the one with the smallest error of the result. It would turn round
            # far out, where the tanh is 1 already.
            a, b, c = 0.797508, 0.03700556, -0.0003515049
            square = jnp.minimum(jnp.square(x), 64.0)
            probability = 0.5 + 0.5 * jnp.tanh(x * (a + square * (b + square * c)))
            density = 2.0 * probability * (1.0 - probability) * (a + square * (3.0 * b + square * (5.0 * c)))
        case "silu":
            probability = jax.nn.sigmoid(x)
            density = probability * (1.0 - probability)
    return x * probability, probability + x * density


def _later(x: Float[Array, "pixels frames channels"], frames: int) -> Float[Array, "pixels frames channels"]:
    """At each frame, what is so many frames later; zeros beyond the clip."""
    if frames == 0:
        return x
    frame = jax.lax.broadcasted_iota(jnp.int32, (1, *x.shape[1:]), 1) + frames
    return jnp.where((frame >= 0) & (frame < x.shape[1]), pltpu.roll(x, -frames % x.shape[1], 1), 0.0)


def _rows(x: Float[Array, "pixels frames channels"], dtype: jnp.dtype) -> Float[Array, "rows channels"]:
    return x.reshape(-1, x.shape[-1]).astype(dtype)


def _product(a: Array, b: Array, over: tuple[int, int]) -> Array:
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)
