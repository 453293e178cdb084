"""MultiDiffusion (paper section 3.2): a denoiser of clips of any size out of one of small clips.

At each denoising step the noisy video J is split into overlapping windows J_i, each is denoised by the network Phi,
and the step's result is

    argmin_J' sum_i w || J' - Phi(J_i) ||^2    (J' restricted to window i)

which is, pixel by pixel, the weighted average of the predictions that cover it (Bar-Tal et al. 2023, eq. 5). The
paper's windows are short in time and whole in space. Here they may be cut along height and width, too (tiles), to save
memory: weights are products of weights along the three axes, and so are a window's shares in the average.

`multidiffusion` wraps a denoiser for clips that a device holds whole; `streaming.py` uses the same windows on clips
that it does not hold.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lumiere_jax.diffusion.prediction import Denoiser

Weights = Literal["uniform", "feathered", "latest"]
AXES = ("frames", "height", "width")


def window_starts(length: int, window: int, overlap: int, axis: str = "frames") -> tuple[int, ...]:
    """Where every window starts; the last window is moved back to end with the clip, and may overlap more.

    The paper's 80 frames with windows of 8 (read off its Fig. 3) that overlap by 2 give 13 windows.

    Args:
      length, window, overlap: in frames, or in pixels.
      axis: to name in errors.

    Raises:
      ValueError: if window < 1, window > length, or overlap is not in [0, window).
    """
    _check_window(window, overlap, axis)
    if window > length:
        raise ValueError(f"a window of {axis}={window} is longer than the clip's {axis}={length}")
    return (*range(0, length - window, window - overlap), length - window)


def window_weights(window: int, kind: str = "uniform") -> Float[np.ndarray, " {window}"]:
    """Weight of a window's frames (or rows, or columns) in the average, positive and at most 1.

    "uniform" is the paper's plain average. "feathered" rises linearly to the window's middle, so that a window fades
    in and out at its ends instead of starting with a seam (not from the paper).

    Raises:
      ValueError: if window < 1 or kind is unknown.
    """
    _check_window(window, 0, "frames")
    match kind:
        case "uniform" | "latest":
            return np.ones(window)
        case "feathered":
            tent = np.minimum(np.arange(1, window + 1), np.arange(window, 0, -1))
            return tent / tent.max()
        case _:
            raise ValueError(f"unknown weights {kind!r}: use one of {', '.join(get_args(Weights))}")


def window_shares(
    length: int, window: int, overlap: int, weights: str = "uniform", axis: str = "frames"
) -> Float[np.ndarray, "windows {window}"]:
    """The share of each window in the average of each frame that it covers; the shares of a frame sum to 1.

    Args:
      length, window, overlap, axis: as for `window_starts`.
      weights: of `window_weights`. Or "latest", which is no least-squares solution: a frame is the last window's that
        covers it, as in Show-1, whose seams `benchmarks/temporal_seams` compares with.

    Raises:
      ValueError: as `window_starts` and `window_weights`.
    """
    starts = window_starts(length, window, overlap, axis)
    shares = np.tile(window_weights(window, weights), (len(starts), 1))
    if weights == "latest":
        for number, (start, following) in enumerate(itertools.pairwise(starts)):
            shares[number, following - start :] = 0.0
        return shares
    total = np.zeros(length)
    for start, share in zip(starts, shares, strict=True):
        total[start : start + window] += share
    return np.stack([share / total[start : start + window] for start, share in zip(starts, shares, strict=True)])


@dataclasses.dataclass(frozen=True)
class Windows:
    """How clips are cut.

    Attributes:
      frames: of a window, and those that neighbours share; None: all.
      height, width: of a tile, and the pixels that neighbours share; None: whole.
      weights: see `window_shares`.

    Raises:
      ValueError: a window below 1, an overlap that is not in [0, window), unknown weights.
    """

    frames: tuple[int, int] | None = None
    height: tuple[int, int] | None = None
    width: tuple[int, int] | None = None
    weights: str = "uniform"

    def __post_init__(self):
        for axis, cut in zip(AXES, (self.frames, self.height, self.width), strict=True):
            if cut is not None:
                _check_window(*cut, axis)
        window_weights(1, self.weights)

    def of(self, clip: Sequence[int]) -> "Cut":
        """The windows of a clip of (frames, height, width); one that is shorter than a window is a single window."""
        starts, shares = [], []
        for axis, length, cut in zip(AXES, clip, (self.frames, self.height, self.width), strict=True):
            window, overlap = (length, 0) if cut is None or cut[0] >= length else cut
            starts.append(window_starts(length, window, overlap, axis))
            shares.append(window_shares(length, window, overlap, self.weights, axis))
        return Cut(tuple(clip), tuple(starts), tuple(shares))


@dataclasses.dataclass(frozen=True)
class Cut:
    """The windows of one clip: all combinations of those along frames, height and width.

    Attributes:
      clip: (frames, height, width).
      starts: along each axis.
      shares: along each axis, [windows, size]: a window's share in a pixel is the product of the three.
    """

    clip: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    shares: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width) of a window."""
        return tuple(shares.shape[1] for shares in self.shares)

    @functools.cached_property
    def corners(self) -> Int[np.ndarray, "windows 3"]:
        """Where each window starts; those of the same frames one after the other."""
        return np.array(list(itertools.product(*self.starts)))

    @property
    def overhead(self) -> float:
        """Pixels that the windows have, over those of the clip: 1.3 for the paper's windows."""
        return len(self.corners) * float(np.prod(self.shape)) / float(np.prod(self.clip))


