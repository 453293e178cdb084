"""What stops a run, and that the same command then continues it to the same end: one process.

Several processes: distributed/test_training_processes.py. Half an hour of it: soak/soak.py. A trained text encoder is
part of these runs (`text_to_image:test`); the frozen one of an inflated run: test_train.py.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import threading
import time

import jax
import numpy as np
import pytest
from small_runs import at_step, small_config, state_of
from training_processes import command_line, training_server

from configs import text_to_image
from lumiere_jax import train, train_guards, train_setup
from lumiere_jax.checkpoints.checkpointing import CheckpointError, tree_hash
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.data.video_io import encode_mp4
from lumiere_jax.distributed.preemption import Preempted, PreemptionNotice
from lumiere_jax.event_file import EventFile

STEPS = 8
# Everything that a state can hold; a schedule that does not depend on where the run ends.
FIELDS = {
    "steps": STEPS,
    "ema_decays": (0.9, 0.5),
    "schedule": "constant",
    "spike_deviations": 10.0,
    "checkpoint_every": 4,
    "keep_checkpoints": 10,
    "preview_every": 0,
    "validate_every": 0,
}


def config_of(data_dir, **training):
    return small_config(text_to_image, data_dir, **(FIELDS | training))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    """A run that nothing stopped, and the metrics of its steps."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        metrics = metrics_of_steps(monkeypatch)
        train.train(config_of(data_dir), workdir)
    return workdir, metrics


def metrics_of_steps(monkeypatch):
    """What the steps of the trainings from here on measure, by the step's number."""
    found, act = {}, train.act

    def recorded(metrics, step, *arguments):
        found[step] = dict(metrics)
        act(metrics, step, *arguments)

    monkeypatch.setattr(train, "act", recorded)
    return found


def assert_same_state(workdir, other, step=None):
    one, two = state_of(workdir, step), state_of(other, step)
    assert one.keys() == {"step", "parameters", "averages", "optimizer", "health"}
    for name in one:
        assert tree_hash({name: one[name]}) == tree_hash({name: two[name]}), name


def send_to_this_process(*signals):
    """One after the other: two of a kind that arrive together are one. The training's handler removes itself."""
    for number in signals:
        handler = signal.getsignal(number)
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 10
        while signal.getsignal(number) is handler and time.monotonic() < deadline:
            time.sleep(0.001)


# ------------------------------------------------------------------------------------ stopped and continued


def test_asked_to_end_then_continued_to_its_end_and_beyond(undisturbed, data_dir, tmp_path, monkeypatch, capsys):
    """Between two checkpoints: every part of the state and every metric go on as if nothing had been."""
    metrics = metrics_of_steps(monkeypatch)
    at_step(monkeypatch, 3, lambda: send_to_this_process(signal.SIGTERM))
    at_step(monkeypatch, 5, lambda: send_to_this_process(signal.SIGINT))
    short, long = config_of(data_dir, steps=4), config_of(data_dir)
    with pytest.raises(Preempted, match=r"is saved at step 3 of 4. The same command continues it"):
        train.train(short, tmp_path)
    assert RunDirectory(tmp_path).checkpoints().latest_step() == 3
    train.train(short, tmp_path)
    assert "continuing from step 3" in capsys.readouterr().out
    # Also: what the undisturbed run saved in passing is what it held at that step.
    assert_same_state(tmp_path, undisturbed[0], step=4)
    train.train(short, tmp_path)
    assert "nothing to do: 4 of 4 steps are done" in capsys.readouterr().out
    with pytest.raises(Preempted, match=r"is saved at step 5 of 8"):
        train.train(long, tmp_path)
    train.train(long, tmp_path)
    assert "continuing from step 5" in capsys.readouterr().out
    assert_same_state(tmp_path, undisturbed[0])
    assert metrics == undisturbed[1]
    assert metrics.keys() == set(range(1, STEPS + 1))


