"""How far frames are from images in style: the sliced Wasserstein distance between their patches.

A patch of a few pixels says nothing of what is shown, but of colours, strokes and grain. Its distribution over the
frames is compared with that over the images, along random directions, along each of which the Wasserstein distance is
that of sorted numbers. No network is asked, and no weights are needed. Not from the paper, which shows styles and
measures none.
"""

import numpy as np
from jaxtyping import Array, Float

_LEVELS = (np.arange(256) + 0.5) / 256  # quantiles that are compared


def style_distance(
    frames: Float[np.ndarray | Array, "frames height width 3"],
    images: Float[np.ndarray | Array, "images style_height style_width 3"],
    *,
    patch: int = 5,
    directions: int = 128,
    seed: int = 0,
) -> float:
    """The distance, in the units of the pixels: 0 for the same patches, d where all pixels differ by d.

    Args:
      frames: in [-1, 1].
      images: in [-1, 1], at the scale that the frames are to have the style at.
      patch: pixels of a side of the patches.
      directions: that patches are projected on; more are more exact.
      seed: of these.

    Raises:
      ValueError: frames or images smaller than a patch.
    """
    for name, pictures in (("frames", frames), ("images", images)):
        if min(pictures.shape[1:3]) < patch:
            raise ValueError(f"{name} of {pictures.shape[1:3]} pixels are smaller than a patch of {patch}")
    drawn = np.random.default_rng(seed).standard_normal((directions, patch, patch, 3))
    unit = drawn / np.sqrt(np.square(drawn).sum((1, 2, 3), keepdims=True))
    ours, theirs = (_quantiles(np.asarray(pictures, np.float64), unit) for pictures in (frames, images))
    return float(np.sqrt(np.square(ours - theirs).mean()))


def _quantiles(
    pictures: Float[np.ndarray, "n height width 3"], unit: Float[np.ndarray, "directions patch patch 3"]
) -> Float[np.ndarray, "levels directions"]:
    """Of the projections of all patches on each direction."""
    patches = np.lib.stride_tricks.sliding_window_view(pictures, unit.shape[1:3], axis=(1, 2))
    projected = np.einsum("nyxcab,dabc->nyxd", patches, unit, optimize=True)
    return np.quantile(projected.reshape(-1, len(unit)), _LEVELS, axis=0)
