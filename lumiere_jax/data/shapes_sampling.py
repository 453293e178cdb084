"""Draws random `moving_shapes` scenes.

Single frames carry statistical cues of the motion. The frozen image model is trained on single frames and text
reaches the video model only through the image model's layers, so a frame of "moving left" must look different
from a frame of "moving up", as real frames do (a running dog does not look like a sleeping one):

* translating: starts near the centre and goes its way, so that the frames lie in that part of the frame;
* bouncing: straight above the lower edge of the frame, which is the floor;
* circling, swinging: on a circle about the centre, or on a pendulum's arc below it;
* growing, shrinking: at the centre, towards sizes beyond the normal range (larger, or smaller);
* spinning: at the centre, at any angle, whereas all other objects are upright.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64

from lumiere_jax.data.shapes_scene import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    RADII,
    SHAPES,
    MovingObject,
    Scene,
    clearance,
    floor_contact,
    is_held_out,
    track,
)

# Translation is one motion with eight directions: it is drawn four times as often as each of the others.
_MOTION_LOTS = ("translating",) * 3 + MOTIONS


def scene(
    seed: int,
    index: int,
    *,
    duration: float | int = 2.0,
    two_object_probability: float | int = 0.15,
    held_out: bool = False,
) -> Scene:
    """Draws the scene that the arguments determine.

    Args:
      seed: of the data set, >= 0.
      index: of the clip, >= 0.
      duration: seconds that the motion lasts; a translating object is the slower, the longer this is.
      two_object_probability: how often there are two objects; they then have different colours, and may overlap
        but never cover each other's centre.
      held_out: all objects have a held-out combination of attributes (`is_held_out`) rather than none.

    Raises:
      ValueError: a value out of its range.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed={seed} and index={index} must be >= 0")
    if not duration > 0:
        raise ValueError(f"duration={duration} must be > 0 seconds")
    if not 0 <= two_object_probability <= 1:
        raise ValueError(f"two_object_probability={two_object_probability} must be in [0, 1]")
    rng = np.random.default_rng((seed, index, int(held_out)))
    background = _pick(rng, BACKGROUNDS)
    if rng.random() < two_object_probability:
        objects = _draw_two_objects(rng, held_out, duration)
    else:
        objects = (_draw_object(rng, held_out),)
    return Scene(objects, background, duration, seed, index)


def _draw_object(rng: np.random.Generator, held_out: bool) -> MovingObject:
    """Draws the attributes until they are possible and on the wanted side of the hold-out, then the motion."""
    while True:
        shape, colour = _pick(rng, SHAPES), _pick(rng, tuple(COLOURS))
        motion = _pick(rng, _MOTION_LOTS)
        invisible = shape == "circle" and motion == "spinning"
        if not invisible and is_held_out(shape, colour, motion) == held_out:
            break
    size = _pick(rng, tuple(RADII))
    direction = _pick(rng, tuple(DIRECTIONS)) if motion == "translating" else "none"
    radius = RADII[size]
    x, y, amplitude, frequency = _draw_motion(rng, shape, motion, direction, radius)
    if motion in ("circling", "spinning"):
        frequency *= 2 * int(rng.integers(2)) - 1  # Clockwise or anticlockwise.
    phase = float(rng.random())
    return MovingObject(shape, colour, size, motion, direction, x, y, radius, amplitude, frequency, phase)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def _draw_motion(
    rng: np.random.Generator, shape: str, motion: str, direction: str, radius: float
) -> tuple[float, float, float, float]:
    """The (x, y, amplitude, frequency) of a motion about the middle of the frame: see `MovingObject`."""
    x, y = 0.5 + rng.uniform(-0.04, 0.04, size=2)
    amplitude, frequency = 0.0, 0.0
    margin = clearance(shape) * radius
    match motion:
        case "translating":
            unit_x, unit_y = DIRECTIONS[direction]
            # To the margin of the frame at most, starting at most 0.06 on the far side of the centre.
            amplitude = rng.uniform(0.22, min(0.4, 0.5 - margin + 0.06))
            run_up = max(0.0, amplitude - (0.5 - margin))
            x, y = x - run_up * unit_x, y - run_up * unit_y
            x = _inside(x, amplitude * unit_x, margin)
            y = _inside(y, amplitude * unit_y, margin)
        case "bouncing":
            x, y = rng.uniform(0.35, 0.65), 1 - floor_contact(shape) * radius
            amplitude, frequency = rng.uniform(0.35, 0.5), rng.uniform(1.0, 1.4)
        case "circling":
            x, y = 0.5, 0.5
            amplitude, frequency = rng.uniform(0.21, 0.25), rng.uniform(0.5, 0.75)
        case "swinging":
            x, y = 0.5, y + 0.12
            amplitude, frequency = rng.uniform(0.42, 0.48), rng.uniform(0.6, 0.9)
        case "growing":
            amplitude = rng.uniform(0.31, 0.34)
        case "shrinking":
            amplitude = rng.uniform(0.035, 0.045)
        case "spinning":
            frequency = rng.uniform(0.25, 0.5)
    return float(x), float(y), float(amplitude), float(frequency)


def _inside(start: float, shift: float, margin: float) -> float:
    """The nearest start from which an object with this margin stays in the frame when shifted."""
    return float(np.clip(start, margin - min(shift, 0.0), 1 - margin - max(shift, 0.0)))


def _draw_two_objects(
    rng: np.random.Generator, held_out: bool, duration: float | int
) -> tuple[MovingObject, MovingObject]:
    """Draws pairs, moved apart from the middle of the frame, until one is inside it and well visible."""
    time = np.linspace(0, duration, 33)
    while True:
        pair = tuple(_shifted(_draw_object(rng, held_out), rng) for _ in range(2))
        back, front = (track(moving, time, duration) for moving in pair)
        distance = np.hypot(*(back - front)[:, :2].T)
        if (
            pair[0].colour != pair[1].colour
            and _stays_inside(pair[0], back)
            and _stays_inside(pair[1], front)
            and np.all(distance > np.maximum(back[:, 2], front[:, 2]))
        ):
            return pair


def _shifted(moving: MovingObject, rng: np.random.Generator) -> MovingObject:
    """Moves the whole motion sideways, and upwards or downwards too unless it stands on the floor."""
    dx, dy = rng.uniform(-0.25, 0.25, size=2)
    dy = 0.0 if moving.motion == "bouncing" else dy
    return dataclasses.replace(moving, x=float(moving.x + dx), y=float(moving.y + dy))


def _stays_inside(moving: MovingObject, path: Float64[np.ndarray, "frames 4"]) -> bool:
    x, y, margin = path[:, 0], path[:, 1], clearance(moving.shape) * path[:, 2]
    on_floor = moving.motion == "bouncing"  # Which it touches, upright, with less than its margin.
    return bool(np.all((margin < x) & (x < 1 - margin) & (margin < y) & (on_floor | (y < 1 - margin))))