def test_a_second_ctrl_c_ends_at_once(data_dir, tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda: send_to_this_process(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train.train(config_of(data_dir, checkpoint_every=2), tmp_path)
    assert RunDirectory(tmp_path).checkpoints().latest_step() == 2


def test_a_notice_leaves_the_signals_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with PreemptionNotice() as notice:
        assert not notice.reached()
        send_to_this_process(signal.SIGINT)
        assert notice.reached()
    with PreemptionNotice():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_notice_outside_of_the_main_thread_is_none():
    reached = []

    def in_thread():
        with PreemptionNotice() as notice:
            reached.append(notice.reached())

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert reached == [False]


def test_without_its_newest_checkpoint(undisturbed, data_dir, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    assert load_run(workdir).step == 4
    train.train(config_of(data_dir), workdir)
    assert "continuing from step 4" in capsys.readouterr().out
    assert_same_state(workdir, undisturbed[0])


def test_its_newest_checkpoint_damaged(undisturbed, data_dir, tmp_path):
    """Not passed over in silence: the message says what to do."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    for file in (workdir / "checkpoints" / "8").rglob("d/*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoints/8 is damaged.*remove it"):
        train.train(config_of(data_dir, steps=10), workdir)


def test_config_is_written_whole_or_not_at_all(undisturbed, data_dir, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    before, write = (workdir / "config.json").read_text(), pathlib.Path.write_bytes

    def cut_short(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", cut_short)
    with pytest.raises(OSError, match="No space left"):
        train.train(config_of(data_dir), workdir)
    assert (workdir / "config.json").read_text() == before


# ------------------------------------------------------------------------------------ killed


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with training_server(jax.config.jax_compilation_cache_dir, tmp_path_factory.mktemp("logs")) as server:
        yield server


@pytest.mark.slow
def test_killed_at_random_moments(server, data_dir, tmp_path, request):
    """kill -9, --kills times in a row (docs/training_soak.md); of several processes: soak/soak.py."""
    kills = request.config.getoption("kills")
    seed, steps = 0, 2 * kills + 4
    draw = random.Random(seed)
    whole = server.start(*command_line(tmp_path / "whole", data_dir, steps=steps, checkpoint_every=steps))
    assert whole.wait() == 0, whole.printed()
    workdir, complete = tmp_path / "run", 0
    arguments = command_line(workdir, data_dir, steps=steps, checkpoint_every=1)
    for number in range(1, kills + 1):
        training = server.start(*arguments)
        # In the start-up where it has no step of its own to do, else in a step or a save.
        target = draw.randint(complete, max(complete, 2 * number))
        training.wait_for_step(workdir, target)
        moment, checkpoints = time.monotonic() + draw.expovariate(1), RunDirectory(workdir).checkpoints()
        while time.monotonic() < moment and (checkpoints.latest_step() or 0) <= target:
            time.sleep(0.01)
        training.send(signal.SIGKILL)
        assert training.wait() == -signal.SIGKILL, training.printed()
        reached = checkpoints.latest_step() or 0
        assert target <= reached < steps, f"seed {seed}: {training.printed()}"
        expected = [f"continuing from step {complete}"] if complete else []
        continued = re.findall(r"continuing from step \d+", training.printed())
        assert continued == expected or (reached == complete and not continued), training.printed()
        half_written = [path.name for path in workdir.glob("checkpoints/*") if not path.name.isdecimal()]
        print(f"kill {number}: steps {complete} to {reached}, half-written: {half_written}", flush=True)
        complete = reached
    again = server.start(*arguments)
    assert again.wait() == 0, again.printed()
    assert f"continuing from step {complete}" in again.printed()
    assert tree_hash(state_of(workdir)) == tree_hash(state_of(tmp_path / "whole"))


@pytest.mark.slow
def test_sigterm_of_the_command_is_no_error(server, data_dir, tmp_path):
    training = server.start(*command_line(tmp_path, data_dir, steps=1000, checkpoint_every=1))
    training.wait_for_step(tmp_path, 2)
    training.send(signal.SIGTERM)
    assert training.wait() == 0, training.printed()
    step = RunDirectory(tmp_path).checkpoints().latest_step()
    assert f"is saved at step {step} of 1000. The same command continues it" in training.printed()
    assert "Traceback" not in training.printed()


# ------------------------------------------------------------------------------------ a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_event_file_on_a_full_disk(small_disk):
    """An error in the thread that trains; tensorboardX's own writer would wait for ever."""
    events = EventFile(small_disk, 1)
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OSError, match="No space left on device"):  # noqa: PT012
        for step in range(1000):
            events.add_scalar("loss", 1.0, step)
    (small_disk / "filler").unlink()
    events.close()


@pytest.mark.slow
def test_full_disk(server, data_dir, small_disk):
    workdir, filler = small_disk / "run", small_disk / "filler"
    arguments = command_line(workdir, data_dir, steps=5, checkpoint_every=1)
    first = server.start(*command_line(workdir, data_dir, steps=2, checkpoint_every=1))
    assert first.wait() == 0, first.printed()
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(free - 600_000))  # less than a checkpoint needs
    full = server.start(*arguments)
    assert full.wait() == 1, full.printed()
    assert f"error: {workdir}" in full.printed(), full.printed()
    assert "no space is left" in full.printed()
    assert "Traceback" not in full.printed(), full.printed()
    assert load_run(workdir).step >= 2
    filler.unlink()
    again = server.start(*arguments)
    assert again.wait() == 0, again.printed()
    assert RunDirectory(workdir).checkpoints().latest_step() == 5


# ------------------------------------------------------------------------------------ guards


def poison(monkeypatch, *steps, factor=np.nan):
    """The clips of these steps' batches are multiplied with `factor`."""
    training_batches_of = train_setup.training_batches_of

    def poisoned(config, encode, dataset, start_step):
        for number, batch in enumerate(training_batches_of(config, encode, dataset, start_step), start=start_step + 1):
            yield batch | ({"video": batch["video"] * np.float32(factor)} if number in steps else {})

    monkeypatch.setattr(train, "training_batches_of", poisoned)


def test_not_a_number_stops_the_run(data_dir, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, 5)
    message = r"step 5: loss nan, gradient norm nan is not finite. .*last good checkpoint stays.*on_nonfinite=skip"
    with pytest.raises(FloatingPointError, match=message):
        train.train(config_of(data_dir), tmp_path)
    assert RunDirectory(tmp_path).checkpoints().latest_step() == 4
    train.train(config_of(data_dir, on_nonfinite="skip"), tmp_path)
    assert "continuing from step 4" in capsys.readouterr().out
    state = state_of(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert (int(state["step"]), int(state["health"]["skipped"])) == (STEPS, 1)


def test_updates_left_out_are_counted_over_restarts_until_the_budget_is_used_up(
    data_dir, tmp_path, monkeypatch, capsys
):
    poison(monkeypatch, 2, 5, 7)
    at_step(monkeypatch, 3, lambda: send_to_this_process(signal.SIGTERM))
    config = config_of(data_dir, on_nonfinite="skip", skip_budget=2, checkpoint_every=6)
    with pytest.raises(Preempted):
        train.train(config, tmp_path)
    with pytest.raises(FloatingPointError, match=r"step 7: .*3 updates were left out by now, .*skip_budget=2"):
        train.train(config, tmp_path)
    printed = capsys.readouterr().out
    assert "step 2: loss nan, gradient norm nan is not finite: this update is left out, 1 of" in printed
    assert "step 5: loss nan, gradient norm nan is not finite: this update is left out, 2 of" in printed
    assert int(state_of(tmp_path)["health"]["skipped"]) == 2


@pytest.mark.parametrize("on_spike", ["report", "skip"])
def test_a_leap_of_the_loss(data_dir, tmp_path, monkeypatch, capsys, on_spike):
    monkeypatch.setattr(train_guards, "_WARM_UP", 3)
    poison(monkeypatch, 6, factor=100.0)
    train.train(config_of(data_dir, on_spike=on_spike, steps=6, checkpoint_every=5), tmp_path)
    assert "is a spike, the running mean of the loss is" in capsys.readouterr().out
    health = state_of(tmp_path)["health"]
    assert (int(health["spikes"]), int(health["skipped"])) == (1, int(on_spike == "skip"))
    is_left_out = tree_hash(state_of(tmp_path, 6)["parameters"]) == tree_hash(state_of(tmp_path, 5)["parameters"])
    assert is_left_out == (on_spike == "skip")


# ------------------------------------------------------------------------------------ another config, other data


def test_config_data_and_versions_are_kept(undisturbed):
    facts = json.loads((undisturbed[0] / "config.json").read_text())
    assert facts["config"]["training"]["steps"] == STEPS
    assert {len(sha256) for sha256 in facts["data"].values()} == {64}
    assert facts["data"].keys() == {"training", "validation"}
    assert facts["versions"]["jax"] == jax.__version__
    assert re.match(r"[0-9a-f]{40}(-dirty)?$|not a git checkout|unknown", facts["versions"]["git"])


def test_commit_is_that_of_the_package_wherever_it_is_started(tmp_path, monkeypatch):
    before = train_setup.versions()["git"]
    monkeypatch.chdir(tmp_path)
    assert train_setup.versions()["git"] == before
    monkeypatch.setenv("PATH", "")
    assert train_setup.versions()["git"] == "unknown: git is not installed"


def test_another_config_is_refused(undisturbed, data_dir):
    config = config_of(data_dir, learning_rate=5e-4, on_spike="skip")
    before = tree_hash(state_of(undisturbed[0]))
    with pytest.raises(ValueError, match="holds a run of another config") as refused:
        train.train(config, undisturbed[0])
    assert [*str(refused.value).splitlines()[1:]] == [
        "  training.learning_rate: 0.001 when it was started, 0.0005 now",
        "  training.on_spike: report when it was started, skip now",
    ]
    assert tree_hash(state_of(undisturbed[0])) == before


def test_data_may_move_but_not_change(data_dir, tmp_path, capsys):
    rng = np.random.default_rng(0)
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        clip = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
        (videos / f"{number}.mp4").write_bytes(encode_mp4(clip, 8, lossless=True))
        (videos / f"{number}.txt").write_text(f"caption number {number}")
    config = config_of(tmp_path / "prepared", steps=2)
    config.dataset.update({"name": "video_folder", "path": str(videos)})
    config.dataset.update({"stored_frames": 4, "stored_fps": 8.0, "stored_size": 16})
    config.text.vocab_size = 300
    train.train(config, tmp_path / "run")

    moved = tmp_path / "moved" / "videos"
    shutil.copytree(videos, moved)
    config.dataset.path, config.dataset.data_dir = str(moved), str(tmp_path / "prepared again")
    config.training.steps = 4
    train.train(config, tmp_path / "run")
    assert "continuing from step 2" in capsys.readouterr().out

    (moved / "1.txt").write_text("another caption")
    config.training.steps = 6
    line = r"contents of the training data: sha256 \w{12} when it was started, sha256 \w{12} now"
    with pytest.raises(ValueError, match=line):
        train.train(config, tmp_path / "run")
