"""Conditional generation (paper section 4.2): which part of a clip is given, and which the model makes.

Beside the noisy clip J the network sees the masked clip C and the mask M, ⟨J, C, M⟩ of 3 + 3 + 1 channels. M is 1 where
C is given. A `Condition` holds both; the functions here make one for each application. They are plain arrays: no
network is asked.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lumiere_jax.data.area_resizing import Region, resized_image, resized_region

CHANNELS = 4  # of C and M

Image = Float[np.ndarray, "height width 3"]
Video = Float[np.ndarray, "frames height width 3"]


class Condition(NamedTuple):
    """What of a clip is given."""

    video: Float[np.ndarray | Array, "*batch frames height width 3"]  # in [-1, 1]; 0, a blank, where it is not given
    mask: Float[np.ndarray | Array, "*batch frames height width 1"]  # 1 where it is given, 0 where the model makes it

    def channels(self) -> Float[np.ndarray | Array, "*batch frames height width 4"]:
        """C and M, as the network gets them beside the noisy clip."""
        return jnp.concatenate([self.video * self.mask, self.mask], axis=-1)

    def paste(
        self, generated: Float[np.ndarray | Array, "*batch height width 3"]
    ) -> Float[np.ndarray | Array, "*batch height width 3"]:
        """A clip, or a frame of one, with what is given put in its place, exactly."""
        return self.mask * self.video + (1.0 - self.mask) * generated


def for_each(
    videos: Float[np.ndarray, "*batch frames height width channels"], clips: int
) -> Float[np.ndarray, "clips frames height width channels"]:
    """What is given of each of so many clips, where it is one for all of them, or one for each.

    Raises:
      ValueError: there is one for each of another number.
    """
    if videos.ndim == 4:
        return np.broadcast_to(videos, (clips, *videos.shape))
    if len(videos) != clips:
        raise ValueError(f"{len(videos)} clips are given, but {clips} prompts: give one for each, or one for all")
    return videos


def nothing_given(frames: int, height: int, width: int) -> Condition:
    """Plain text-to-video."""
    return Condition(np.zeros((frames, height, width, 3), np.float32), np.zeros((frames, height, width, 1), np.float32))


def keyframes(images: Mapping[int, Image], frames: int) -> Condition:
    """Whole frames are given; image-to-video where that is frame 0 alone.

    Args:
      images: by the number of the frame; all of one size, in [-1, 1].
      frames: of the clip.

    Raises:
      ValueError: no image, one of another size or past the end of the clip, or one for every frame.
    """
    if not images:
        raise ValueError("keyframes: give at least one image")
    height, width = next(iter(images.values())).shape[:2]
    condition = nothing_given(frames, height, width)
    for index, image in images.items():
        if not 0 <= index < frames:
            raise ValueError(f"keyframe {index}: the clip has frames 0 to {frames - 1}")
        if image.shape[:2] != (height, width):
            raise ValueError(f"keyframe {index} is {_size(image.shape)}, the others are {_size((height, width))}")
        condition.video[index], condition.mask[index] = image, 1.0
    return _checked(condition)


def image_to_video(image: Image, frames: int) -> Condition:
    """The first frame is given.

    Args:
      image: in [-1, 1].
      frames: of the clip, at least 2.

    Raises:
      ValueError: there is no frame left to make.
    """
    return keyframes({0: image}, frames)


def extension(video: Video, frames: int, *, first: int = 0) -> Condition:
    """The frames of a shorter clip are given: it is continued, and led up to where `first` is not 0.

    Args:
      video: in [-1, 1].
      frames: of the longer clip.
      first: its frame at which the given ones begin.

    Raises:
      ValueError: they do not lie inside of it, or nothing is left to make.
    """
    if first < 0 or first + len(video) > frames:
        raise ValueError(f"first={first}: {len(video)} given frames from there on do not fit into {frames}")
    return keyframes({first + index: image for index, image in enumerate(video)}, frames)


def inpainting(video: Video, hole: Region) -> Condition:
    """All but a hole is given.

    Args:
      video: in [-1, 1].
      hole: above 0 where the model makes new pixels; for all frames, or one for each.

    Raises:
      ValueError: the hole has another size than the video, or is nowhere, or everywhere.
    """
    return _checked(Condition(video, 1.0 - _region("the mask", hole, video.shape[:3])))


def outpainting(video: Video, *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> Condition:
    """The clip lies inside of a larger one.

    Args:
      video: in [-1, 1].
      top, bottom, left, right: pixels of height and width to be added.

    Raises:
      ValueError: one of them is negative, or all are 0.
    """
    borders = {"top": top, "bottom": bottom, "left": left, "right": right}
    for side, pixels in borders.items():
        if pixels < 0:
            raise ValueError(f"outpainting: {side}={pixels} must not be negative")
    padding = ((0, 0), (top, bottom), (left, right), (0, 0))
    given = np.ones((*video.shape[:3], 1), np.float32)
    return _checked(Condition(np.pad(video, padding), np.pad(given, padding)))


def cinemagraph(image: Image, animated: Region, frames: int) -> Condition:
    """A still image of which one region moves: the first frame is given, and of the others all outside of the region.

    Args:
      image: in [-1, 1].
      animated: above 0 in the region.
      frames: of the clip, at least 2.

    Raises:
      ValueError: the region has another size than the image, or is nowhere, or everywhere.
    """
    video = np.repeat(image[None], frames, axis=0)
    mask = 1.0 - _region("the mask", animated, video.shape[:3])
    mask[0] = 1.0
    return _checked(Condition(video, mask))


def resized(condition: Condition, height: int, width: int) -> Condition:
    """A condition at another resolution, of which each pixel is the mean of what it covers.

    It counts as given only where all that it covers is given: nothing is made up.

    Args:
      condition: whose mask is 0 or 1.
      height, width: in pixels.

    Raises:
      ValueError: nothing is left of what was given.
    """
    hole = resized_region(1.0 - condition.mask[..., 0], height, width)
    mask = 1.0 - hole[..., None]
    if np.any(condition.mask) and not np.any(mask):
        raise ValueError(f"at {_size((height, width))} no pixel lies inside of what is given: give more of the clip")
    return Condition(resized_image(condition.video * condition.mask, height, width) * mask, mask)


def _region(what: str, region: Region, shape: tuple[int, ...]) -> Float[np.ndarray, "frames height width 1"]:
    """1 inside of a region, 0 outside, for each frame."""
    if region.shape not in (shape, shape[1:]):
        raise ValueError(f"{what} is {' x '.join(map(str, region.shape))}, but the clip {' x '.join(map(str, shape))}")
    inside = (region > 0).astype(np.float32)
    return np.broadcast_to(inside, shape)[..., None].copy()


def _checked(condition: Condition) -> Condition:
    if np.all(condition.mask):
        raise ValueError("all of the clip is given: nothing is left to make. Is the mask black, or inverted?")
    if not np.any(condition.mask):
        raise ValueError("nothing of the clip is given, which is text-to-video. Is the mask white, or inverted?")
    return condition


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
