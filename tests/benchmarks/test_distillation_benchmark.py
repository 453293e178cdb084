"""Students beside their teacher: what is counted, and what it is compared with."""

import dataclasses

import numpy as np
import pytest
from random_runs import random_run, write_run

from benchmarks import distillation


@pytest.fixture(scope="module")
def teacher():
    run = random_run()
    run.config.clip.update({"frames": 3, "size": 8})
    return run


def test_calls_and_errors(teacher, monkeypatch):
    monkeypatch.setattr(distillation, "REFERENCE", ("ddim", 4))
    monkeypatch.setattr(distillation, "TEACHER_WAYS", (("ddim", 2),))
    config = teacher.config.copy_and_resolve_references()
    config.sampling.guidance = 1.0
    config.distillation = {"steps": 2}
    student = dataclasses.replace(teacher, config=config)
    rows, clips = distillation.measure(teacher, [student], ["a red circle", "a blue star"])
    assert [row["calls"] for row in rows] == [8, 4, 2]
    assert rows[0]["error"] == 0
    for row in rows[1:]:
        expected = np.square(clips[row["way"]] - clips["teacher, ddim, 4 steps"]).mean()
        np.testing.assert_allclose(row["error"], expected, rtol=1e-6)
        assert expected > 1e-5


def test_runs_that_are_no_students(teacher, tmp_path):
    write_run(teacher, tmp_path / "run")
    with pytest.raises(ValueError, match=r"--student=.*run was not trained by configs/distill.py"):
        distillation.load_students(teacher, [str(tmp_path / "run")])
