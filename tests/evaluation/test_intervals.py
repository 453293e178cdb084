import math

import numpy as np
import pytest
import scipy.stats

from lumiere_jax.evaluation import intervals


def test_wilson_interval_of_a_known_case():
    # 9 of 10: (0.5958, 0.9821), e.g. Brown, Cai and DasGupta (2001), equation 4.
    found = intervals.share([True] * 9 + [False])
    assert (found["accuracy"], found["n"]) == (0.9, 10)
    np.testing.assert_allclose((found["low"], found["high"]), (0.5958, 0.9821), atol=1e-4)
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="right=3 of n=2"):
        intervals.wilson(3, 2)


def test_wilson_interval_as_scipy_has_it():
    for right, n in ((0, 7), (3, 7), (7, 7), (211, 400)):
        expected = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(intervals.wilson(right, n), expected, atol=1e-6)


def test_means():
    values = np.array([1.0, 2.0, 4.0, np.nan])
    half = 1.959964 * np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    found = intervals.mean(values)
    np.testing.assert_allclose(
        [found[name] for name in ("mean", "low", "high", "n")], [7 / 3, 7 / 3 - half, 7 / 3 + half, 3]
    )
    assert intervals.mean(np.array([np.nan]))["n"] == 0
    few = intervals.mean_of_few([1.0, 2.0, 4.0])
    expected = scipy.stats.t.interval(0.95, 2, loc=7 / 3, scale=scipy.stats.sem([1, 2, 4]))
    np.testing.assert_allclose((few["low"], few["high"]), expected)
    assert math.isnan(intervals.mean_of_few([3.0])["low"])
