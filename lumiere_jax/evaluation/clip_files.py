"""Clips on disk as an evaluation sees them: the central frames, at one rate and size."""

import os
import pathlib

import numpy as np
from jaxtyping import Float

from lumiere_jax.data.clip_sampling import center_crop_resize, frame_indices, sample_times
from lumiere_jax.data.source_videos import EXTENSIONS
from lumiere_jax.data.video_io import VideoError, decode_video, to_float


def find_clips(directory: str | os.PathLike[str], pattern: str = "*", most: int | None = None) -> list[pathlib.Path]:
    """The videos below a directory, sorted by name.

    Args:
      directory: searched with its sub-directories; hidden files are left out.
      pattern: of their names.
      most: so many, evenly spaced among all; None: all.

    Raises:
      FileNotFoundError: there is none.
      ValueError: `most` is below 1.
    """
    if most is not None and most < 1:
        raise ValueError(f"clips={most}: give at least 1")
    root = pathlib.Path(directory)
    found = sorted(
        file
        for file in root.rglob(pattern)
        if file.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in file.relative_to(root).parts)
    )
    if not found:
        raise FileNotFoundError(f"{directory} holds no video ({', '.join(EXTENSIONS)}) with a name like {pattern!r}")
    if most is None or most >= len(found):
        return found
    return [found[number * len(found) // most] for number in range(most)]


def read_clip(
    file: str | os.PathLike[str],
    *,
    frames: int | None = None,
    fps: float | int | None = None,
    size: tuple[int, int] | None = None,
) -> Float[np.ndarray, "frames height width 3"]:
    """The central frames of a clip, in [-1, 1].

    Args:
      file: a video.
      frames: how many; None: all that there are.
      fps: chosen by time stamp; None: one frame after the other.
      size: (height, width) of the largest central part of that shape, scaled down; None: as it is.

    Raises:
      VideoError: it cannot be read, is too short, or smaller than `size`: nothing is stretched.
    """
    pixels, times = decode_video(file)
    if fps is not None:
        most = int((times[-1] - times[0]) * fps + 1e-6) + 1
        count = most if frames is None else frames
        start = times[0] + max(0.0, (times[-1] - times[0] - (count - 1) / fps) / 2)
        pixels = pixels[frame_indices(times, sample_times(count, fps, start), os.fspath(file))]
    elif frames is not None:
        if len(pixels) < frames:
            raise VideoError(f"{file}: too short, it has {len(pixels)} frames and {frames} are measured")
        first = (len(pixels) - frames) // 2
        pixels = pixels[first : first + frames]
    return to_float(pixels if size is None else center_crop_resize(pixels, size, os.fspath(file)))
