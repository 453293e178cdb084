"""Random orders and sides: balanced, different for each rater, the same for the same one."""

import collections
import secrets

import numpy as np
import pytest

from lumiere_jax.study.schedule import Design, next_pair, plan_of

DESIGN = Design(tuple(map(str, range(23))), seed=3, judgments=20, check_every=6)


def raters(count):
    return [f"{number:032x}" for number in range(count)]


def test_sides_are_balanced_for_each_rater():
    for rater in raters(50):
        for is_check in (False, True):
            sides = [slot.first_left for slot in plan_of(DESIGN, rater).slots if slot.is_check == is_check]
            assert abs(2 * sum(sides) - len(sides)) <= 1


def test_sides_do_not_depend_on_place_or_pair():
    plans = [plan_of(DESIGN, rater) for rater in raters(2000)]
    by_place = np.mean([[slot.first_left for slot in plan.slots] for plan in plans], axis=0)
    np.testing.assert_allclose(by_place, 0.5, atol=4.5 * 0.5 / np.sqrt(2000))
    of_pair = collections.defaultdict(list)
    for plan in plans:
        sides = [slot.first_left for slot in plan.slots if not slot.is_check]
        for pair, side in zip(plan.order[:20], sides, strict=True):
            of_pair[pair].append(side)
    np.testing.assert_allclose([np.mean(sides) for sides in of_pair.values()], 0.5, atol=4.5 * 0.5 / np.sqrt(1700))


def test_a_check_in_each_block_at_a_random_place():
    places = collections.Counter()
    for rater in raters(300):
        kinds = [slot.is_check for slot in plan_of(DESIGN, rater).slots]
        assert (len(kinds), sum(kinds)) == (24, 4)
        blocks = np.split(np.array(kinds), [7, 14, 21])
        assert [block.sum() for block in blocks] == [1, 1, 1, 1]
        places[int(blocks[0].argmax())] += 1
    assert set(places) == set(range(7))
    assert max(places.values()) < 80


def test_checks_are_the_studys_and_none_comes_twice():
    for rater in raters(20):
        assert sorted(plan_of(DESIGN, rater).checks) == sorted(DESIGN.checked_pairs())
    assert len(set(DESIGN.checked_pairs())) == DESIGN.checks == 4
    one_each = Design(("a", "b"), 0, judgments=2, check_every=1)
    assert sorted(one_each.checked_pairs()) == [0, 1]


def test_no_checks():
    design = Design(DESIGN.prompts, 3, 20, 0)
    plan = plan_of(design, raters(1)[0])
    assert (design.checks, plan.checks, [slot.is_check for slot in plan.slots]) == (0, [], [False] * 20)


def test_each_rater_has_an_order_of_their_own_which_stays():
    one, other = secrets.token_hex(16), secrets.token_hex(16)
    assert plan_of(DESIGN, one) == plan_of(DESIGN, one)
    assert plan_of(DESIGN, one).order != plan_of(DESIGN, other).order
    another = Design(DESIGN.prompts, 4, 20, 6)
    assert plan_of(another, one).order != plan_of(DESIGN, one).order
    assert sorted(plan_of(DESIGN, one).order) == list(range(23))


def test_what_was_seen_least_comes_first():
    assert next_pair([2, 0, 1], {2}, {0: 1}) == 1
    assert next_pair([2, 0, 1], set(), {0: 1, 1: 1, 2: 1}) == 2
    assert next_pair([2, 0, 1], set(), {2: 1, 0: 1, 1: 2}) == 2


@pytest.mark.parametrize("fields", [(0, 0, 1), (0, 3, 1), (0, 1, -1), (-1, 1, 1)])
def test_designs_that_cannot_be(fields):
    with pytest.raises(ValueError, match=r"give 1 to 2|below 0"):
        Design(("a", "b"), *fields)
