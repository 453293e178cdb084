"""How far raters agree who do not all judge the same items.

Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), for nominal data: alpha is 1 where all agree, and 0
where they agree no more than by chance.
"""

import math

import numpy as np
from jaxtyping import Int

Counts = Int[np.ndarray, "items answers"]


def krippendorff_alpha(counts: Counts) -> float:
    """Krippendorff's alpha for nominal data.

    Args:
      counts: of each item, how many raters gave each answer; items with fewer than two judgments do not count.

    Returns:
      at most 1; NaN where no item has two judgments, or all answers are the same: chance could not disagree.
    """
    counts = counts[counts.sum(1) >= 2]
    sizes, totals = counts.sum(1), counts.sum(0)
    observed = ((sizes**2 - (counts**2).sum(1)) / np.maximum(sizes - 1, 1)).sum()
    expected = totals.sum() ** 2 - (totals**2).sum()
    return float(1 - (totals.sum() - 1) * observed / expected) if expected else math.nan


def pairwise_agreement(counts: Counts) -> float:
    """Of all pairs of judgments on the same item, the share that agree; NaN where there is none. `counts`: as above."""
    sizes = counts.sum(1)
    pairs = (sizes * (sizes - 1)).sum()
    return float((counts * (counts - 1)).sum() / pairs) if pairs else math.nan
