"""One record to one clip: decode, choose frames by time stamp, crop and scale; decoded frames may be kept."""

import contextlib
import io
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from lumiere_jax.data.clip_sampling import Frame, center_crop_resize, sample_by_time, sample_times, too_short
from lumiere_jax.data.video_io import VideoError, frame_to_rgb, open_video

Record = Mapping[str, Any]
"""`caption`, `fps`, and either `clip` (bytes of a video file) or `frames` (bytes of a PNG or JPEG each)."""

StoredFrame = av.VideoFrame | bytes


class ClipLoader:
    """Records to uint8 clips; keeps decoded ones up to a number of bytes."""

    def __init__(self, fps: float | int, size: int | tuple[int, int], cache_bytes: int):
        self._fps, self._size = fps, size
        self._cache: dict[tuple[int, int], tuple[float | None, list[tuple[float, np.ndarray]]]] = {}
        self._free_bytes = cache_bytes
        self._lock = threading.Lock()

    def load(
        self, key: tuple[int, int], record: Record, frames: int, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """A clip of `frames` frames from a random position in the record's video.

        Args:
            key: number of the data set and of the record in it: what its decoded frames are kept under.
            record: the video.
            frames: how many frames; 1 for an image.
            rng: draws the position.

        Raises:
            VideoError: a video that is undecodable, too short or smaller than the clip.
        """
        name = f"record {key[1]} ({as_text(record['source'])})" if "source" in record else f"record {key[1]}"
        stored_fps, offsets = float(record["fps"]), sample_times(frames, self._fps)
        if key in self._cache:
            duration, images = self._cache[key]
            return np.stack(_choose(images, duration, stored_fps, offsets, rng, name))
        reformatter = VideoReformatter()
        with _stored_frames(record, name) as (duration, stored):
            if self._free_bytes <= 0:
                chosen = _choose(stored, duration, stored_fps, offsets, rng, name)
                return np.stack([self._to_image(frame, reformatter, name) for frame in chosen])
            images = [(time, self._to_image(frame, reformatter, name)) for time, frame in stored]
            self._keep(key, duration, images)
            return np.stack(_choose(images, duration, stored_fps, offsets, rng, name))

    def _keep(self, key: tuple[int, int], duration: float | None, images: list[tuple[float, np.ndarray]]) -> None:
        size = sum(image.nbytes for _, image in images)
        with self._lock:
            if key in self._cache:
                return
            if size <= self._free_bytes:
                self._free_bytes -= size
                self._cache[key] = (duration, images)
            else:  # full: from now on only the frames that a clip shows are decoded
                self._free_bytes = 0

    def _to_image(
        self, frame: StoredFrame, reformatter: VideoReformatter, name: str
    ) -> UInt8[np.ndarray, "height width 3"]:
        image = _decode_image(frame, name) if isinstance(frame, bytes) else frame_to_rgb(frame, reformatter)
        return center_crop_resize(image[None], self._size, name)[0]


@contextlib.contextmanager
def _stored_frames(record: Record, name: str) -> Iterator[tuple[float | None, Iterable[tuple[float, StoredFrame]]]]:
    """Duration in seconds by the header, and the frames with their times."""
    if "frames" in record:
        fps = float(record["fps"])
        yield len(record["frames"]) / fps, ((index / fps, frame) for index, frame in enumerate(record["frames"]))
    else:
        with open_video(_as_bytes(record["clip"]), name=name) as video:
            yield video.duration, video.frames


def _choose(
    timed_frames: Iterable[tuple[float, Frame]],
    duration: float | int | None,
    stored_fps: float,
    offsets: np.ndarray,
    rng: np.random.Generator,
    name: str,
) -> list[Frame]:
    """The frames of a clip that starts on a random one of the stored frames."""
    if duration is None:
        raise VideoError(f"{name}: its header gives no duration")
    last_frame = round(duration * stored_fps) - 1
    # The last sample may lie up to half a frame behind the last frame, as in sample_by_time.
    last_start = int(np.floor(last_frame + 0.5 - offsets[-1] * stored_fps + 1e-6))
    if last_start < 0:
        raise too_short(name, last_frame / stored_fps, float(offsets[-1]))
    times = int(rng.integers(last_start, endpoint=True)) / stored_fps + offsets
    chosen = list(sample_by_time(timed_frames, times))
    if len(chosen) < len(times):
        raise VideoError(f"{name}: has fewer frames than its duration and fps={stored_fps} say")
    return chosen


def _decode_image(encoded: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise VideoError(f"{name}: a frame cannot be decoded ({error})") from error


def as_text(value: str | bytes) -> str:
    """A text of a record, which array_record gives as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _as_bytes(value: bytes | np.ndarray) -> bytes:
    return value if isinstance(value, bytes) else value.item()
