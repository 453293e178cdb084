"""Trainings of the `test` variants inside of the test's process, and what they leave."""

import os
import pathlib
import subprocess
import sys

from lumiere_jax import train
from lumiere_jax.checkpoints.checkpointing import load_tree
from lumiere_jax.checkpoints.run_directory import RunDirectory

ROOT = pathlib.Path(__file__).parent.parent


def small_config(module, data_dir, **training):
    """The `test` variant of a file of configs/, with its data in `data_dir` and some fields of `training` changed."""
    config = module.get_config("test")
    config.dataset.data_dir = str(data_dir)
    config.training.update(training)
    return config


def state_of(workdir, step=None):
    """The whole training state of a step, by default the newest: parameters, averages, optimiser, health."""
    step = RunDirectory(workdir).checkpoints().latest_step() if step is None else step
    return load_tree(pathlib.Path(workdir) / "checkpoints" / str(step))


def at_step(monkeypatch, step, happening):
    """Has `happening()` happen at the end of a step of a training, before it is looked at whether to go on."""
    act = train.act

    def observed(metrics, now, *arguments):
        act(metrics, now, *arguments)
        if now == step:
            happening()

    monkeypatch.setattr(train, "act", observed)


def command(module, *arguments):
    """Starts `python -m lumiere_jax.MODULE`, with what conftest.py sets."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", f"lumiere_jax.{module}", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env=environment, **pipes)
