"""Sampling of clips that are larger than a device's memory: the host holds the clip, the devices some of its windows.

At each step the windows go through the network a few at a time, in the order of their frames. Their predictions are
added up on the host (`multidiffusion.Windows`: the same windows and shares), and a frame takes its step as soon as no
window to come covers it. So a device needs memory for a few windows, whatever the length of the clip; and in the last
step frames are finished one by one, in order, while later ones are still noise.

Every `samplers.Plan` can be followed like this, as it takes its step pixel by pixel. Thresholds that look at the whole
clip cannot.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lumiere_jax.diffusion.multidiffusion import Cut

# (step, number of the clip [n], corner [n, 3], windows of the noisy clip [n, frames, height, width, channels])
# -> predictions [n, frames, height, width, out_channels], as soon as they are asked for
DenoiseWindows = Callable[
    [int, Int[np.ndarray, " n"], Int[np.ndarray, "n 3"], Float[np.ndarray, "n frames height width channels"]], Any
]
# (step, clip, frame, the frame's state, its averaged prediction, the last step's x0) -> (next state, x0)
FinishFrame = Callable[[int, int, int, np.ndarray, np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]


def stream(
    denoise_windows: DenoiseWindows,
    finish_frame: FinishFrame,
    x: Float[np.ndarray, "clips frames height width channels"],
    cut: Cut,
    *,
    calls: int,
    window_batch: int,
    keeps_x0: bool = False,
) -> Iterator[tuple[int, int, Float[np.ndarray, "height width channels"]]]:
    """Samples clips, and returns their frames as they are finished: those of the first clip in order, then the next's.

    Args:
      denoise_windows: the network, which may start on the next windows before the last ones are fetched.
      finish_frame: takes a frame's step.
      x: noise. It is overwritten.
      cut: the windows of each clip.
      calls: of the network: rows of the sampler's plan.
      window_batch: windows that go through the network at once; where they are fewer at the end, the last one fills up.
      keeps_x0: whether `finish_frame` needs the x0 that it returned a call before.
    """
    previous = np.zeros_like(x) if keeps_x0 else None
    for step in range(calls):
        for clip, frame, prediction in _averages(denoise_windows, step, x, cut, window_batch):
            before = None if previous is None else previous[clip, frame]
            x[clip, frame], x0 = finish_frame(step, clip, frame, x[clip, frame], prediction, before)
            if previous is not None:
                previous[clip, frame] = x0
            if step == calls - 1:
                yield clip, frame, x[clip, frame]


def _averages(
    denoise_windows: DenoiseWindows, step: int, x: np.ndarray, cut: Cut, window_batch: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Averaged predictions of the clips' frames, in order, each as soon as the last of its windows is denoised."""
    windows = [(clip, *corner) for clip in range(len(x)) for corner in cut.corners.tolist()]
    chunks = [windows[first : first + window_batch] for first in range(0, len(windows), window_batch)]
    pending: dict[tuple[int, int], np.ndarray] = {}
    # One chunk ahead: the devices have the next windows while the host adds up the last ones (frames that take their
    # step on a device wait there until it is done with these). What a step changes of `x` lies before the next windows,
    # which would be pending otherwise.
    ahead = _denoise(denoise_windows, step, x, cut, chunks[0], window_batch)
    for number, chunk in enumerate(chunks):
        predictions = ahead
        if number + 1 < len(chunks):
            ahead = _denoise(denoise_windows, step, x, cut, chunks[number + 1], window_batch)
        _add(pending, cut, chunk, np.asarray(predictions), x.shape[2:4])
        beginning = chunks[number + 1][0][:2] if number + 1 < len(chunks) else (len(x), 0)
        for place in sorted(place for place in pending if place < beginning):
            yield *place, pending.pop(place)


def _denoise(denoise_windows: DenoiseWindows, step: int, x: np.ndarray, cut: Cut, chunk: list[tuple], size: int) -> Any:
    filled = np.array([*chunk, *[chunk[-1]] * (size - len(chunk))])
    clips, corners = filled[:, 0], filled[:, 1:]
    cut_out = np.stack(
        [x[(clip, *map(slice, corner, corner + cut.shape))] for clip, corner in zip(clips, corners, strict=True)]
    )
    return denoise_windows(step, clips, corners, cut_out)


def _add(
    pending: dict[tuple[int, int], np.ndarray],
    cut: Cut,
    chunk: list[tuple],
    predictions: np.ndarray,
    size: tuple[int, int],
) -> None:
    """Adds each window's share to the frames that it covers."""
    along_frames, along_height, along_width = (
        dict(zip(starts, shares.astype(predictions.dtype), strict=True))
        for starts, shares in zip(cut.starts, cut.shares, strict=True)
    )
    for (clip, first, top, left), window in zip(chunk, predictions, strict=False):  # without what only filled up
        in_frame = along_height[top][:, None, None] * along_width[left][None, :, None]
        box = np.s_[top : top + cut.shape[1], left : left + cut.shape[2]]
        for offset, share in enumerate(along_frames[first]):
            place = (clip, first + offset)
            if place not in pending:
                pending[place] = np.zeros((*size, window.shape[-1]), window.dtype)
            pending[place][box] += share * in_frame * window[offset]
