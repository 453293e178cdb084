"""Training in two processes: the same as in one; ended and continued together, on any number of them."""

import signal
import time

import jax
import numpy as np
import pytest
from small_runs import state_of
from training_processes import command_line, training_server

from lumiere_jax.checkpoints.checkpointing import named_leaves
from lumiere_jax.checkpoints.run_directory import RunDirectory

STEPS = 30
LONG = 1000  # steps that no test waits for


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with training_server(jax.config.jax_compilation_cache_dir, tmp_path_factory.mktemp("logs")) as server:
        yield server


def arguments(workdir, data_dir, steps=STEPS, checkpoint_every=STEPS):
    return command_line(workdir, data_dir, steps=steps, checkpoint_every=checkpoint_every)


@pytest.fixture(scope="module")
def undisturbed(server, data_dir, tmp_path_factory):
    """A run in one process of one device."""
    workdir = tmp_path_factory.mktemp("one process")
    training = server.start(*arguments(workdir, data_dir))
    assert training.wait() == 0, training.printed()
    return workdir


def newest_step(workdir):
    return RunDirectory(workdir).checkpoints().latest_step()


def wait_all(trainings):
    """The exit codes of all processes of a run, which must be the same."""
    codes = {training.wait() for training in trainings}
    assert len(codes) == 1, "\n\n".join(training.printed() for training in trainings)
    return codes.pop()


def assert_same_up_to_rounding(workdir, other):
    """Every array, relative to its own size."""
    one, two = named_leaves(state_of(workdir)), named_leaves(state_of(other))
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        # Softmax does not see these keys' bias: its gradient is rounding alone, which AdamW makes as large as any.
        if not name.endswith("text_pooling/k_proj/bias"):
            difference = np.linalg.norm(np.subtract(leaf, two[name], dtype=np.float64))
            assert difference <= 1e-3 * np.linalg.norm(leaf), name


@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_process_ends_all_and_all_continue(server, undisturbed, data_dir, tmp_path, told):
    """Told is the coordinator, or the other one; continued by two processes, or by one with two devices."""
    # Saving after every step makes steps long: JAX looks for the signal once a second.
    trainings = server.start_several(2, *arguments(tmp_path, data_dir, steps=LONG, checkpoint_every=1))
    trainings[0].wait_for_step(tmp_path, 2)
    trainings[told].send(signal.SIGTERM)
    assert wait_all(trainings) == 0, trainings[0].printed()
    step = newest_step(tmp_path)
    assert f"is saved at step {step} of {LONG}. The same command continues it" in trainings[0].printed()
    assert 2 <= step < STEPS
    line = arguments(tmp_path, data_dir)
    again = server.start_several(2, *line) if told == 0 else [server.start(*line, devices=2)]
    assert wait_all(again) == 0, again[0].printed()
    assert f"continuing from step {step}" in again[0].printed()
    assert_same_up_to_rounding(tmp_path, undisturbed)


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_process_is_killed_the_other_ends_soon(server, data_dir, tmp_path, killed):
    trainings = server.start_several(2, *arguments(tmp_path, data_dir, steps=LONG, checkpoint_every=2))
    trainings[0].wait_for_step(tmp_path, 2)
    trainings[killed].send(signal.SIGKILL)
    began = time.monotonic()
    assert trainings[1 - killed].wait(timeout=120) != 0
    print(f"the other process ended after {time.monotonic() - began:.1f} s")
    assert newest_step(tmp_path) >= 2
    assert trainings[killed].wait() == -signal.SIGKILL


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("dataset.path", "no_such_set", "error: "), ("unet.norm_num_groups", 0, "ZeroDivisionError")],
)
def test_an_error_in_one_process_ends_both(server, data_dir, tmp_path, failing, field, value, message):
    """One that is told in a line, one that nobody thought of: the other process does not wait for it."""
    line = arguments(tmp_path, data_dir, steps=LONG)
    trainings = server.start_several(2, *line, more={failing: f"--config.{field}={value}"})
    assert trainings[failing].wait(timeout=120) == 1
    began = time.monotonic()
    assert trainings[1 - failing].wait(timeout=120) != 0
    print(f"the other process ended after {time.monotonic() - began:.1f} s")
    assert message in trainings[failing].printed()
