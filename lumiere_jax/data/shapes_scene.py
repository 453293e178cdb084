"""What happens in a `moving_shapes` clip: the objects, their attributes and their motion.

Geometry is in units of the frame width (frames are square): x runs to the right and y downwards, both in
[0, 1]; angles are in radians; time is in seconds. So one scene renders at any resolution and frame rate.
"""

import dataclasses
import json
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64


class Polygon(NamedTuple):
    """A regular polygon or star: straight edges from tip to notch to tip. Radii in units of the object's radius.

    An upright one stands on two tips, so that an odd number of tips has one at the top.
    """

    tips: int
    tip_radius: float
    notch_radius: float


POLYGONS = {  # Of about the same area. The notches of a convex polygon are the middles of its edges.
    "square": Polygon(4, 1.2, 1.2 * math.cos(math.pi / 4)),
    "triangle": Polygon(3, 1.3, 1.3 * math.cos(math.pi / 3)),
    "star": Polygon(5, 1.3, 0.58),
}
SHAPES = ("circle", *POLYGONS)
MAX_CLEARANCE = 1.3  # No shape reaches farther from its centre, in radii.
COLOURS = {  # RGB in 0..255; hues at least 50 degrees apart.
    "red": (230, 40, 40),
    "yellow": (245, 220, 30),
    "green": (35, 180, 55),
    "cyan": (25, 205, 215),
    "blue": (40, 75, 230),
    "purple": (165, 45, 220),
}
BACKGROUNDS = ("black", "white", "gray", "gradient")  # All neutral: every colour stands out on each of them.
RADII = {"small": 0.095, "medium": 0.135, "large": 0.18}
MOTIONS = ("translating", "bouncing", "circling", "swinging", "growing", "shrinking", "spinning")
_SQRT_HALF = math.sqrt(0.5)
DIRECTIONS = {  # Unit vectors; y points downwards.
    "right": (1.0, 0.0),
    "down_right": (_SQRT_HALF, _SQRT_HALF),
    "down": (0.0, 1.0),
    "down_left": (-_SQRT_HALF, _SQRT_HALF),
    "left": (-1.0, 0.0),
    "up_left": (-_SQRT_HALF, -_SQRT_HALF),
    "up": (0.0, -1.0),
    "up_right": (_SQRT_HALF, -_SQRT_HALF),
}
MAX_OBJECTS = 2

_SWING_ANGLE = 0.55  # How far the pendulum swings to either side, radians.


@dataclasses.dataclass(frozen=True)
class MovingObject:
    """One object and its motion. Lengths are in frame widths.

    Attributes:
      shape: one of `SHAPES`.
      colour: one of `COLOURS`.
      size: one of `RADII`.
      motion: one of `MOTIONS`.
      direction: one of `DIRECTIONS` for a translating object, "none" for any other.
      x: where a translating object starts; the centre of a circle; the lowest point of a swing; the point of
        the floor that a bouncing object touches (its centre then); the place of an object that stays.
      y: the same, vertically; grows downwards.
      radius: of a circle; other shapes have about the area of a circle with this radius. Constant unless the
        object grows or shrinks, which starts with it.
      amplitude: translating: distance travelled in the scene's duration; bouncing: height; circling: the
        circle's radius; swinging: the pendulum's length; growing, shrinking: radius at the end; spinning: 0.
      frequency: cycles per second (bounces, rounds, swings, turns), negative for anticlockwise; otherwise 0.
      phase: part of a cycle that lies behind at time 0, in [0, 1).
    """

    shape: str
    colour: str
    size: str
    motion: str
    direction: str
    x: float
    y: float
    radius: float
    amplitude: float
    frequency: float
    phase: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two moving objects (the later one is in front) before a background.

    Attributes:
      objects: the objects, from back to front.
      background: one of `BACKGROUNDS`.
      duration: how long the motion lasts, seconds: up to then all objects are inside the frame.
      seed: the seed and
      index: the number that the scene was drawn from.
    """

    objects: tuple[MovingObject, ...]
    background: str
    duration: float | int
    seed: int
    index: int

    def to_json(self) -> str:
        """All of the scene as JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """Reads what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "objects": tuple(MovingObject(**one) for one in fields["objects"])})


def is_held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether this combination never occurs in the train split.

    Of the motions of each (shape, colour) at most one is held out, and likewise for the shapes of each (colour,
    motion) and the colours of each (shape, motion): every pair of attributes occurs in train.
    """
    position = SHAPES.index(shape), tuple(COLOURS).index(colour), MOTIONS.index(motion)
    return (position[0] + 2 * position[1] + 3 * position[2]) % 7 == 0


def trajectory(scene: Scene, frames: int, fps: float | int) -> Float32[np.ndarray, "objects frames 4"]:
    """The (x, y, radius, angle) of each object at the time of each frame, `frame / fps`.

    Always `MAX_OBJECTS` objects: NaN for one that the scene lacks. Angles are clockwise as seen, 0 is upright.

    Raises:
      ValueError: the frames last longer than the scene's motion.
    """
    time = np.arange(frames) / fps
    if time[-1] > scene.duration:
        raise ValueError(
            f"frames={frames} at fps={fps} last beyond the scene's duration={scene.duration} s: "
            "draw the scene with a longer duration"
        )
    tracks = np.full((MAX_OBJECTS, frames, 4), np.nan, np.float32)
    for i, moving in enumerate(scene.objects):
        tracks[i] = track(moving, time, scene.duration)
    return tracks


def track(
    moving: MovingObject, time: Float64[np.ndarray, " frames"], duration: float | int
) -> Float64[np.ndarray, "frames 4"]:
    """The (x, y, radius, angle) of one object at each time, seconds, of a motion of this duration."""
    progress = time / duration
    turns = moving.frequency * time + moving.phase
    dx, dy, radius, angle = (np.zeros_like(time) for _ in range(4))
    radius += moving.radius
    match moving.motion:
        case "translating":
            unit_x, unit_y = DIRECTIONS[moving.direction]
            dx, dy = moving.amplitude * progress * unit_x, moving.amplitude * progress * unit_y
        case "bouncing":
            since_contact = turns % 1.0
            dy = -4 * moving.amplitude * since_contact * (1 - since_contact)
        case "circling":
            dx, dy = (moving.amplitude * wave(2 * np.pi * turns) for wave in (np.cos, np.sin))
        case "swinging":
            deflection = _SWING_ANGLE * np.sin(2 * np.pi * turns)
            dx, dy = moving.amplitude * np.sin(deflection), moving.amplitude * (np.cos(deflection) - 1)
        case "growing" | "shrinking":
            radius = moving.radius * (moving.amplitude / moving.radius) ** progress
        case "spinning":
            angle = 2 * np.pi * turns
    return np.stack([moving.x + dx, moving.y + dy, radius, angle], axis=-1)


def clearance(shape: str) -> float:
    """The farthest point of a shape from its centre, in radii."""
    return POLYGONS[shape].tip_radius if shape in POLYGONS else 1.0


def floor_contact(shape: str) -> float:
    """How far an upright shape reaches below its centre, in radii."""
    if shape not in POLYGONS:
        return 1.0
    tips, tip_radius, _ = POLYGONS[shape]
    return tip_radius * math.cos(math.pi / tips)
