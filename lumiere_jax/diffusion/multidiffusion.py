"""Temporal MultiDiffusion (paper section 3.2): a denoiser of any number of frames out of one of few frames.

At each denoising step the noisy video J is split into overlapping windows J_i, each is denoised by the network Phi,
and the step's result is

    argmin_J' sum_i w || J' - Phi(J_i) ||^2    (J' restricted to window i's frames)

which is, frame by frame, the weighted average of the predictions that cover it (Bar-Tal et al. 2023, eq. 5).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lumiere_jax.diffusion.prediction import Denoiser


def window_starts(frames: int, window: int, overlap: int) -> tuple[int, ...]:
    """First frame of every window; the last window is moved back to end with the clip, and may overlap more.

    The paper's 80 frames with windows of 8 (read off its Fig. 3) that overlap by 2 give 13 windows.

    Raises:
      ValueError: if window < 1, window > frames, or overlap is not in [0, window).
    """
    _check_window(window, overlap)
    if window > frames:
        raise ValueError(f"window={window} is longer than the clip's frames={frames}")
    return (*range(0, frames - window, window - overlap), frames - window)


def window_weights(window: int, kind: str = "uniform") -> Float[np.ndarray, " {window}"]:
    """Weight of a window's frames in the average, positive and at most 1.

    "uniform" is the paper's plain average. "feathered" rises linearly to the window's middle, so that a window fades
    in and out at its ends instead of starting with a seam (not from the paper).

    Raises:
      ValueError: if window < 1 or kind is unknown.
    """
    _check_window(window, overlap=0)
    match kind:
        case "uniform":
            return np.ones(window)
        case "feathered":
            tent = np.minimum(np.arange(1, window + 1), np.arange(window, 0, -1))
            return tent / tent.max()
        case _:
            raise ValueError(f'unknown weights {kind!r}: use "uniform" or "feathered"')


def multidiffusion(
    denoiser: Denoiser,
    *,
    window: int,
    overlap: int,
    weights: str = "uniform",
    window_batch: int | None = None,
) -> Callable[..., Array]:
    """Makes a denoiser of clips of any length from a denoiser of `window` frames.

    The result is called as `f(x_t, t, *per_frame, per_clip=())`:

      x_t: [batch, frames, height, width, channels]; at most `window` frames are handed to `denoiser` as they are.
      t: scalar or [batch].
      per_frame: arrays [batch, frames, ...] that are cut into the same windows: masks, a low-resolution clip.
      per_clip: a sequence of arrays, or trees of arrays, [batch, ...] that every window of a clip shares: text.

    and calls `denoiser(x_window, t, *per_frame_windows, *per_clip)` with the windows in the batch axis: those of the
    first clip, then those of the second, ... (so that a device that holds a clip holds its windows, too); t, if not
    scalar, and per_clip are repeated to match. Prediction of
    x0, of epsilon and of v may all be averaged; threshold them afterwards, on the whole clip. So may a learned variance
    in further channels: the average of what interpolates log-variances is a (weighted) geometric mean of variances.

    Args:
      denoiser: of clips of `window` frames, with any number of output channels.
      window: frames in a window, at least 1; 8 in the paper's Fig. 3.
      overlap: frames that neighbouring windows share, in [0, window); 2 in the paper.
      weights: "uniform" (the paper's) or "feathered": see `window_weights`.
      window_batch: how many windows to denoise at once, to bound memory; None for all. If it does not divide their
        number, the last one is computed repeatedly to fill up.

    Raises:
      ValueError: if an argument is out of range.
    """
    _check_window(window, overlap)
    frame_weights = window_weights(window, weights)
    if window_batch is not None and window_batch < 1:
        raise ValueError(f"window_batch must be at least 1 or None, got {window_batch}")

    def denoise_all(x_t: Array, t: Array, *per_frame: Array, per_clip: tuple[Any, ...] = ()) -> Array:
        frames = x_t.shape[1]
        _check_per_frame(per_frame, x_t.shape[:2])
        if frames <= window:
            return denoiser(x_t, t, *per_frame, *per_clip)
        starts = window_starts(frames, window, overlap)

        def denoise_windows(chosen: Array) -> Array:  # [n] -> [n, batch, window, height, width, channels]
            cut = [_cut_windows(array, chosen, window) for array in (x_t, *per_frame)]
            repeated_t, shared = jax.tree.map(lambda array: _repeat(array, len(chosen)), (t, tuple(per_clip)))
            prediction = denoiser(cut[0], repeated_t, *cut[1:], *shared)
            return jnp.moveaxis(prediction.reshape(-1, len(chosen), *prediction.shape[1:]), 1, 0)

        predictions = _in_chunks(denoise_windows, starts, window_batch)
        return _average(predictions, starts, frame_weights, frames)

    return denoise_all


def _cut_windows(array: Array, starts: Array, window: int) -> Array:
    """[batch, frames, ...] -> [batch * windows, window, ...]."""
    cut = jnp.take(array, starts[:, None] + jnp.arange(window), axis=1)  # [batch, windows, window, ...]
    return cut.reshape(-1, window, *array.shape[2:])


def _repeat(array: Array, windows: int) -> Array:
    """[batch, ...] -> [batch * windows, ...]; a scalar stays."""
    array = jnp.asarray(array)
    return array if array.ndim == 0 else jnp.repeat(array, windows, axis=0)


def _in_chunks(denoise_windows: Callable[[Array], Array], starts: tuple[int, ...], size: int | None) -> Array:
    """Denoises all windows, `size` at a time, with one copy of the denoiser in the program."""
    if size is None or size >= len(starts):
        return denoise_windows(jnp.array(starts))
    chunks = -(-len(starts) // size)
    padded = np.pad(starts, (0, chunks * size - len(starts)), mode="edge").reshape(chunks, size)
    predictions = jax.lax.map(denoise_windows, jnp.asarray(padded))
    return predictions.reshape(chunks * size, *predictions.shape[2:])[: len(starts)]


def _average(predictions: Array, starts: tuple[int, ...], frame_weights: np.ndarray, frames: int) -> Array:
    """[windows, batch, window, ...] -> [batch, frames, ...]: the least-squares solution."""
    window = len(frame_weights)
    total = np.zeros(frames)
    for start in starts:
        total[start : start + window] += frame_weights
    dtype = jnp.promote_types(predictions.dtype, jnp.float32)
    average = jnp.zeros((predictions.shape[1], frames, *predictions.shape[3:]), dtype)
    for start, prediction in zip(starts, predictions, strict=True):
        # Normalised first: a frame that one window covers gets that window's prediction exactly.
        share = jnp.asarray(frame_weights / total[start : start + window], dtype)
        share = share.reshape(window, *(1,) * (prediction.ndim - 2))
        average = average.at[:, start : start + window].add(share * prediction)
    return average


def _check_window(window: int, overlap: int) -> None:
    if window < 1:
        raise ValueError(f"window must be at least 1 frame, got {window}")
    if not 0 <= overlap < window:
        raise ValueError(f"overlap must be in [0, window={window}), got {overlap}")


def _check_per_frame(per_frame: tuple[Array, ...], expected: tuple[int, int]) -> None:
    for index, array in enumerate(per_frame):
        if array.shape[:2] != expected:
            raise ValueError(
                f"per_frame array {index} has shape {array.shape}, but x_t has (batch, frames) = {expected}; "
                "arrays without a frame axis go into per_clip"
            )
