"""Seams between the windows that a clip was made of (paper Fig. 14): neighbouring frames that differ too much.

What neighbouring frames differ by is motion and, where two windows meet, what these disagree on. So the difference at
the borders of windows is compared with that elsewhere in the same clip: `seam_ratio`, 1 where no seam can be told from
motion. Motion is not even, so the same pairs of frames of a clip without windows, best the real one, are the reference.

Everything is the same along height and width, for tiles: neighbours are then rows or columns of pixels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float

from lumiere_jax.diffusion.multidiffusion import AXES, window_shares, window_starts

Video = Float[np.ndarray | Array, "frames height width channels"]


def neighbour_mse(video: Video, axis: str = "frames") -> Float[np.ndarray, " pairs"]:
    """Mean squared difference of neighbouring frames (or rows, or columns); pair i is of i and i + 1.

    Args:
      video: in [-1, 1].
      axis: "frames" as in the paper's Fig. 14, "height" or "width".

    Raises:
      ValueError: an unknown axis, or fewer than two along it.
    """
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: use one of {', '.join(AXES)}")
    lines = np.moveaxis(np.asarray(video, np.float64), AXES.index(axis), 0)
    if len(lines) < 2:
        raise ValueError(f"a clip of shape {np.shape(video)} has no neighbours along {axis}")
    return np.square(np.diff(lines, axis=0)).mean((1, 2, 3))


def borders(length: int, window: int, overlap: int, weights: str = "uniform") -> Bool[np.ndarray, " {length-1}"]:
    """The pairs of neighbours that are not the same mixture of windows; pair i is of i and i + 1.

    Windows side by side have one such pair where they meet. Of the paper's windows, that overlap by 2 and are
    averaged, two frames are half of either window: one pair before them and one behind. Feathered weights change within
    the overlap, too. Overwritten overlaps ("latest") have one pair, where the later window begins.

    Args:
      length, window, overlap, weights: as for `multidiffusion.window_shares`; a clip that is no longer than a window
        has no borders.

    Raises:
      ValueError: as `multidiffusion.window_shares`.
    """
    if length <= window:
        return np.zeros(length - 1, bool)
    shares = window_shares(length, window, overlap, weights)
    mixture = np.zeros((len(shares), length))
    for row, start, share in zip(mixture, window_starts(length, window, overlap), shares, strict=True):
        row[start : start + window] = share
    return (np.diff(mixture, axis=1) != 0.0).any(0)


def seam_ratio(
    mse: Float[np.ndarray, " pairs"],
    border: Bool[np.ndarray, " pairs"],
    elsewhere: Bool[np.ndarray, " pairs"] | None = None,
) -> float:
    """Mean difference of neighbours at borders over that elsewhere.

    Args:
      mse: from `neighbour_mse`.
      border: from `borders`.
      elsewhere: the pairs to compare with; None: all that are no border. Where several ways of cutting are compared,
        those that are a border of none of them.

    Raises:
      ValueError: masks that share a pair or have none, or a clip that stands still elsewhere.
    """
    elsewhere = ~border if elsewhere is None else elsewhere
    if not border.any() or not elsewhere.any() or (border & elsewhere).any():
        raise ValueError(
            f"{border.sum()} pairs at borders, {elsewhere.sum()} elsewhere, {(border & elsewhere).sum()} of them both: "
            "there must be some of each, and none both"
        )
    if not mse[elsewhere].mean() > 0.0:
        raise ValueError("away from borders all neighbours are equal: a ratio says nothing of a clip that stands still")
    return float(mse[border].mean() / mse[elsewhere].mean())


def elsewhere_of(masks: Sequence[Bool[np.ndarray, " pairs"]]) -> Bool[np.ndarray, " pairs"]:
    """The pairs that are a border in none of several ways of cutting."""
    return ~np.any(masks, axis=0)
