"""The SLURM script, with an `srun` that runs what it is given once, and a `scontrol` that records its calls."""

import os
import pathlib
import subprocess

import pytest

from lumiere_jax import train

ROOT = pathlib.Path(__file__).parents[2]


def submit(tmp_path, python, *arguments):
    programs = {
        "srun": 'echo "srun $*" >> calls\nshift\nexec "$@"',
        "scontrol": 'echo "scontrol $*" >> calls',
        "python": python,
    }
    for name, content in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"), "SLURM_JOB_ID": "7"}
    command = ["bash", ROOT / "launch/slurm.sh", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )
    calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    return done, calls


def test_a_finished_training_is_not_put_back(tmp_path):
    done, calls = submit(tmp_path, 'echo "$LUMIERE_DISTRIBUTED $*"', "--config=a b.py", "--workdir=w")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 -m lumiere_jax.train --config=a b.py --workdir=w\n"
    assert calls == [f"srun --kill-on-bad-exit=1 {tmp_path}/python -m lumiere_jax.train --config=a b.py --workdir=w"]


def test_a_training_that_was_asked_to_end_is_put_back(tmp_path):
    sentence = "The same command continues it"
    assert sentence in pathlib.Path(train.__file__).read_text()  # what the script looks for
    done, calls = submit(tmp_path, f'echo "asked to end. {sentence}"', "--config=a.py")
    assert done.returncode == 0, done.stderr
    assert calls[1:] == ["scontrol requeue 7"]


@pytest.mark.parametrize("code", [1, 137])
def test_a_training_that_failed_is_not_put_back(tmp_path, code):
    done, calls = submit(tmp_path, f"exit {code}", "--config=a.py")
    assert done.returncode == code
    assert len(calls) == 1


def test_without_flags_it_says_how(tmp_path):
    done, calls = submit(tmp_path, "true")
    assert done.returncode == 2
    assert "sbatch --nodes=2" in done.stderr
    assert calls == []
