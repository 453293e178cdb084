"""Draws `moving_shapes` scenes: anti-aliased shapes by analytic signed distance, vectorised over the frames."""

import math

import numpy as np
from jaxtyping import Float32, UInt8

from lumiere_jax.data import shapes_scene
from lumiere_jax.data.shapes_scene import Polygon, Scene


def render(scene: Scene, size: int, frames: int, fps: float | int) -> UInt8[np.ndarray, "frames size size 3"]:
    """Draws a scene as RGB frames.

    Args:
      scene: what to draw.
      size: width and height of a frame, pixels.
      frames: number of frames.
      fps: frames per second; frame `i` shows the scene at time `i / fps`.

    Raises:
      ValueError: no frames or pixels, or more frames than the scene's motion lasts.
    """
    if size < 1 or frames < 1 or not fps > 0:
        raise ValueError(f"size={size} and frames={frames} must be >= 1 and fps={fps} > 0")
    tracks = shapes_scene.trajectory(scene, frames, fps)
    image = np.empty((frames, size, size, 3), np.float32)
    image[:] = background(scene.background, size)
    for moving, track in zip(scene.objects, tracks, strict=False):
        rows, columns = _reach(track, size)
        covered = coverage(moving.shape, track, size, rows, columns)[..., None]
        colour = np.asarray(shapes_scene.COLOURS[moving.colour], np.float32)
        image[:, rows, columns] += covered * (colour - image[:, rows, columns])
    return np.rint(image).astype(np.uint8)


def background(name: str, size: int) -> Float32[np.ndarray, "size 1 3"]:
    """The background's RGB in 0..255, which is the same in a whole row of pixels."""
    shades = {"black": (0, 0), "white": (255, 255), "gray": (128, 128), "gradient": (225, 70)}
    top, bottom = shades[name]
    rows = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.repeat((top + (bottom - top) * rows)[:, None, None], 3, axis=-1)


def coverage(
    shape: str,
    track: Float32[np.ndarray, "frames 4"],
    size: int,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> Float32[np.ndarray, "frames height width"]:
    """How much of each pixel the shape covers, in [0, 1].

    The edge is taken as straight inside a pixel and as parallel to its sides, so that the coverage is one half
    minus the signed distance of the pixel's centre, in pixels.

    Args:
      shape: one of `SHAPES`.
      track: (x, y, radius, angle) per frame, as `shapes_scene.trajectory` gives it.
      size: width and height of a frame, pixels.
      rows: the part of the frame to look at, and
      columns: likewise; all of it by default.
    """
    x, y, radius, angle = (track[:, i, None, None] for i in range(4))
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    dx, dy = centres[None, None, columns] - x, centres[None, rows, None] - y
    if shape in shapes_scene.POLYGONS:
        distance = _polygon_distance(shapes_scene.POLYGONS[shape], dx, dy, radius, angle)
    else:
        distance = np.sqrt(dx * dx + dy * dy) - radius
    return np.clip(0.5 - distance * size, 0, 1)


def _reach(track: Float32[np.ndarray, "frames 4"], size: int) -> tuple[slice, slice]:
    """The rows and columns that an object touches in any frame: the rest need not be computed."""
    margin = shapes_scene.MAX_CLEARANCE * track[:, 2] + 1 / size
    low = np.floor((track[:, 1::-1] - margin[:, None]).min(axis=0) * size).clip(0, size)
    high = np.ceil((track[:, 1::-1] + margin[:, None]).max(axis=0) * size).clip(0, size)
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))


def _polygon_distance(
    polygon: Polygon,
    dx: Float32[np.ndarray, "frames 1 width"],
    dy: Float32[np.ndarray, "frames height 1"],
    radius: Float32[np.ndarray, "frames 1 1"],
    angle: Float32[np.ndarray, "frames 1 1"],
) -> Float32[np.ndarray, "frames height width"]:
    """Signed distance to the edges, each prolonged beyond its tip; negative inside.

    By symmetry only the edge from one tip to the notch beside it matters: each point is turned and mirrored into
    the wedge between these two, where it has the coordinates `along` (towards the tip) and `across`.
    """
    along = np.full(np.broadcast_shapes(dx.shape, dy.shape), -np.inf, np.float32)
    for k in range(polygon.tips):
        # Upright, the lowest point of the wedge between two tips is straight below the centre.
        tip = angle + np.float32(math.pi / 2 + (2 * k + 1) * math.pi / polygon.tips)
        np.maximum(along, dx * np.cos(tip) + dy * np.sin(tip), out=along)
    across = np.sqrt(np.maximum(dx * dx + dy * dy - along * along, 0))
    half_wedge = math.pi / polygon.tips
    edge_x = polygon.tip_radius - polygon.notch_radius * math.cos(half_wedge)
    edge_y = polygon.notch_radius * math.sin(half_wedge)
    length = math.hypot(edge_x, edge_y)
    normal_x, normal_y = np.float32(edge_y / length), np.float32(edge_x / length)
    return (along - radius * np.float32(polygon.tip_radius)) * normal_x + across * normal_y
