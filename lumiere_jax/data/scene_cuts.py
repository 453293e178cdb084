"""Where a video cuts from one scene to the next, found while it is decoded.

PySceneDetect's AdaptiveDetector: a frame starts a scene where it differs from the one before by far more than its
neighbours do from theirs, so that fast motion is no cut. Hard cuts only: fades and dissolves pass. Brightness alone is
compared: the hue of gray is noise, and makes cuts all over black-and-white and dark videos.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

# Width in pixels at which frames are compared, PySceneDetect's own choice.
_WIDTH = 256
# Frames on either side that a frame is compared with; PySceneDetect's default.
_WINDOW = 2

TimedFrame = tuple[float, av.VideoFrame]


def split_scenes(timed_frames: Iterable[TimedFrame]) -> Iterator[Iterator[TimedFrame]]:
    """Splits the frames of a video at its cuts.

    Frames are decoded as they are asked for, at most a few ahead.

    Args:
        timed_frames: (time in seconds, frame), times increasing.

    Returns:
        For each scene an iterator over its frames; one ends when the next scene is asked for.
    """
    for _, scene in itertools.groupby(_number_scenes(timed_frames), key=lambda numbered: numbered[0]):
        yield ((time, frame) for _, time, frame in scene)


def _number_scenes(timed_frames: Iterable[TimedFrame]) -> Iterator[tuple[int, float, av.VideoFrame]]:
    cv2.setNumThreads(1)  # videos are prepared side by side, one thread each
    detector = AdaptiveDetector(min_scene_len=0, window_width=_WINDOW, luma_only=True)
    timed_frames = iter(timed_frames)
    waiting: collections.deque[TimedFrame] = collections.deque()
    images = _detector_images(timed_frames, waiting)
    scene = 0
    # The detector judges a frame when it has seen the window behind it. Repeated at both ends, the first and the
    # last frame are judged too.
    for position, image in enumerate(_repeat_ends(images, _WINDOW)):
        # The position alone counts as time: what matters is which frames are neighbours.
        cuts = detector.process_frame(FrameTimecode(position, fps=1.0), image)
        judged = position - 2 * _WINDOW  # among the frames, without those that are repeated in front
        if judged >= 0:
            scene += bool(cuts) and judged > 0
            yield scene, *waiting.popleft()


def _detector_images(
    timed_frames: Iterator[TimedFrame], waiting: collections.deque[TimedFrame]
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Small BGR images for the detector; keeps the frames in `waiting`."""
    reformatter = VideoReformatter()
    size = None
    for time, frame in timed_frames:
        if size is None:  # kept, as the detector cannot compare images of two sizes
            width = min(_WIDTH, frame.width)
            size = {"width": width, "height": max(1, round(frame.height * width / frame.width))}
        waiting.append((time, frame))
        small = reformatter.reformat(frame, format="bgr24", interpolation=Interpolation.AREA, threads=1, **size)
        yield small.to_ndarray()


def _repeat_ends(images: Iterator[np.ndarray], times: int) -> Iterator[np.ndarray]:
    """The images, the first and the last of them `times` times more."""
    last = next(images, None)
    if last is None:
        return
    yield from itertools.repeat(last, times + 1)
    for last in images:
        yield last
    yield from itertools.repeat(last, times)
