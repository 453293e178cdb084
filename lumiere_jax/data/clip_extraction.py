"""One raw video to clips of one length, rate and size: what every way of preparing data does with a video.

Frames are chosen by time stamp, no clip crosses a cut, and what is left out is said with its reason.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator

import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from lumiere_jax.data.clip_sampling import center_crop_resize, sample_by_time
from lumiere_jax.data.scene_cuts import TimedFrame, split_scenes
from lumiere_jax.data.video_io import VideoError, frame_to_rgb, open_video


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """What clips are cut.

    Attributes:
        frames: frames per clip, >= 1.
        fps: frames per second of the clips, > 0, whatever the rate of the videos. A slower video repeats frames.
        size: side of the square frames in pixels, even; the central part of each frame, scaled down, never up.
        scene_cuts: whether to find cuts and let no clip cross one.

    Raises:
        ValueError: values out of range.
    """

    frames: int = 80
    fps: float | int = 16
    size: int = 128
    scene_cuts: bool = True

    def __post_init__(self):
        if self.frames < 1 or not 0 < self.fps < 1000 or self.size < 1:
            raise ValueError(
                "needs frames and size of at least 1, and fps above 0 and below 1000; got "
                f"frames={self.frames}, fps={self.fps}, size={self.size}"
            )
        if self.size % 2:
            raise ValueError(f"size must be even, for H.264's chroma; got size={self.size}")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip and where it comes from.

    Attributes:
        images: RGB.
        start: seconds into the video.
        end: likewise; `start + frames / fps`.
        source_fps: the video's average frame rate by its header; 0 where it does not say.
        source_height: of the upright frame, pixels.
        source_width: likewise.
    """

    images: UInt8[np.ndarray, "frames size size 3"]
    start: float
    end: float
    source_fps: float
    source_height: int
    source_width: int


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """The rest of a scene, shorter than a clip.

    Attributes:
        start: seconds into the video.
        end: likewise, the time of the last frame that a clip would have had.
        frames: how many it would have had.
    """

    start: float
    end: float
    frames: int


def extract_clips(path: str | os.PathLike, settings: ClipSettings, *, name: str) -> Iterator[Clip | LeftOut]:
    """Cuts a video into clips, one behind the other from the start of each scene.

    Holds one clip in memory, however long the video.

    Args:
        path: the video.
        settings: of the clips.
        name: what errors call the video.

    Yields:
        Clips, and the parts between them that are shorter than a clip, in the order of time.

    Raises:
        VideoError: the file cannot be read or decoded to its end, is smaller than `size`, or gives no clip. Clips
            may have come before: a video is good as a whole or not at all, and the caller drops them.
    """
    if not os.path.isfile(path):
        raise VideoError(f"{name}: is no longer there")
    clips, scenes, longest = 0, 0, 0
    reformatter = VideoReformatter()
    with open_video(path, name=name) as video:
        for scene in split_scenes(video.frames) if settings.scene_cuts else [video.frames]:
            scenes += 1
            for part in _cut_scene(scene, settings, video.fps or 0.0, reformatter, name):
                clips += isinstance(part, Clip)
                if isinstance(part, LeftOut):
                    longest = max(longest, part.frames)
                yield part
    if not clips:
        of_scenes = f", the longest of its {scenes} scenes" if scenes > 1 else ""
        raise VideoError(
            f"{name}: too short{of_scenes}, gives {longest} of the {settings.frames} frames of a clip at "
            f"{settings.fps:g} fps"
        )


def _cut_scene(
    scene: Iterator[TimedFrame],
    settings: ClipSettings,
    source_fps: float,
    reformatter: VideoReformatter,
    name: str,
) -> Iterator[Clip | LeftOut]:
    first_time, first = next(scene)
    times = (first_time + index / settings.fps for index in itertools.count())
    images: list[np.ndarray] = []
    clips = 0

    def position(frames: int) -> float:
        return first_time + (clips * settings.frames + frames) / settings.fps

    frames = ((time, (time, frame)) for time, frame in itertools.chain([(first_time, first)], scene))
    for time, frame in sample_by_time(frames, times):
        image = frame_to_rgb(frame, reformatter)
        images.append(center_crop_resize(image[None], settings.size, name)[0])
        if len(images) == settings.frames:
            yield Clip(np.stack(images), position(0), position(settings.frames), source_fps, *image.shape[:2])
            images.clear()
            clips += 1
        last_time = time
    if images:
        yield LeftOut(position(0), last_time, len(images))