def multidiffusion(
    denoiser: Denoiser,
    windows: Windows,
    *,
    window_batch: int | None = None,
    sharding: jax.sharding.NamedSharding | None = None,
) -> Callable[..., Array]:
    """Makes a denoiser of clips of any size from a denoiser of windows.

    The result is called as `f(x_t, t, *per_frame, per_clip=())`:

      x_t: [batch, frames, height, width, channels]; a clip of a single window is handed to `denoiser` as it is.
      t: scalar or [batch].
      per_frame: arrays [batch, frames, ...] that are cut into the same windows: masks, a low-resolution clip. Where
        `windows` cuts height or width they have these axes, too.
      per_clip: a sequence of arrays, or trees of arrays, [batch, ...] that every window of a clip shares: text.

    and calls `denoiser(x_window, t, *per_frame_windows, *per_clip)` with the windows in the batch axis: those of the
    first clip, then those of the second, ... (so that a device that holds a clip holds its windows, too); t, if not
    scalar, and per_clip are repeated to match. Predictions of x0, of epsilon and of v may all be averaged; threshold
    them afterwards, on the whole clip. So may a learned variance in further channels: the average of what interpolates
    log-variances is a (weighted) geometric mean of variances.

    Args:
      denoiser: of windows, with any number of output channels.
      windows: how the clip is cut; the paper: 8 frames (its Fig. 3) that overlap by 2.
      window_batch: how many windows of each clip to denoise at once, to bound memory; None for all. If it does not
        divide their number, the last one is computed repeatedly to fill up.
      sharding: of the windows, on several devices: the batch axis divided, so that each denoises its share of the
        windows, and the average is a sum over devices. None: left to the compiler.

    Raises:
      ValueError: if an argument is out of range.
    """
    if window_batch is not None and window_batch < 1:
        raise ValueError(f"window_batch must be at least 1 or None, got {window_batch}")

    def divided(array: Array) -> Array:
        return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)

    def denoise_all(x_t: Array, t: Array, *per_frame: Array, per_clip: tuple[Any, ...] = ()) -> Array:
        cut = windows.of(x_t.shape[1:4])
        cut_axes = [axis for axis, starts in enumerate(cut.starts) if len(starts) > 1]
        _check_per_frame(per_frame, x_t.shape, cut_axes)
        if not cut_axes:
            return denoiser(x_t, t, *per_frame, *per_clip)

        def denoise_windows(corners: Array) -> Array:  # [n, 3] -> [n, batch, *window, channels]
            parts = [divided(_cut_windows(array, corners, cut, cut_axes)) for array in (x_t, *per_frame)]
            repeated_t, shared = jax.tree.map(lambda array: _repeat(array, len(corners)), (t, tuple(per_clip)))
            prediction = denoiser(parts[0], repeated_t, *parts[1:], *shared)
            return jnp.moveaxis(prediction.reshape(-1, len(corners), *prediction.shape[1:]), 1, 0)

        return _average(_in_chunks(denoise_windows, cut.corners, window_batch), cut)

    return denoise_all


