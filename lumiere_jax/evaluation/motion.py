"""Is a clip's motion right? Measures that need no weights; on `moving_shapes` the trajectories are known.

adjacent_frame_error    how much moves at all (paper Fig. 14's measure, without windows)
jerk                    how unevenly the object moves
trajectory_error        how far it is from where its scene has it
identity_persistence    whether it stays the same object
period                  how long a motion takes that comes back, and how exactly it does

No measure alone tells a good clip: a frozen one has no jerk. docs/evaluation.md shows each on damaged clips. Not from
the paper, but for the first; lengths are in frame widths.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from lumiere_jax.data import shapes_scene
from lumiere_jax.data.shapes_scene import Scene
from lumiere_jax.evaluation import intervals
from lumiere_jax.evaluation.object_track import SeenObject, seen_object
from lumiere_jax.evaluation.seams import neighbour_mse

Video = Float[np.ndarray | Array, "frames height width 3"]

_UNLIKE, _NEARLY = 0.8, 0.05  # Of the largest error between frames of one clip.
_MIN_SAME_SIZE = 0.6  # Of the radius from frame to frame, not to count as another object.


def adjacent_frame_error(video: Video) -> float:
    """Mean squared difference of neighbouring frames, in the squared units of [-1, 1]; 0 where nothing moves.

    Raises:
      ValueError: fewer than two frames.
    """
    return float(neighbour_mse(video).mean())


def jerk(seen: SeenObject) -> float:
    """Root mean square of the object's third difference over the frames, in frame widths: 0 for even acceleration.

    It is per frame, not per second: compare clips of one rate.

    Returns:
      NaN where no four frames in a row show an object.
    """
    third = np.diff(seen.track[:, :2], n=3, axis=0)
    squared = np.square(third).sum(-1)
    known = np.isfinite(squared)
    return float(np.sqrt(squared[known].mean())) if known.any() else float("nan")


def trajectory_error(seen: SeenObject, scene: Scene, fps: float | int, *, anywhere: bool = False) -> float:
    """Root mean square distance between the object and where its scene has it; a frame without one counts 1.

    Args:
      seen: of the clip.
      scene: of one object.
      fps: frames per second.
      anywhere: takes the mean distance away first: a prompt does not say where an object starts.

    Raises:
      ValueError: the scene has two objects, or as `shapes_scene.trajectory`.
    """
    if len(scene.objects) != 1:
        raise ValueError("the scene has two objects, of which one alone is followed: take a scene with one")
    expected = shapes_scene.trajectory(scene, len(seen.track), fps)[0, :, :2]
    away = seen.track[:, :2] - expected
    known = np.isfinite(away[:, 0])
    if anywhere and known.any():
        away = away - away[known].mean(0)
    distance = np.where(known, np.square(np.where(known[:, None], away, 0.0)).sum(-1), 1.0)
    return float(np.sqrt(distance.mean()))


def identity_persistence(seen: SeenObject) -> float:
    """Share of the frames in which the object is seen, has its clip's colour, and about its last size.

    The first frame that shows it has no last one. Its shape does not count, which few pixels do not tell in one frame.
    """
    radius = seen.track[:, 2]
    last = np.append(radius[:1], radius[:-1])
    ratio = np.minimum(radius, last) / np.maximum(radius, last)
    # Where the last frame shows none, there is nothing to compare with.
    same_size = np.isnan(last) | (ratio > _MIN_SAME_SIZE)
    same_colour = np.array([colour == seen.colour for colour in seen.colours])
    return float((seen.is_seen & same_colour & same_size).mean())


class Period(NamedTuple):
    """Of a motion that comes back."""

    seconds: float  # after which a clip is most like itself
    strength: float  # 1 where it is the same then, 0 where it is no more like itself than at any time


def period(video: Video, fps: float | int, *, longest: float | None = None) -> Period:
    """The time after which a clip is most like itself, and how much.

    Args:
      video: of at least 6 frames.
      fps: frames per second.
      longest: seconds, at most half of the clip, which is the default: each lag is compared over half of it at least.

    Raises:
      ValueError: the clip is too short, or `longest` for it.
    """
    frames = np.asarray(video, np.float64).reshape(len(video), -1)
    most = len(frames) // 2 if longest is None else int(longest * fps)
    if len(frames) < 6 or not 3 <= most <= len(frames) // 2:
        raise ValueError(f"longest={longest}: a clip of {len(frames)} frames tells periods of 3 to {len(frames) // 2}")
    error = np.array([np.square(frames[lag:] - frames[:-lag]).mean() for lag in range(1, most + 1)])
    if not error.max() > 0:
        return Period(float("nan"), 0.0)  # nothing moves
    # From where it is hardly like itself any more: at shorter lags it is the same motion going on. After two periods a
    # clip is as much like itself as after one: the best of the first ones that are nearly as good as any counts.
    start = int(np.argmax(error >= _UNLIKE * error.max()))
    good = np.flatnonzero(error[start:] <= error[start:].min() + _NEARLY * error.max()) + start
    together = good[: np.argmax(np.append(np.diff(good), 2) > 1) + 1]
    best = together[np.argmin(error[together])]
    return Period((best + 1) / fps, float(1.0 - error[best] / error.max()))


def motion_measures(
    videos: Float[np.ndarray | Array, "clips frames height width 3"], scenes: Sequence[Scene], fps: float | int
) -> dict[str, dict[str, float]]:
    """The means of the measures over clips, with 95 % intervals (normal approximation).

    Args:
      videos: in [-1, 1].
      scenes: what each should show: one object.
      fps: frames per second.

    Returns:
      For each measure `mean`, `low`, `high`, and `n`: how many clips had it.

    Raises:
      ValueError: another number of scenes than of videos, or as the measures and `seen_object`.
    """
    if len(videos) != len(scenes):
        raise ValueError(f"{len(videos)} videos but {len(scenes)} scenes: pass one scene for each video")
    return means_of([motion_of(np.asarray(video), scene, fps) for video, scene in zip(videos, scenes, strict=True)])


def motion_of(video: Float[np.ndarray, "frames height width 3"], scene: Scene, fps: float | int) -> dict[str, float]:
    """The measures of one clip in [-1, 1], by name; arguments and errors as of `motion_measures`."""
    seen = seen_object(video)
    return {
        "adjacent frame error": adjacent_frame_error(video),
        "jerk": jerk(seen),
        "trajectory error": trajectory_error(seen, scene, fps, anywhere=True),
        "identity persistence": identity_persistence(seen),
    }


def means_of(measures: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """What `motion_measures` returns, from what `motion_of` says of each clip."""
    names = measures[0] if measures else ()
    return {name: intervals.mean(np.array([each[name] for each in measures])) for name in names}
