"""Finds a key's watermark in a video, an animation or a picture, whole or cropped, at any size, without the original.

Each frame's luminance is whitened (its contrast made even, so that no edge outweighs the rest), and the mean over the
frames is correlated with the key's pattern: where it lies if nothing is cropped, and at all places and 73 scales that
a crop may have. Correlations are in standard deviations of what any other pattern gives: the pattern is Gaussian noise,
so for a video that does not know the key each is normally distributed exactly, whatever the video shows. What p-value
the best of N correlations has follows by Bonferroni's inequality: at most N times that of one.
"""

import dataclasses
import math
import os
from collections.abc import Iterable

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.stats
from jaxtyping import Float, UInt8

from lumiere_jax.data.video_io import VideoError, frame_to_rgb, open_video
from lumiere_jax.provenance.watermark import (
    LUMA,
    PERIOD,
    PUBLIC_KEY,
    UNIT,
    band,
    frequencies,
    pattern_spectrum,
    resized,
)

FALSE_POSITIVES = 1e-6
"""Of videos without the watermark, at most this share counts as having it."""

_LARGEST = 192  # pixels of the shorter side that are looked at: the pattern needs no more
# Shares of the shorter side that a crop may have left. Half a step moves the borders by less than a sample.
_SHARES = np.exp(-0.01 * np.arange(73))  # 1 to 0.49
_NEAR = 1  # samples that the corner of an uncropped frame may be off, by rounding
_PLACES = (2 * _NEAR + 1) ** 2
_HIGHEST = 0.9  # of the highest frequency that frames of a size can show
# Scales of whitening, of the shorter side; and what counts as no contrast, in levels of 255.
_DETAIL, _AROUND, _QUIET = 1 / 24, 1 / 32, 1.5


@dataclasses.dataclass(frozen=True)
class Detection:
    """What was found.

    Attributes:
      score: the best correlation, in standard deviations.
      log10_p: of the p-value: how probable so high a score is without the watermark, at most.
      share: of the shorter side of the original frames, where the best correlation is.
      frames: how many were looked at.
    """

    score: float
    log10_p: float
    share: float
    frames: int

    @property
    def found(self) -> bool:
        """Whether the p-value is below `FALSE_POSITIVES`."""
        return self.log10_p < math.log10(FALSE_POSITIVES)


def detect(path: str | os.PathLike[str], key: str = PUBLIC_KEY) -> Detection:
    """Looks for the watermark in a file of a video, an animation or a picture.

    Raises:
      FileNotFoundError: there is none.
      VideoError: it cannot be decoded, or its frames change their size.
    """
    with open_video(path) as video:
        return detect_in_frames((frame_to_rgb(frame) for _, frame in video.frames), key, name=os.fspath(path))


def detect_in_frames(
    frames: Iterable[UInt8[np.ndarray, "height width 3"]], key: str = PUBLIC_KEY, *, name: str = "video"
) -> Detection:
    """Looks for the watermark in frames that come one by one.

    Raises:
      VideoError: there are none, or they change their size; `name` is what the message calls them.
    """
    total, count = None, 0
    for image in frames:
        white = whitened(image)
        if total is not None and total.shape != white.shape:
            raise VideoError(f"{name}: the frame size changes within the clip")
        total, count = white if total is None else total + white, count + 1
    if total is None:
        raise VideoError(f"{name}: has no frames")
    whole = correlations(total, 1.0, key)
    corner = whole[np.ix_(*[np.arange(-_NEAR, _NEAR + 1)] * 2)]  # negative: beyond the left and upper border
    # Half of the false positives are for each of the two ways of looking.
    uncropped = Detection(float(corner.max()), _log10_p(float(corner.max()), 2 * _PLACES), 1.0, count)
    if uncropped.found:
        return uncropped
    best, share = max((float(correlations(total, share, key).max()), float(share)) for share in _SHARES)
    cropped = Detection(best, _log10_p(best, 2 * len(_SHARES) * PERIOD**2), share, count)
    return min(uncropped, cropped, key=lambda found: found.log10_p)


def _log10_p(score: float, looks: int) -> float:
    return min(0.0, float(scipy.stats.norm.logsf(score)) / math.log(10) + math.log10(looks))


def whitened(image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "rows columns"]:
    """The luminance's detail over the contrast around it, at most 192 pixels high or wide, whichever is less."""
    luma = image @ LUMA
    shorter = min(luma.shape)
    if shorter > _LARGEST:
        luma = resized(luma, *(round(side * _LARGEST / shorter) for side in luma.shape))
        shorter = _LARGEST
    detail = luma - scipy.ndimage.gaussian_filter(luma, _DETAIL * shorter)
    return detail / (np.sqrt(scipy.ndimage.gaussian_filter(detail**2, _AROUND * shorter)) + _QUIET)


def correlations(white: Float[np.ndarray, "rows columns"], share: float, key: str) -> Float[np.ndarray, "period _"]:
    """With the pattern from each place on, in standard deviations.

    Args:
      white: the mean of `whitened` frames.
      share: of the shorter side of the original frames, that these are supposed to be.
      key: of the pattern.

    Returns:
      at [row, column] for frames whose upper left corner is there in the original ones, in units of 1 / UNIT of these.
    """
    samples = UNIT * share / min(white.shape)  # for each pixel
    height, width = (max(1, round(side * samples)) for side in white.shape)
    plane = np.zeros((PERIOD, PERIOD), np.float32)
    shown = resized(white, height, width)[:PERIOD, :PERIOD]  # of a panorama the left
    plane[: shown.shape[0], : shown.shape[1]] = shown - shown.mean()
    visible = band() & (frequencies() < _HIGHEST * min(white.shape) / (2 * share))
    spectrum = _even(scipy.fft.rfft2(plane) * visible)
    # Of a real plane's spectrum half is stored: all columns but the first, whose counterparts are among its rows.
    twice = np.where(np.arange(spectrum.shape[1]) == 0, 1, 2)
    deviation = np.sqrt((twice * np.abs(spectrum) ** 2).sum()) / PERIOD
    if deviation == 0:  # nothing to be seen
        return np.zeros((PERIOD, PERIOD))
    return scipy.fft.irfft2(np.conj(spectrum) * pattern_spectrum(key), s=(PERIOD, PERIOD)) / deviation


def _even(spectrum: np.ndarray) -> np.ndarray:
    """Each frequency over its radius's mean power: the matched filter of a mark that is as strong at all of them."""
    power, radius = np.abs(spectrum) ** 2, np.rint(frequencies()).astype(int)
    mean = np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel())
    mean = (mean + 1e-3 * mean.max() + 1e-12).astype(np.float32)
    return spectrum / mean[radius]
