"""Masks for the training of the conditional model: what of a clip is given, drawn in the training step.

The paper does not tell its mix of masks. Ours has one kind for each application, and harder ones; how often each is
drawn is the config's `conditioning.masks`. All sizes below are not from the paper either.

nothing, everything      plain text-to-video; a clip to be copied
first_frame              image-to-video
first_and_last           two keyframes
any_frames               each frame with the same probability, which is drawn, too
still_box, moving_box    all but a box, which stays or moves evenly: inpainting
brush                    all but a brush stroke through four points
border                   all but a border, on any of the four sides: outpainting
region                   the first frame, and of the others all but a still box: cinemagraphs
every_fourth_frame       keyframes: temporal super-resolution alone (configs/keyframe_cascade.py)
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

Shape = tuple[int, int, int]  # frames, height, width
Given = Bool[Array, "frames height width"]

KEYFRAME_STRIDE = 4  # of every_fourth_frame
_BOX_SIDES = (0.25, 0.75)  # of a side of the clip
_BRUSH_WIDTHS = (0.05, 0.2)
_BORDER = 0.4  # at most


def draw_masks(
    key: Key[Array, ""], masks: Mapping[str, float], clips: int, shape: Shape
) -> Float[Array, "clips frames height width 1"]:
    """Masks, 1 where a clip is given.

    Args:
      key: of all of them.
      masks: how often each kind is drawn, as shares of their sum.
      clips: how many.
      shape: of a clip: (frames, height, width).
    """
    check_masks(masks)
    kinds = [_KINDS[kind] for kind in masks]
    shares = jnp.asarray(list(masks.values()), jnp.float32)

    def draw(key: Array) -> Array:
        kind_key, mask_key = jax.random.split(key)
        kind = jax.random.categorical(kind_key, jnp.log(shares))
        return jax.lax.switch(kind, [lambda key, kind=kind: kind(key, shape) for kind in kinds], mask_key)

    return jax.vmap(draw)(jax.random.split(key, clips))[..., None].astype(jnp.float32)


def check_masks(masks: Mapping[str, float]) -> None:
    """Raises a ValueError for a kind of mask that there is not, or shares that cannot be drawn."""
    unknown = sorted(set(masks) - set(_KINDS))
    if unknown:
        raise ValueError(f"conditioning.masks: there is no kind {unknown[0]!r}: use {', '.join(_KINDS)}")
    if not all(0 <= share < float("inf") for share in masks.values()) or not sum(masks.values()) > 0:
        raise ValueError(f"conditioning.masks={dict(masks)}: give shares from 0, not all of them 0")


def _nothing(key: Array, shape: Shape) -> Given:
    return jnp.zeros(shape, bool)


def _everything(key: Array, shape: Shape) -> Given:
    return jnp.ones(shape, bool)


def _first_frame(key: Array, shape: Shape) -> Given:
    return _whole_frames(jnp.arange(shape[0]) == 0, shape)


def _first_and_last(key: Array, shape: Shape) -> Given:
    frame = jnp.arange(shape[0])
    return _whole_frames((frame == 0) | (frame == shape[0] - 1), shape)


def _any_frames(key: Array, shape: Shape) -> Given:
    share_key, frames_key = jax.random.split(key)
    return _whole_frames(jax.random.uniform(frames_key, shape[:1]) < jax.random.uniform(share_key), shape)


def _every_fourth_frame(key: Array, shape: Shape) -> Given:
    return _whole_frames(jnp.arange(shape[0]) % KEYFRAME_STRIDE == 0, shape)


def _whole_frames(frames: Bool[Array, " frames"], shape: Shape) -> Given:
    return jnp.broadcast_to(frames[:, None, None], shape)


def _still_box(key: Array, shape: Shape) -> Given:
    return ~_box(key, shape, moves=False)


def _moving_box(key: Array, shape: Shape) -> Given:
    return ~_box(key, shape, moves=True)


def _region(key: Array, shape: Shape) -> Given:
    return _first_frame(key, shape) | _still_box(key, shape)


def _box(key: Array, shape: Shape, *, moves: bool) -> Given:
    """True inside of a box; its corner goes evenly from one place to another."""
    size_key, start_key, end_key = jax.random.split(key, 3)
    low, high = _BOX_SIDES
    sides = low + (high - low) * jax.random.uniform(size_key, (2,))
    start = (1.0 - sides) * jax.random.uniform(start_key, (2,))
    end = (1.0 - sides) * jax.random.uniform(end_key, (2,)) if moves else start
    corner = start + jnp.linspace(0.0, 1.0, shape[0])[:, None] * (end - start)
    y, x = _centres(shape)
    corner = corner[:, :, None, None]
    inside_y = (corner[:, 0] <= y) & (y < corner[:, 0] + sides[0])
    return inside_y & (corner[:, 1] <= x) & (x < corner[:, 1] + sides[1])


def _brush(key: Array, shape: Shape) -> Given:
    points_key, width_key = jax.random.split(key)
    points = jax.random.uniform(points_key, (4, 2))
    low, high = _BRUSH_WIDTHS
    width = low + (high - low) * jax.random.uniform(width_key)
    pixel = jnp.stack(jnp.broadcast_arrays(*_centres(shape)), axis=-1)[0]
    start, along = points[:-1], jnp.diff(points, axis=0)
    # The nearest point of each line: as far along it as the pixel's projection, from its start to its end.
    share = jnp.einsum("hwpc,pc->hwp", pixel[:, :, None] - start, along) / jnp.sum(along**2, axis=-1)
    nearest = start + jnp.clip(share, 0.0, 1.0)[..., None] * along
    distance = jnp.linalg.norm(pixel[:, :, None] - nearest, axis=-1).min(-1)
    return jnp.broadcast_to(distance > width / 2, shape)


def _border(key: Array, shape: Shape) -> Given:
    is_there_key, width_key = jax.random.split(key)
    top, bottom, left, right = jax.random.bernoulli(is_there_key, 0.5, (4,)) * jax.random.uniform(width_key, (4,))
    y, x = _centres(shape)
    inside = (y >= _BORDER * top) & (y <= 1.0 - _BORDER * bottom)
    return jnp.broadcast_to(inside & (x >= _BORDER * left) & (x <= 1.0 - _BORDER * right), shape)


def _centres(shape: Shape) -> tuple[Float[Array, "1 height 1"], Float[Array, "1 1 width"]]:
    """Of the pixels, from 0 to 1 along each side."""
    _, height, width = shape
    return (jnp.arange(height)[None, :, None] + 0.5) / height, (jnp.arange(width)[None, None, :] + 0.5) / width


_KINDS: dict[str, Callable[[Array, Shape], Given]] = {
    "nothing": _nothing,
    "everything": _everything,
    "first_frame": _first_frame,
    "first_and_last": _first_and_last,
    "any_frames": _any_frames,
    "still_box": _still_box,
    "moving_box": _moving_box,
    "brush": _brush,
    "border": _border,
    "region": _region,
    "every_fourth_frame": _every_fourth_frame,
}
