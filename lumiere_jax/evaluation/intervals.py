"""95 % confidence intervals of what is measured on clips."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

_Z = 1.959964  # of the normal distribution


def wilson(right: int, n: int) -> tuple[float, float]:
    """The Wilson score interval of a share: `right` of `n` answers.

    Returns:
      from, to; (0, 1) where there is no answer.

    Raises:
      ValueError: more right answers than answers, or a negative number.
    """
    if not 0 <= right <= n:
        raise ValueError(f"right={right} of n={n} answers: give 0 to n")
    if n == 0:
        return 0.0, 1.0
    part = right / n
    centre = (part + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(part * (1 - part) / n + _Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def share(answers: Sequence[bool]) -> dict[str, float]:
    """Share of right answers: `accuracy`, `n`, and the Wilson interval from `low` to `high`; NaN of no answers."""
    n, right = len(answers), int(sum(answers))
    low, high = wilson(right, n)
    return {"accuracy": right / n if n else math.nan, "n": n, "low": low, "high": high}


def mean(values: Float[np.ndarray, " clips"]) -> dict[str, float]:
    """Mean of the values that are finite: `mean`, `low` and `high` by the normal approximation, `n`: how many."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {"mean": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    half = _Z * known.std(ddof=1) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return {"mean": float(known.mean()), "low": float(known.mean() - half), "high": float(known.mean() + half)} | {
        "n": len(known)
    }


def mean_of_few(values: Sequence[float]) -> dict[str, float]:
    """Mean of a few repeats: `mean`, `low` and `high` by Student's t, `n`; of one repeat there is no interval: NaN."""
    known = np.asarray(values, np.float64)
    spread = known.std(ddof=1) if len(known) > 1 else math.nan
    half = float(scipy.stats.t.ppf(0.975, max(1, len(known) - 1)) * spread / math.sqrt(len(known)))
    return {"mean": float(known.mean()), "low": float(known.mean()) - half, "high": float(known.mean()) + half} | {
        "n": len(known)
    }
