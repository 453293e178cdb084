"""What a study found, from votes whose answer is known."""

import json

import numpy as np
import pytest

from lumiere_jax.evaluation.intervals import wilson
from lumiere_jax.study.results import inattentive, preference, study_results, summary
from lumiere_jax.study.votes import Judgment, Trial


def judge(rater, number, pair, quality_for_first, text_for_first, *, is_check=False, rng=None):
    """A vote for the first clip, or not, on a random side."""
    first_left = bool((rng or np.random.default_rng([number, pair])).integers(2))
    quality, text = ("left" if first == first_left else "right" for first in (quality_for_first, text_for_first))
    return Judgment(rater, Trial(number, pair, is_check, first_left), quality, text)


@pytest.fixture
def votes():
    """Five raters who prefer A in 4 of 5 pairs by quality and never by text; one who prefers the damaged clip."""
    rng = np.random.default_rng(0)
    found = []
    for rater in "abcde":
        found += [judge(rater, pair, pair, pair != 3, False, rng=rng) for pair in range(5)]
        found.append(judge(rater, 5, 0, True, False, is_check=True, rng=rng))
    found += [judge("z", pair, pair, False, True, rng=rng) for pair in range(5)]
    return [*found, judge("z", 5, 2, False, True, is_check=True, rng=rng)]


def results_of(votes, max_failed=0.25):
    return study_results({"seed": 0}, {"a": "ours", "b": "theirs"}, votes, max_failed=max_failed)


def test_shares_with_and_without_inattentive_raters(votes):
    found = results_of(votes)
    assert (found["raters"]["all"], found["raters"]["excluded"]) == (6, 1)
    quality = found["attentive raters"]["quality"]
    assert (quality["prefers_a"], quality["judgments"], quality["raters"], quality["pairs"]) == (0.8, 25, 5, 5)
    assert (quality["low"], quality["high"]) == wilson(20, 25)
    assert found["attentive raters"]["text"]["prefers_a"] == 0
    everybody = found["all raters"]
    assert (everybody["quality"]["prefers_a"], everybody["quality"]["judgments"]) == (20 / 30, 30)
    assert everybody["text"]["prefers_a"] == 5 / 30


def test_agreement(votes):
    quality = results_of(votes)["attentive raters"]["quality"]["agreement"]
    assert quality == {"alpha": 1, "pairs_of_raters": 1}
    everybody = results_of(votes)["all raters"]["quality"]["agreement"]
    # Of each pair's 15 couples of raters 10 agree; where all prefer B, 15.
    assert everybody["pairs_of_raters"] == pytest.approx((4 * 10 + 15) / 75)
    assert 0 < everybody["alpha"] < 1
    assert results_of(votes)["attentive raters"]["text"]["agreement"]["alpha"] is None


def test_clusters_widen_the_interval():
    """Ten prompts, each judged alike by twenty raters: the 200 judgments are no 200 prompts."""
    votes = [judge(f"{rater}", pair, pair, pair < 5, True) for rater in range(20) for pair in range(10)]
    found = preference(votes, "quality")
    assert found["high"] - found["low"] == pytest.approx(0.137, abs=0.005)
    low, high = found["over_prompts"]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(10), abs=0.1)
    assert found["over_raters"] == [0.5, 0.5]
    assert preference(votes[:1], "quality")["over_prompts"] is None


def test_who_is_inattentive():
    def rater(name, answers):
        return [judge(name, number, number, right, False, is_check=True) for number, right in enumerate(answers)]

    votes = rater("good", [True] * 4) + rater("once", [True, True, True, False]) + rater("twice", [True, False] * 2)
    votes.append(judge("unchecked", 0, 0, False, False))
    assert inattentive(votes, 0.25) == {"twice"}
    assert inattentive(votes, 0.2) == {"once", "twice"}
    assert inattentive(votes, 1.0) == set()


def test_checks_are_no_judgments_of_the_methods(votes):
    only_checks = [vote for vote in votes if vote.trial.is_check]
    assert results_of(only_checks)["all raters"]["quality"]["judgments"] == 0
    assert results_of(votes)["raters"]["without an attention check"] == 0
    without = [vote for vote in votes if not vote.trial.is_check]
    assert results_of(without)["raters"]["without an attention check"] == 6


def test_chosen_sides():
    votes = [judge("r", number, number, number % 2 == 0, True) for number in range(40)]
    lefts = sum(vote.quality == "left" for vote in votes)
    found = preference(votes, "quality")["chose_left"]
    assert found == {"share": lefts / 40, "interval": wilson(lefts, 40)}


def test_for_people_and_for_programs(votes):
    text = summary(results_of(votes))
    for part in ("A: ours", "6 raters, of whom 1 failed", "80.0% of 25 judgments", "66.7% of 30 judgments"):
        assert part in text
    assert "alpha unknown" in text
    json.dumps(results_of(votes), allow_nan=False)


def test_before_the_first_vote():
    found = results_of([])
    assert found["all raters"]["text"]["prefers_a"] is None
    assert "no judgments" in summary(found)
    json.dumps(found, allow_nan=False)
