"""Clips damaged in known ways: a measure of motion must tell them from whole ones (motion.py)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Video = Float[np.ndarray, "frames height width 3"]


def shuffled(video: Video, rng: np.random.Generator) -> Video:
    """Its frames in another order."""
    return video[rng.permutation(len(video))]


def jittered(video: Video, rng: np.random.Generator, *, share: float = 0.06) -> Video:
    """Each frame moved by up to so many parts of its width, each way, evenly distributed; edges are repeated."""
    most = max(1, round(share * video.shape[2]))
    padded = np.pad(video, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * most, (len(video), 2), endpoint=True)
    height, width = video.shape[1:3]
    return np.stack([frame[y : y + height, x : x + width] for frame, (y, x) in zip(padded, corners, strict=True)])


def frozen(video: Video, rng: np.random.Generator) -> Video:
    """Its first frame, all the time."""
    return np.repeat(video[:1], len(video), axis=0)


def halves_swapped(video: Video, rng: np.random.Generator) -> Video:
    """Its second half before its first."""
    return np.roll(video, len(video) // 2, axis=0)


def recoloured(video: Video, rng: np.random.Generator) -> Video:
    """Red, green and blue exchanged from the middle on: another object."""
    return np.concatenate([video[: len(video) // 2], video[len(video) // 2 :, ..., [1, 2, 0]]])


DAMAGES: dict[str, Callable[[Video, np.random.Generator], Video]] = {
    "shuffled": shuffled,
    "jittered": jittered,
    "frozen": frozen,
    "halves swapped": halves_swapped,
    "recoloured": recoloured,
}