def _cut_windows(array: Array, corners: Array, cut: Cut, cut_axes: Sequence[int]) -> Array:
    """[batch, frames, ...] -> [batch * windows, window's frames, ...]."""

    def one(corner: Array) -> Array:
        part = array
        for axis in cut_axes:  # the others are left alone: an axis that lies on several devices stays there
            part = jax.lax.dynamic_slice_in_dim(part, corner[axis], cut.shape[axis], axis + 1)
        return part

    parts = jax.vmap(one, out_axes=1)(corners)
    return parts.reshape(-1, *parts.shape[2:])


def _repeat(array: Array, windows: int) -> Array:
    """[batch, ...] -> [batch * windows, ...]; a scalar stays."""
    array = jnp.asarray(array)
    return array if array.ndim == 0 else jnp.repeat(array, windows, axis=0)


def _in_chunks(denoise_windows: Callable[[Array], Array], corners: np.ndarray, size: int | None) -> Array:
    """Denoises all windows, `size` at a time, with one copy of the denoiser in the program."""
    if size is None or size >= len(corners):
        return denoise_windows(jnp.asarray(corners))
    chunks = -(-len(corners) // size)
    padded = np.pad(corners, ((0, chunks * size - len(corners)), (0, 0)), mode="edge").reshape(chunks, size, 3)
    predictions = jax.lax.map(denoise_windows, jnp.asarray(padded))
    return predictions.reshape(chunks * size, *predictions.shape[2:])[: len(corners)]


def _average(predictions: Array, cut: Cut) -> Array:
    """[windows, batch, *window, channels] -> [batch, frames, height, width, channels]: the least-squares solution.

    One axis after the other is contracted with the windows' shares, so that predictions on several devices are added up
    there first and then sent, once.
    """
    dtype = jnp.promote_types(predictions.dtype, jnp.float32)
    grid = predictions.astype(dtype).reshape(*map(len, cut.starts), *predictions.shape[1:])
    for axis in reversed(range(3)):  # the number of windows along this axis is grid's axis `axis`, the last one left
        spread = _spread(cut, axis)
        if len(spread) == 1:
            grid = grid.squeeze(axis)
        else:
            # The pixels' axis comes after the axes of windows that are left, the batch and the axes before it.
            grid = jnp.tensordot(spread.astype(dtype), grid, ((0, 1), (axis, 2 * axis + 2)), precision="highest")
            grid = jnp.moveaxis(grid, 0, 2 * axis + 1)
    return grid


def _spread(cut: Cut, axis: int) -> np.ndarray:
    """[windows, window, length]: the share of each pixel of each window in each pixel of the clip."""
    starts, shares = cut.starts[axis], cut.shares[axis]
    spread = np.zeros((*shares.shape, cut.clip[axis]))
    inside = np.arange(shares.shape[1])
    for number, start in enumerate(starts):
        spread[number, inside, start + inside] = shares[number]
    return spread


def _check_window(window: int, overlap: int, axis: str) -> None:
    if window < 1:
        raise ValueError(f"window must be at least 1 along {axis}, got {window}")
    if not 0 <= overlap < window:
        raise ValueError(f"overlap must be in [0, window={window}) along {axis}, got {overlap}")


def _check_per_frame(per_frame: tuple[Array, ...], shape: tuple[int, ...], cut_axes: Sequence[int]) -> None:
    axes = 2 + max(cut_axes, default=0)
    for index, array in enumerate(per_frame):
        if array.shape[:axes] != shape[:axes]:
            raise ValueError(
                f"per_frame array {index} has shape {array.shape}, but x_t has (batch, {', '.join(AXES[: axes - 1])})"
                f" = {shape[:axes]}; arrays without these axes go into per_clip"
            )
