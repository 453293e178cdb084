"""The price of approximations: what is counted as work, and all of it once on the smallest run."""

import numpy as np
import pytest
from random_runs import random_run, write_run

from benchmarks import approximations
from benchmarks.approximations import Way, call_flops, choices, draw, measure, table, work
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.diffusion.approximations import Approximations
from lumiere_jax.pipelines.generation import sampling_settings


def test_work_is_that_of_the_calls():
    run = random_run()
    frames, size = run.config.clip.frames, run.config.clip.size
    of_call = [
        call_flops(run.model, run.config.text.length, (number, size, size), shallow)
        for number, shallow in ((frames, None), (frames // 2, None), (frames, 1), (frames, 2))
    ]
    whole, half, shallow, less_shallow = of_call
    assert half == pytest.approx(whole / 2, rel=0.1)
    assert 0 < shallow < less_shallow < whole

    def of(**fields):
        way = Way("", "", 7, Approximations(**fields))
        return work(run.model, run.config, sampling_settings(run.config, **choices(way)))

    # 7 guided steps at t = 1, 6/7, ..., 1/7: two calls each
    assert of() == pytest.approx(14 * whole)
    assert of(half_rate_from=0.5) == pytest.approx(2 * (4 * half + 3 * whole))
    assert of(deep_features_every=3) == pytest.approx(2 * (3 * whole + 4 * shallow))
    assert of(deep_features_every=2, shallow_layers=2) == pytest.approx(2 * (4 * whole + 3 * less_shallow))


def test_all_of_it(tmp_path, monkeypatch):
    write_run(random_run(), tmp_path)
    ways = (
        Way("fewer steps", "exact", 2),
        Way("deep features", "deep", 2, Approximations(2)),
        Way("int8", "int8", 2, int8=True),
    )
    monkeypatch.setattr(approximations, "WAYS", ways)
    monkeypatch.setattr(approximations, "REFERENCE_STEPS", 2)
    run = load_run(tmp_path)
    rows, clips = measure(run, ["a red circle", "a blue star", "a green cross"], batch_size=2)
    assert [row["error"] > 1e-9 for row in rows] == [False, True, True]
    np.testing.assert_allclose(rows[2]["error"], np.square(clips["int8"] - clips["exact"]).mean(), rtol=1e-5)
    assert [row["flops"] / rows[0]["flops"] for row in rows][::2] == [1.0, 1.0]
    assert rows[1]["if_l"] < 0.6 * rows[0]["if_l"]
    assert "| int8 |" in table(rows)
    assert {line.get_label() for line in draw(rows).axes[0].lines} == {"fewer steps", "deep features", "int8"}
