"""Bilinear resizing without antialiasing, by the convention that a published metric was computed with.

Libraries agree on the weights between two pixels, and differ in where a new pixel lies among the old ones. Of n old and
m new pixels along a side, the new pixel i lies at

    tf1_bilinear    i n / m                  TensorFlow 1's `resize_bilinear`; the picture shifts up and left
    half_pixel      (i + 1/2) n / m - 1/2    PyTorch's and TensorFlow 2's default
    align_corners   i (n - 1) / (m - 1)      Chainer's `resize_images`

clipped to the old pixels. Scores of the same clips differ by it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resized(
    frames: Float[Array, "*batch height width channels"], height: int, width: int, convention: str
) -> Float[Array, "*batch new_height new_width channels"]:
    """Frames of another size, whatever their proportions.

    Args:
      frames: of any range.
      height, width: new ones.
      convention: `tf1_bilinear`, `half_pixel` or `align_corners`.

    Raises:
      ValueError: an unknown convention.
    """
    rows, columns = (
        jnp.asarray(_weights(old, new, convention), frames.dtype)
        for old, new in zip(frames.shape[-3:-1], (height, width), strict=True)
    )
    return jnp.einsum("hH,...HWc,wW->...hwc", rows, frames, columns)


def _weights(old: int, new: int, convention: str) -> Float[np.ndarray, "new old"]:
    """Of each old pixel in each new one, along one side."""
    i = np.arange(new)
    if convention == "tf1_bilinear":
        place = i * (old / new)
    elif convention == "half_pixel":
        place = (i + 0.5) * (old / new) - 0.5
    elif convention == "align_corners":
        place = i * ((old - 1) / max(new - 1, 1))
    else:
        raise ValueError(f"convention={convention!r}: give one of tf1_bilinear, half_pixel, align_corners")
    return np.maximum(1 - np.abs(np.clip(place, 0, old - 1)[:, None] - np.arange(old)), 0)
