"""Intervals by the bootstrap: how far a score of a set of clips would move with other clips of the same kind."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Interval(NamedTuple):
    """Where a score lies."""

    low: float
    high: float


def bootstrap_interval(
    score: Callable[[Int[np.ndarray, " clips"]], float],
    clips: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of a score over clips (Efron): of sets drawn with replacement, the middle `level`.

    It is right for means, such as that of CLIP similarities. The Fréchet distance of N clips, and the inception score,
    are biased by N, and a set that repeats clips is like a smaller one: their intervals say how much the score
    scatters, and may lie beside it.

    Args:
      score: of the clips with these indices, some of them several times.
      clips: how many there are.
      resamples: sets that are drawn.
      level: in (0, 1).
      seed: of the draws.

    Raises:
      ValueError: fewer than two clips, no resamples, or a level that is not in (0, 1).
    """
    if clips < 2 or resamples < 1 or not 0 < level < 1:
        raise ValueError(f"clips={clips} (2 or more), resamples={resamples} (1 or more), level={level} (in (0, 1))")
    draw = np.random.default_rng(seed)
    scores = [score(draw.integers(clips, size=clips)) for _ in range(resamples)]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
