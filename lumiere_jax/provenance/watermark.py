"""An invisible watermark: a keyed pattern of noise in the luminance of every frame (spread spectrum; Cox et al., 1997).

    marked = frame + a(frame) w,    w: Gaussian noise of 10 to 32 cycles per shorter side of the frame

The pattern `w` is drawn from the key on a plane whose unit is the frame's shorter side: what is resized shows the same
pattern, and what is cropped a part of it. It is the same in all frames, so that it adds up over them while what moves
does not, and so that frames may come one by one, be dropped or be shown slower. Its strength `a` follows the contrast
around each pixel, which hides it. `watermark_detection.py` finds it again without the original.

The band is a compromise: lower frequencies drown in pictures, which have most of their energy there, and video codecs
drop higher ones first. All numbers are this project's own; docs/provenance.md has what they achieve.
"""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Complex, Float, UInt8
from PIL import Image

PUBLIC_KEY = "lumiere-jax"
"""The key where none is given: everybody can look for it."""

UNIT = 128  # samples of the pattern along a frame's shorter side
PERIOD = 2 * UNIT  # after which it repeats
_BAND = (10.0, 32.0)  # cycles per shorter side
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709

# Strength of a pixel in levels of 255: at least, per level of contrast around it, at most; and of a whole frame (RMS).
_LEAST, _PER_CONTRAST, _MOST, _FRAME = 1.2, 0.12, 4.0, 2.3
_AROUND = 1 / 64  # of the shorter side: the scale of "around"


@dataclasses.dataclass(frozen=True)
class Watermark:
    """Marks frames.

    Attributes:
      key: who does not know it can neither find the mark nor make it.
    """

    key: str = dataclasses.field(default=PUBLIC_KEY, repr=False)

    def __post_init__(self):
        if not self.key:
            raise ValueError("the watermark's key is empty: leave it out for the public one")

    def marked(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """The frame with the mark, which changes it by at most 2.3 levels of 255 (root mean square)."""
        height, width = image.shape[:2]
        change = _strength(image @ LUMA) * pattern_of(self.key, height, width)
        change *= _FRAME / max(_FRAME, float(np.sqrt(np.mean(change**2))))
        return np.clip(np.rint(image + change[..., None]), 0, 255).astype(np.uint8)

    def facts(self) -> dict[str, Any]:
        """For a sidecar; the key stays out of it."""
        return {"method": "spread spectrum, 1", "key": "public" if self.key == PUBLIC_KEY else "private"}


@functools.cache
def frequencies() -> Float[np.ndarray, "rows columns"]:
    """Cycles per unit of `np.fft.rfft2` of a plane of [PERIOD, PERIOD] samples."""
    rows, columns = np.fft.fftfreq(PERIOD, 1 / UNIT), np.fft.rfftfreq(PERIOD, 1 / UNIT)
    return np.hypot(rows[:, None], columns)


@functools.cache
def band() -> Bool[np.ndarray, "rows columns"]:
    """Which of `frequencies` the pattern has."""
    return (frequencies() >= _BAND[0]) & (frequencies() <= _BAND[1])


@functools.lru_cache(maxsize=4)
def pattern_spectrum(key: str) -> Complex[np.ndarray, "rows columns"]:
    """`np.fft.rfft2` of a period of the pattern: of Gaussian noise with a variance of 1, the band alone.

    The bits are SHAKE-256 of the key: the same with every version of NumPy, and no key can be made for a given pattern.
    """
    bits = np.frombuffer(hashlib.shake_256(key.encode()).digest(8 * PERIOD**2), "<u4")
    first, second = (bits.reshape(2, PERIOD, PERIOD) + 0.5) / 2.0**32
    noise = np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)  # Box and Muller, 1958
    return (np.fft.rfft2(noise) * band()).astype(np.complex64)


@functools.lru_cache(maxsize=4)
def pattern_of(key: str, height: int, width: int) -> Float[np.ndarray, "{height} {width}"]:
    """The pattern over frames of a size, from the upper left corner on, with a root mean square of 1."""
    samples = UNIT / min(height, width)  # for each pixel
    period = np.fft.irfft2(pattern_spectrum(key), s=(PERIOD, PERIOD)).astype(np.float32)
    shown = height * samples, width * samples
    plane = np.tile(period, [int(np.ceil(side / PERIOD)) for side in shown])
    pixels = resized(plane, height, width, box=(0.0, 0.0, shown[1], shown[0]))
    return pixels / max(1e-3, float(np.sqrt(np.mean(pixels**2))))  # frames of few pixels show nothing of it


def resized(
    plane: Float[np.ndarray, "old_height old_width"],
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> Float[np.ndarray, "{height} {width}"]:
    """A plane, or its part in `box` (left, top, right, bottom), at another size; low-pass where that is smaller."""
    picture = Image.fromarray(np.asarray(plane, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _strength(luma: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    scale = max(1.0, _AROUND * min(luma.shape))
    mean, square = (scipy.ndimage.gaussian_filter(values, scale) for values in (luma, luma**2))
    contrast = np.sqrt(np.maximum(square - mean**2, 0))
    # An edge hides nothing in the even surfaces beside it.
    contrast = scipy.ndimage.minimum_filter(contrast, 1 + 2 * round(2 * scale))
    return np.clip(_LEAST + _PER_CONTRAST * contrast, _LEAST, _MOST)
