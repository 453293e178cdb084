"""The largest object of a `moving_shapes` clip, read by classical image processing: where, how large, which colour.

Backgrounds are neutral (gray) and objects are colourful: foreground is what differs from the background, and its
colour is its hue. Lengths are in frame widths, areas in parts of the frame.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float

from lumiere_jax.data import shapes_scene

_MAX_SIZE = 64  # Larger frames are reduced to at most twice this many pixels: speed, and less noise.
_BLUR = 0.5  # Pixels, against the noise of generated clips.
_MIN_CHROMA = 0.12  # Distance from gray, of [0, 1], of an object's pixel; the palette's colours have 0.43 and more.
_MIN_AREA = 0.002  # Of an object; the smallest in the data, a shrunken circle, has 0.004.


class SeenObject(NamedTuple):
    """What is seen of an object of a clip.

    Attributes:
      matte: how much of each pixel it covers, in [0, 1]; large frames are reduced.
      track: its centroid (x, y) and the radius of a circle of its area; NaN in frames where it is not seen.
      colour: one of `shapes_scene.COLOURS`, the clip's.
      colours: of each frame by itself; "" where nothing colourful is in it.
    """

    matte: Float[np.ndarray, "frames size size"]
    track: Float[np.ndarray, "frames 3"]
    colour: str
    colours: list[str]

    @property
    def is_seen(self) -> Bool[np.ndarray, " frames"]:
        """In which frames it is."""
        return np.isfinite(self.track[:, 0])


def seen_object(video: Float[np.ndarray, "frames height width 3"], colour: str | None = None) -> SeenObject:
    """Reads the largest object of a clip in [-1, 1].

    Args:
      video: of square frames.
      colour: one of `shapes_scene.COLOURS`: the largest object of that colour; None: whatever its colour.

    Raises:
      ValueError: frames smaller than 16 pixels or not square, or values that are not finite.
    """
    _, height, width, _ = video.shape
    if height != width or height < 16:
        raise ValueError(f"video has shape {video.shape}: needs square frames of >= 16 pixels")
    if not np.isfinite(video).all():
        raise ValueError("video has NaN or infinite values: the model or the sampler diverged")
    chroma = _chroma(_reduced(np.clip((video.astype(np.float32) + 1) / 2, 0, 1)))
    strength = np.linalg.norm(chroma, axis=-1)
    strength[strength < _MIN_CHROMA] = 0
    names, hues = list(shapes_scene.COLOURS), _palette_hues()
    nearest = (chroma @ hues.T).argmax(axis=-1)
    weights = np.stack(
        [
            np.bincount(of_frame.ravel(), strong.ravel(), minlength=len(names))
            for of_frame, strong in zip(nearest, strength, strict=True)
        ]
    )
    colours = [names[row.argmax()] if row.any() else "" for row in weights]
    chosen = int(weights.sum(0).argmax()) if colour is None else names.index(colour)
    shown = (nearest == chosen) & (strength > 0)
    if not shown.any():
        return SeenObject(np.zeros_like(strength), np.full((len(video), 3), np.nan), names[chosen], colours)
    # The full colour as it is shown, which may be paler than in the palette: edge pixels are below it.
    full = np.percentile(strength[shown], 80)
    # A pixel that an object covers in part has that part of the object's chroma, as the background has none.
    matte = np.clip(chroma @ hues[chosen] / full, 0, 1)
    matte = matte * _largest_component(shown & (matte > 0.35))
    track, is_seen = np.full((len(video), 3), np.nan), matte.mean(axis=(1, 2)) > _MIN_AREA
    track[is_seen] = track_of(matte[is_seen])
    return SeenObject(matte, track, names[chosen], colours)


def track_of(matte: Float[np.ndarray, "frames size size"]) -> Float[np.ndarray, "frames 3"]:
    """The centroid (x, y) and the radius of a circle of the object's area, in frames that all have one."""
    size = matte.shape[1]
    centres = (np.arange(size) + 0.5) / size
    mass = matte.sum(axis=(1, 2))
    x = matte.sum(axis=1) @ centres / mass
    y = matte.sum(axis=2) @ centres / mass
    return np.stack([x, y, np.sqrt(mass / np.pi) / size], axis=-1)


def _reduced(video: Float[np.ndarray, "frames size size 3"]) -> Float[np.ndarray, "frames reduced reduced 3"]:
    """Averages blocks of pixels in large frames."""
    frames, size = video.shape[:2]
    block = max(1, size // _MAX_SIZE)
    reduced = size // block
    video = video[:, : reduced * block, : reduced * block]
    return video.reshape(frames, reduced, block, reduced, block, 3).mean(axis=(2, 4))


def _chroma(video: Float[np.ndarray, "frames size size 3"]) -> Float[np.ndarray, "frames size size 3"]:
    """What is not gray, nor the background's tint."""
    chroma = video - video.mean(axis=-1, keepdims=True)
    return scipy.ndimage.gaussian_filter(chroma - _background(chroma), (0, _BLUR, _BLUR, 0))


def _background(chroma: Float[np.ndarray, "frames size size 3"]) -> Float[np.ndarray, "3"]:
    """The median along the frames' borders, where objects hardly ever are; nearly 0 unless the clip is tinted."""
    border = np.concatenate([chroma[:, :, 0], chroma[:, :, -1], chroma[:, 0], chroma[:, -1]], axis=1)
    return np.median(border, axis=(0, 1))


@functools.cache
def _palette_hues() -> Float[np.ndarray, "colours 3"]:
    palette = np.array(list(shapes_scene.COLOURS.values()), np.float32)
    chroma = palette - palette.mean(axis=-1, keepdims=True)
    return chroma / np.linalg.norm(chroma, axis=-1, keepdims=True)


def _largest_component(mask: Bool[np.ndarray, "frames size size"]) -> Bool[np.ndarray, "frames size size"]:
    """The largest connected part of each frame, with the pixels next to it, which it covers in part."""
    within_frame = scipy.ndimage.generate_binary_structure(2, 2)[None]
    labels, count = scipy.ndimage.label(mask, np.pad(within_frame, ((1, 1), (0, 0), (0, 0))))
    pixels = np.bincount(labels.ravel(), minlength=count + 1)
    pixels[0] = 0
    largest = pixels[labels].max(axis=(1, 2), keepdims=True)
    first = np.where(pixels[labels] == largest, labels, count + 1).min(axis=(1, 2), keepdims=True)
    return scipy.ndimage.binary_dilation((labels == first) & mask, within_frame)
