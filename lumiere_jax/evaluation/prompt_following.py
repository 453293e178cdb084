"""Whether a clip shows what its `moving_shapes` prompt says, read back by classical image processing.

The colour, shape, direction and motion of the largest object in a generated clip are measured without any
network, and compared with the scene that the prompt describes. Of two objects, which have different colours, each is
looked for by its colour. Not from the paper, whose text alignment is
judged by CLIP similarity and by people (section 5.2): here the truth is known exactly.

    scenes = [scene for _, scene in moving_shapes.prompts(64, seed=0)]
    prompt_following_accuracy(videos, scenes, fps=16)["direction"]["accuracy"]

What counts as the object: object_track.py.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.ndimage
from jaxtyping import Array, Float

from lumiere_jax.data import shapes_rendering, shapes_scene
from lumiere_jax.data.shapes_scene import Scene
from lumiere_jax.evaluation import intervals
from lumiere_jax.evaluation.object_track import seen_object

ATTRIBUTES = ("colour", "shape", "direction", "motion")

# Lengths below are in frame widths.
_MIN_FRAMES = 0.5  # The object must be seen in this part of the frames.
_SHAPE_FRAMES = 10  # Shapes are compared in at most this many frames, evenly spaced.
_TEMPLATE_BLUR = 0.9  # Pixels: between the data (`_BLUR` of object_track.py) and blurry generated clips.
_REACH = 1.6  # No shape reaches farther from its centre, in radii of a circle of its area.
_ANGLE_STEP = math.radians(7.5)  # Between the templates of a shape.
_MIN_TRAVEL = 0.08  # Of a translating object, during the clip.
_MIN_STRAIGHTNESS = 0.75  # Part of the variance of its positions that a constant velocity explains.
_MIN_GROWTH = 1.4  # Ratio of the radii at both ends of the clip.
_MAX_STILL = 0.035  # Standard deviation of the positions of an object that stays in its place.
_MAX_UPRIGHT = 0.6  # Mean resultant length of a shape's angles; 1 is a constant angle.


@dataclasses.dataclass(frozen=True)
class ObjectAttributes:
    """What is seen of the largest object of a clip.

    Attributes:
      shape: one of `shapes_scene.SHAPES`.
      colour: one of `shapes_scene.COLOURS`.
      direction: one of `shapes_scene.DIRECTIONS`, or "none" where it does not travel along a line.
      motion: one of `shapes_scene.MOTIONS`, or "still".
    """

    shape: str
    colour: str
    direction: str
    motion: str


def prompt_following_accuracy(
    videos: Float[np.ndarray | Array, "clips frames height width 3"], scenes: Sequence[Scene], fps: float | int
) -> dict[str, dict[str, float]]:
    """How often clips show the attributes of their scenes.

    Args:
      videos: clips in [-1, 1].
      scenes: what each should show.
      fps: of the clips.

    Returns:
      For each of `ATTRIBUTES`, for "found" (an object was seen at all) and for "all attributes" (together): `accuracy`,
      `n` (number of clips asked: for the direction those of translating objects only), and the 95 % Wilson interval
      from `low` to `high`. A clip without an object counts as wrong, and one of two objects counts as right where both
      are. With n = 0 the accuracy is NaN and the interval is [0, 1].

    Raises:
      ValueError: another number of scenes than of videos, or as `right_attributes`.
    """
    if len(videos) != len(scenes):
        raise ValueError(f"{len(videos)} videos but {len(scenes)} scenes: pass one scene for each video")
    answers = [right_attributes(np.asarray(video), scene, fps) for video, scene in zip(videos, scenes, strict=True)]
    return accuracy_of(answers)


def right_attributes(
    video: Float[np.ndarray, "frames height width 3"], scene: Scene, fps: float | int
) -> dict[str, bool]:
    """Which attributes of a scene a clip shows; "found": whether it shows its objects at all; "all attributes".

    Args:
      video: in [-1, 1].
      scene: what it should show. Of two objects both must be right.
      fps: frames per second.

    Returns:
      no answer for the direction where no object travels along a line.

    Raises:
      ValueError: as `read_attributes`.
    """
    # One object is asked for its colour, too; of two each is known by it.
    colours = [None] if len(scene.objects) == 1 else [truth.colour for truth in scene.objects]
    answers: dict[str, list[bool]] = {}
    for truth, colour in zip(scene.objects, colours, strict=True):
        seen = read_attributes(video, fps, colour)
        answers.setdefault("found", []).append(seen is not None)
        for name in ATTRIBUTES:
            if name != "direction" or truth.motion == "translating":
                right = seen is not None and getattr(seen, name) == getattr(truth, name)
                answers.setdefault(name, []).append(right)
    together = {name: all(of_objects) for name, of_objects in answers.items()}
    return together | {"all attributes": all(together.values())}


def accuracy_of(answers: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, float]]:
    """The accuracies of `prompt_following_accuracy`, from what `right_attributes` says of each clip."""
    names = ("found", *ATTRIBUTES, "all attributes")
    return {name: intervals.share([each[name] for each in answers if name in each]) for name in names}


def read_attributes(
    video: Float[np.ndarray, "frames height width 3"], fps: float | int, colour: str | None = None
) -> ObjectAttributes | None:
    """Measures the largest object of a clip in [-1, 1]; None where no object is seen in most of the frames.

    Args:
      video: in [-1, 1].
      fps: frames per second.
      colour: of the object to look for; None: whatever its colour.

    Raises:
      ValueError: fewer than 4 frames, frames smaller than 16 pixels or not square, or values that are not finite.
    """
    frames = len(video)
    if frames < 4:
        raise ValueError(f"video has {frames} frames: motion cannot be read from fewer than 4")
    found = seen_object(video, colour)
    seen = np.flatnonzero(found.is_seen)
    if len(seen) < max(4, _MIN_FRAMES * frames):
        return None
    track = found.track[seen]
    shape, turning = _read_shape(found.matte[seen], track)
    time = seen / fps
    direction = _read_direction(time, track)
    motion = _read_motion(time, track, direction, turning)
    return ObjectAttributes(shape, found.colour, direction, motion)


# Shape -----------------------------------------------------------------------------------------------------


def _read_shape(matte: Float[np.ndarray, "frames size size"], track: Float[np.ndarray, "frames 3"]) -> tuple[str, bool]:
    """The shape whose turned and scaled template is most similar to the object, and whether its angle varies."""
    chosen = np.unique(np.linspace(0, len(track) - 1, _SHAPE_FRAMES).round().astype(int))
    windows, track = _windows(matte[chosen], track[chosen])
    similar = {shape: _similarity(shape, windows, track) for shape in shapes_scene.SHAPES}
    # Large objects show their shape better than small ones.
    scores = {shape: np.average(best.max(axis=1), weights=track[:, 2] ** 2) for shape, best in similar.items()}
    shape = max(scores, key=scores.__getitem__)
    angle = _template_angles(shape)[similar[shape].argmax(axis=1)]
    resultant = abs(np.exp(1j * _symmetry(shape) * angle).mean())
    return shape, bool(resultant < _MAX_UPRIGHT)


def _windows(
    matte: Float[np.ndarray, "frames size size"], track: Float[np.ndarray, "frames 3"]
) -> tuple[Float[np.ndarray, "frames window window"], Float[np.ndarray, "frames 3"]]:
    """Cuts a square about the object out of each frame; the track is then in units of the square's width."""
    size = matte.shape[1]
    half = math.ceil(_REACH * track[:, 2].max() * size) + 1
    padded = np.pad(matte, ((0, 0), (half, half), (half, half)))
    corners = np.floor(track[:, :2] * size).astype(int)  # Of the windows, in the padded frame.
    cut = [frame[y : y + 2 * half, x : x + 2 * half] for frame, (x, y) in zip(padded, corners, strict=True)]
    inside = np.concatenate([track[:, :2] * size - corners + half, track[:, 2:] * size], axis=1) / (2 * half)
    return np.stack(cut), inside


