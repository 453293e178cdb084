"""Agreement between raters: published examples, and the definition counted out pair by pair."""

import itertools
import math

import numpy as np
import pytest

from lumiere_jax.study.agreement import krippendorff_alpha, pairwise_agreement

# A row for each rater, a dot where an item is not judged; and the alpha for nominal data that is published for it.
PUBLISHED = {
    # Krippendorff (2011), examples A, B and C.
    "two answers": (["0100000010", "1110010000"], 0.095),
    "five answers": (["aabbdcccedda", "babbbccceddd"], 0.692),
    "four raters": (["123321412...", "1233224125.3", ".3332342251.", "12332441251."], 0.743),
    # Wikipedia, Krippendorff's alpha.
    "three raters": ([".....34121133.3", "1.213343.......", "..21344.21133.4"], 0.691),
}


def counts_of(rows):
    answers = sorted(set("".join(rows)) - {"."})
    return np.array([[item.count(answer) for answer in answers] for item in zip(*rows, strict=True)], np.int64)


def alpha_pair_by_pair(items):
    """1 - observed / expected disagreement, over ordered pairs of judgments."""
    items = [item for item in items if len(item) >= 2]
    everything = [answer for item in items for answer in item]
    observed = sum(
        sum(one != other for one, other in itertools.permutations(item, 2)) / (len(item) - 1) for item in items
    ) / len(everything)
    pairs = list(itertools.permutations(everything, 2))
    return 1 - observed / (sum(one != other for one, other in pairs) / len(pairs))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_examples(name):
    rows, alpha = PUBLISHED[name]
    assert krippendorff_alpha(counts_of(rows)) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("seed", range(20))
def test_pair_by_pair(seed):
    rng = np.random.default_rng(seed)
    items = [rng.integers(3, size=rng.integers(6)).tolist() for _ in range(12)]
    counts = np.array([[item.count(answer) for answer in range(3)] for item in items], np.int64)
    assert krippendorff_alpha(counts) == pytest.approx(alpha_pair_by_pair(items))
    pairs = [one == other for item in items for one, other in itertools.combinations(item, 2)]
    assert pairwise_agreement(counts) == pytest.approx(np.mean(pairs))


def test_ends_of_the_scale():
    assert krippendorff_alpha(np.array([[3, 0], [0, 2]])) == 1
    assert pairwise_agreement(np.array([[3, 0], [0, 2]])) == 1
    chance = np.random.default_rng(0).multinomial(5, [0.5, 0.5], size=20_000)
    assert krippendorff_alpha(chance) == pytest.approx(0, abs=0.01)
    assert pairwise_agreement(chance) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("counts", [np.zeros((0, 2), int), np.array([[1, 0], [0, 1]])])
def test_unknown_without_two_judgments_of_an_item(counts):
    assert math.isnan(krippendorff_alpha(counts))
    assert math.isnan(pairwise_agreement(counts))


def test_unknown_where_chance_could_not_disagree():
    assert math.isnan(krippendorff_alpha(np.array([[3, 0], [2, 0]])))
