"""X-T slices: one image row over time, as in the paper's Fig. 2.

A row of pixels, stacked over the frames, shows motion as slanted lines: smooth where the motion is coherent,
broken where frames disagree (the seams of cascaded temporal super-resolution, for one).
"""

import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float, UInt8

from lumiere_jax.data.video_io import to_uint8, write_png


def xt_slice(
    video: UInt8[np.ndarray, "frames height width 3"] | Float[np.ndarray | Array, "frames height width 3"],
    row: int | None = None,
    *,
    column: int | None = None,
    scale: int = 1,
) -> UInt8[np.ndarray, "time space 3"]:
    """Cuts a clip along time.

    The result has time downwards, the first frame on top, and the row from left to right (or the column from
    top to bottom) as its width.

    Args:
        video: float in [-1, 1] or uint8.
        row: which image row to follow; default: the middle one. Negative counts from the bottom.
        column: which image column to follow instead of a row.
        scale: how often each frame's line is repeated, so that short clips can be seen.

    Raises:
        ValueError: both row and column, either outside the image, or scale < 1.
    """
    if row is not None and column is not None:
        raise ValueError(f"choose a row or a column, got row={row} and column={column}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    height, width = video.shape[1:3]
    if column is not None:
        _check_index("column", column, width)
        lines = video[:, :, column]
    else:
        row = height // 2 if row is None else row
        _check_index("row", row, height)
        lines = video[:, row]
    return np.repeat(to_uint8(lines), scale, axis=0)


def _check_index(name: str, index: int, size: int) -> None:
    if not -size <= index < size:
        raise ValueError(f"{name} {index} is outside the image, which has {size}")


def write_xt_slice(
    path: str | os.PathLike,
    video: UInt8[np.ndarray, "frames height width 3"] | Float[np.ndarray | Array, "frames height width 3"],
    row: int | None = None,
    *,
    column: int | None = None,
    scale: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `xt_slice(...)` as PNG, with metadata as of `write_png`."""
    write_png(path, xt_slice(video, row, column=column, scale=scale), metadata)