def _similarity(
    shape: str, windows: Float[np.ndarray, "frames window window"], track: Float[np.ndarray, "frames 3"]
) -> Float[np.ndarray, "frames angles"]:
    """Cosine similarity of the object and the shape of its area at its centroid, turned to each angle."""
    frames, window, _ = windows.shape
    angles = _template_angles(shape)
    templates = np.empty((frames, len(angles), 4), np.float32)
    templates[..., :2] = track[:, None, :2]
    templates[..., 2] = track[:, None, 2] * math.sqrt(math.pi / _unit_area(shape))
    templates[..., 3] = angles
    covered = shapes_rendering.coverage(shape, templates.reshape(-1, 4), window)
    covered = scipy.ndimage.gaussian_filter(covered, (0, _TEMPLATE_BLUR, _TEMPLATE_BLUR))
    covered, windows = covered.reshape(frames, len(angles), -1), windows.reshape(frames, -1)
    products = np.einsum("fap,fp->fa", covered, windows)
    return products / np.linalg.norm(covered, axis=-1) / np.linalg.norm(windows, axis=-1, keepdims=True)


def _symmetry(shape: str) -> int:
    return shapes_scene.POLYGONS[shape].tips if shape in shapes_scene.POLYGONS else 1


def _template_angles(shape: str) -> Float[np.ndarray, " angles"]:
    if shape not in shapes_scene.POLYGONS:
        return np.zeros(1)
    return np.arange(0, 2 * math.pi / _symmetry(shape), _ANGLE_STEP)


def _unit_area(shape: str) -> float:
    if shape not in shapes_scene.POLYGONS:
        return math.pi
    tips, tip_radius, notch_radius = shapes_scene.POLYGONS[shape]
    return tips * tip_radius * notch_radius * math.sin(math.pi / tips)


# Motion ----------------------------------------------------------------------------------------------------


def _read_direction(time: Float[np.ndarray, " frames"], track: Float[np.ndarray, "frames 3"]) -> str:
    """The direction nearest to the velocity that fits the positions best."""
    velocity = np.polyfit(time, track[:, :2], 1)[0]
    if np.linalg.norm(velocity) * (time[-1] - time[0]) < _MIN_TRAVEL:
        return "none"
    explained = (velocity**2).sum() * time.var() / track[:, :2].var(axis=0).sum()
    if explained < _MIN_STRAIGHTNESS:
        return "none"
    return max(shapes_scene.DIRECTIONS, key=lambda name: float(velocity @ shapes_scene.DIRECTIONS[name]))


def _read_motion(
    time: Float[np.ndarray, " frames"], track: Float[np.ndarray, "frames 3"], direction: str, turning: bool
) -> str:
    log_growth = np.polyfit(time, np.log(track[:, 2]), 1)[0] * (time[-1] - time[0])
    if abs(log_growth) > math.log(_MIN_GROWTH):
        return "growing" if log_growth > 0 else "shrinking"
    if direction != "none":
        return "translating"
    spread_x, spread_y = track[:, :2].std(axis=0)
    if math.hypot(spread_x, spread_y) < _MAX_STILL:
        return "spinning" if turning else "still"
    if spread_x < spread_y / 2:
        return "bouncing"
    return "swinging" if spread_y < spread_x / 2 else "circling"
