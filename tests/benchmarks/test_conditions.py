"""The conditional model beside zero-shot replacement: all of it once, on the smallest runs."""

import dataclasses

import numpy as np
import pytest
from random_runs import random_run

from benchmarks.conditions import VERSIONS, check, conditions, measure, table
from benchmarks.machine import machine
from benchmarks.temporal_seams import rendered_clips


def test_all_of_it():
    base, conditional = random_run(), random_run(conditional=True)
    check(conditional, base)
    clips, _ = rendered_clips(2, 16, 4, 8.0)
    rows, shown = measure(conditional, base, clips, ["a red circle", "a star"])
    given = conditions(clips)
    assert [row["given"] for row in rows] == list(given)
    for row, each in zip(rows, given.values(), strict=True):
        assert row["share"] == pytest.approx(each.mask.mean())
        assert row["zero-shot, given"] == pytest.approx(0, abs=1e-10)
        assert row["resampled 4 times, given"] == pytest.approx(0, abs=1e-10)
        assert abs(row["resampled 4 times, made"] - row["zero-shot, made"]) > 1e-4
        assert row["conditional, given"] > 1e-3
        assert row["zero-shot, made"] > 1e-3
        np.testing.assert_array_equal(each.video * each.mask, clips * each.mask)
    assert [row["share"] for row in rows] == [0.25, 0.5, 0.5, 0.75, 0.25]
    assert len(shown) == 5 * len(rows)
    np.testing.assert_array_equal(shown[4], clips[0])
    assert table(rows).splitlines()[2].startswith("| first frame | 0.2500 | ")


def test_what_is_said_of_the_machine():
    assert {"jax", "flax"} <= machine(VERSIONS)["versions"].keys()


def test_runs_that_cannot_be_compared():
    base, conditional = random_run(), random_run(conditional=True)
    with pytest.raises(ValueError, match="--checkpoint=random is no conditional model"):
        check(base, base)
    with pytest.raises(ValueError, match="--base=random is no Space-Time U-Net's run"):
        check(conditional, conditional)
    longer = base.config.copy_and_resolve_references()
    longer.clip.frames = 8
    with pytest.raises(ValueError, match="have other clips"):
        check(conditional, dataclasses.replace(base, config=longer))
