"""Which frames of a video make a clip, chosen by time stamp, and which part of each frame.

A clip of 80 frames at 16 fps lasts five seconds in any source: frames are picked by time, never by count, so
motion keeps its speed whatever the source's rate.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from lumiere_jax.data.video_io import VideoError

Frame = TypeVar("Frame")

# Time stamps are stored in whole ticks (milliseconds in mkv): closer than this counts as equal. Seconds.
_TOLERANCE = 1e-6


def sample_times(frames: int, fps: float | int, start: float | int = 0.0) -> Float[np.ndarray, " frames"]:
    """Times in seconds of `frames` samples at `fps`, the first at `start`."""
    if frames < 1 or not fps > 0:
        raise ValueError(f"needs frames >= 1 and fps > 0, got frames={frames}, fps={fps}")
    return start + np.arange(frames) / fps


def sample_by_time(timed_frames: Iterable[tuple[float, Frame]], times: Iterable[float]) -> Iterator[Frame]:
    """Yields for each time the frame nearest to it, the earlier of two equally near.

    Reads no further than one frame past the time asked for. A source slower than the samples repeats frames.
    Stops early where the frames end: the last one serves times up to half a frame behind it.

    Args:
        timed_frames: (time in seconds, frame), times increasing.
        times: increasing, in seconds; may be endless.
    """
    timed_frames = iter(timed_frames)
    current = next(timed_frames, None)
    following = next(timed_frames, None)
    half_frame = 0.0
    for time in times:
        while following is not None and time - current[0] > following[0] - time + _TOLERANCE:
            half_frame = (following[0] - current[0]) / 2
            current, following = following, next(timed_frames, None)
        if current is None or (following is None and time > current[0] + half_frame + _TOLERANCE):
            return
        yield current[1]


def frame_indices(
    time_stamps: Float[np.ndarray, " stored"], times: Float[np.ndarray, " frames"], name: str = "video"
) -> Int[np.ndarray, " frames"]:
    """Index of the frame nearest to each time.

    Raises:
        VideoError: the video ends before the last time; clips are never stretched.
    """
    indices = list(sample_by_time(zip(time_stamps, itertools.count(), strict=False), times))
    if len(indices) < len(times):
        raise too_short(name, float(time_stamps[-1]) if len(time_stamps) else 0.0, float(times[-1]))
    return np.array(indices, np.int64)


def too_short(name: str, last: float, needed: float) -> VideoError:
    """The error for a video whose last frame, at `last` seconds, comes before the last sample at `needed`."""
    return VideoError(f"{name}: too short, its last frame is at {last:.3f} s and the clip needs one at {needed:.3f} s")


def center_crop_resize(
    frames: UInt8[np.ndarray, "frames height width 3"], size: int | tuple[int, int], name: str = "video"
) -> UInt8[np.ndarray, "frames new_height new_width 3"]:
    """The largest central part of the wanted shape, scaled down; the aspect is kept.

    Whole factors average blocks of pixels; others use a triangle filter, wide enough not to alias.

    Args:
        frames: RGB.
        size: side of a square, or (height, width).
        name: what errors call the video.

    Raises:
        VideoError: the frames are smaller than the result; nothing is scaled up.
    """
    return _crop_resize(frames, size, (0.5, 0.5), name)


def random_crop_resize(
    frames: UInt8[np.ndarray, "frames height width 3"],
    size: int | tuple[int, int],
    rng: np.random.Generator,
    name: str = "video",
) -> UInt8[np.ndarray, "frames new_height new_width 3"]:
    """As `center_crop_resize`, the part at a random place, the same in all frames."""
    return _crop_resize(frames, size, tuple(rng.uniform(size=2)), name)


def random_crop(
    frames: UInt8[np.ndarray, "frames height width 3"], size: int | tuple[int, int], rng: np.random.Generator
) -> UInt8[np.ndarray, "frames new_height new_width 3"]:
    """A part of the frames as it is, at a random place, the same in all of them.

    Args:
        frames: RGB, at least as large as the part.
        size: side of a square, or (height, width).
        rng: draws the place, each as likely as any other.
    """
    new_height, new_width = (size, size) if isinstance(size, int) else size
    height, width = frames.shape[1:3]
    top, left = rng.integers((height - new_height, width - new_width), endpoint=True)
    return frames[:, top : top + new_height, left : left + new_width]


def _crop_resize(
    frames: np.ndarray, size: int | tuple[int, int], position: tuple[float, float], name: str
) -> np.ndarray:
    new_height, new_width = (size, size) if isinstance(size, int) else size
    if min(new_height, new_width) < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    height, width = frames.shape[1:3]
    factor = min(height / new_height, width / new_width)  # source pixels per new pixel
    if factor < 1:
        raise VideoError(
            f"{name}: frames are {height}x{width}, smaller than the {new_height}x{new_width} asked for; choose "
            "a smaller size (videos are never scaled up)"
        )
    if (height, width) == (new_height, new_width):
        return frames
    box_height, box_width = new_height * factor, new_width * factor
    # Whole pixels, so that a crop without scaling copies pixels instead of mixing neighbours.
    top, left = int(position[0] * (height - box_height)), int(position[1] * (width - box_width))
    box = (left, top, left + box_width, top + box_height)
    images = [Image.fromarray(frame) for frame in frames]
    if factor.is_integer():
        whole_box = tuple(int(edge) for edge in box)
        resized = [image.reduce(int(factor), whole_box) for image in images]
    else:
        # Pillow's BOX gives each pixel to one block, which aliases; its BILINEAR is a triangle of the right width.
        resized = [image.resize((new_width, new_height), Image.Resampling.BILINEAR, box) for image in images]
    return np.stack([np.asarray(image) for image in resized])
