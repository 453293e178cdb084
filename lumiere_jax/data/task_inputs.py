"""Images, videos and masks that people give to be animated, completed or edited, read to the size of a model's clips.

An image is upright by its EXIF tag; CMYK, grey and 16 bits become RGB of 8 bits; where it is transparent it is white.
A mask is white, or transparent, where the model makes new pixels. A video is read from its start, its frames by time;
what is longer than a clip is not used.
"""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from lumiere_jax.data.area_resizing import resized_image, resized_region
from lumiere_jax.data.clip_sampling import sample_by_time
from lumiere_jax.data.video_io import frame_to_rgb, open_video, to_float

Frame = TypeVar("Frame")

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file counts as an image rather than a video, by its name."""
    return pathlib.Path(path).suffix.lower() in _IMAGES


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "height width 3"]:
    """An image as RGB.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no image, animated, or of floating point numbers.
    """
    with _opened(path) as picture:
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        return np.asarray(_eight_bits(path, picture).convert("RGB"))


def read_mask(path: str | os.PathLike[str]) -> Float[np.ndarray, "height width"]:
    """A mask: 1 where the model makes new pixels, which is where an image is white, or transparent if it has alpha.

    Raises:
      FileNotFoundError, ValueError: as `read_image`.
    """
    with _opened(path) as picture:
        if "A" in picture.getbands() or "transparency" in picture.info:
            return (np.asarray(picture.convert("RGBA"))[..., 3] < 128).astype(np.float32)
        return _white(np.asarray(_eight_bits(path, picture).convert("RGB")))


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    try:
        file = Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that can be read") from error
    with file as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise ValueError(f"{path} is animated: give one image, or a video file")
        yield ImageOps.exif_transpose(picture)


def _eight_bits(path: str | os.PathLike[str], picture: Image.Image) -> Image.Image:
    """Pillow would cut 16 bits off at 255."""
    if picture.mode == "F":
        raise ValueError(f"{path} holds floating point numbers: give an image of 8 or 16 bits")
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).astype(np.float64) / 257.0).round().clip(0, 255).astype(np.uint8))
    return picture


def _white(image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    return (image.mean(-1) >= 128).astype(np.float32)


def image_for(path: str | os.PathLike[str], size: tuple[int, int]) -> Float[np.ndarray, "height width 3"]:
    """An image in [-1, 1], brought to a size (height, width).

    Raises:
      FileNotFoundError, ValueError: as `read_image`.
    """
    return resized_image(to_float(read_image(path)), *size)


def video_for(
    path: str | os.PathLike[str], *, frames: int, fps: float | int, size: tuple[int, int]
) -> Float[np.ndarray, "frames height width 3"]:
    """The first frames of a video in [-1, 1], brought to a size.

    Args:
      path: of the video; another frame rate than `fps` has frames left out or repeated.
      frames: how many.
      fps: frames per second.
      size: (height, width) in pixels.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it cannot be decoded, or is shorter.
    """
    return np.stack(_frames_of(path, lambda image: resized_image(to_float(image), *size), frames, fps))


def mask_for(
    path: str | os.PathLike[str], *, frames: int, fps: float | int, size: tuple[int, int], of: tuple[int, int]
) -> Float[np.ndarray, "*frames height width"]:
    """A mask, an image or a video, that belongs to an image or a video.

    Args:
      path: of the mask.
      frames, fps: of a video.
      size: (height, width) to be brought to; what covers a white pixel is white.
      of: (height, width) that the file must have: those of what it belongs to.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it has another size, or as `read_image` and `video_for`.
    """
    found = frame_size(path)
    if found != of:
        raise ValueError(f"the mask {path} is {found[1]}x{found[0]}, but what it belongs to {of[1]}x{of[0]}")
    if is_image(path):
        return resized_region(read_mask(path), *size)
    return np.stack(_frames_of(path, lambda image: resized_region(_white(image), *size), frames, fps))


def frame_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image or a video, upright.

    Raises:
      FileNotFoundError, ValueError: as `read_image` and `video_for`.
    """
    if is_image(path):
        with _opened(path) as picture:
            return picture.size[::-1]
    with open_video(path, name=str(path)) as video:
        _, frame = next(iter(video.frames))
        return frame_to_rgb(frame).shape[:2]


def _frames_of(
    path: str | os.PathLike[str], read: Callable[[np.ndarray], Frame], frames: int, fps: float | int
) -> list[Frame]:
    """`read` of the first frames of a video, one at a time: a large video is never whole in memory."""
    times = (index / fps for index in itertools.count())
    with open_video(path, name=str(path)) as video:
        sampled = sample_by_time(((time, frame) for time, frame in video.frames), times)
        found = [read(frame_to_rgb(frame)) for frame in itertools.islice(sampled, frames)]
    if len(found) < frames:
        raise ValueError(
            f"{path} gives {len(found)} frames at {fps:g} per second, and {frames} are asked for: give a longer video, "
            f"or --frames={len(found)}"
        )
    return found
