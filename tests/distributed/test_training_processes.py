"""Training and sampling in several processes: as in one; ended and continued together, on any number."""

import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image
from random_runs import random_run, write_run
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
    # Four processes divide the validation clips, too.
    return command_line(workdir, data_dir, steps=steps, checkpoint_every=checkpoint_every, validation_clips=4)


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
    """Every array, relative to its own size: thirty steps of AdamW leave 1.01e-3 at most of another order of sums."""
    one, two = named_leaves(state_of(workdir)), named_leaves(state_of(other))
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        # Softmax does not see these keys' bias: its gradient is rounding alone, which AdamW makes as large as any.
        if not name.endswith("text_pooling/k_proj/bias"):
            difference = np.linalg.norm(np.subtract(leaf, two[name], dtype=np.float64))
            assert difference <= 2e-3 * np.linalg.norm(leaf), name


@pytest.mark.parametrize("told", [0, pytest.param(1, marks=pytest.mark.slow)])
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


def test_four_processes_then_two_then_one_train_a_run(server, undisturbed, data_dir, tmp_path):
    for count, steps in ((4, 10), (2, 20), (1, STEPS)):
        line = arguments(tmp_path, data_dir, steps=steps)
        trainings = server.start_several(count, *line) if count > 1 else [server.start(*line)]
        assert wait_all(trainings) == 0, trainings[0].printed()
        assert newest_step(tmp_path) == steps
    assert_same_up_to_rounding(tmp_path, undisturbed)


def sampling(base, super_resolution, output, **flags):
    """Six clips of five frames in two batches, the second of them not full."""
    prompts = ["a red circle", "a blue star", "a green square", "a star", "a square", "a circle"]
    flags = {"checkpoint": base, "super_resolution": super_resolution, "output": output, "frames": 5} | flags
    return [*(f"--{name}={value}" for name, value in flags.items()), *(f"--prompt={prompt}" for prompt in prompts)]


def sheets(directory):
    """All frames of each clip, without loss."""
    return {file.name: np.asarray(Image.open(file)).astype(int) for file in directory.glob("*_sheet.png")}


@pytest.fixture(scope="module")
def super_resolution(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("super-resolution")
    write_run(random_run(super_resolution=True), workdir)
    return workdir


def test_several_processes_sample_the_clips_of_one(server, undisturbed, super_resolution, tmp_path):
    """Four that divide a batch, and two that divide the height of each clip; the first process alone writes."""
    line = sampling(undisturbed, super_resolution, tmp_path / "one", batch_size=4)
    one = server.start(*line, module="sample")
    assert one.wait() == 0, one.printed()
    expected = sheets(tmp_path / "one")
    assert len(expected) == 12
    for count, rows in ((4, 1), (2, 2)):
        output, elsewhere = tmp_path / f"{count}", tmp_path / "elsewhere"
        line = sampling(undisturbed, super_resolution, output, batch_size=4, mesh_rows=rows)
        others = dict.fromkeys(range(1, count), f"--output={elsewhere}")
        samplings = server.start_several(count, *line, more=others, module="sample")
        assert wait_all(samplings) == 0, samplings[0].printed()
        assert [len(process.printed().split(".mp4  ")) - 1 for process in samplings] == [12] + [0] * (count - 1)
        assert not elsewhere.exists()
        found = sheets(output)
        assert found.keys() == expected.keys()
        for name, sheet in expected.items():
            assert np.abs(found[name] - sheet).max() <= 1, name


def test_processes_that_would_sample_different_prompts(server, undisturbed, tmp_path):
    line = [f"--checkpoint={undisturbed}", f"--output={tmp_path}", "--prompt=a red circle"]
    samplings = server.start_several(2, *line, more={1: "--prompt=a blue star"}, module="sample")
    assert wait_all(samplings) == 1
    for process in samplings:
        assert "error: the prompts and how they are sampled must be the same for all processes" in process.printed()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
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
