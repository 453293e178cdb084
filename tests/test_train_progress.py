"""What is reported of a run, from made-up steps on a made-up clock."""

import io
import json
import math
import struct
import types

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lumiere_jax import train_progress
from lumiere_jax.data import video_io
from lumiere_jax.train_progress import Progress

CLIPS, IMAGES = (4, 8, 16, 16, 3), (12, 1, 16, 16, 3)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock.seconds +=` moves."""
    made_up = types.SimpleNamespace(seconds=1000.0)
    made_up.monotonic = lambda: made_up.seconds
    monkeypatch.setattr(train_progress, "time", made_up)
    return made_up


def progress_of(directory, last_step=100, first_step=0, log_every=4, **settings):
    fields = ml_collections.ConfigDict({"log_every": log_every})
    return Progress(directory, first_step, last_step, fields, **settings)


def take_step(progress, clock, step, seconds=2.0, waited=0.5, video_shape=CLIPS, **metrics):
    clock.seconds += seconds
    progress.step(step, {"loss": 1.0, **metrics}, waited, video_shape)


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def events(directory):
    """All events of the directory's files: length, checksum, event, checksum."""
    found = []
    for file in sorted(directory.glob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def summaries(directory):
    return {(value.tag, event.step): value for event in events(directory) for value in event.summary.value}


def test_means_and_throughput_of_a_window(tmp_path, clock):
    with progress_of(tmp_path) as progress:
        for step, loss in enumerate((8.0, 1.0, 2.0, 5.0), start=1):
            # The first step compiles: 100 seconds that no rate may contain.
            take_step(
                progress, clock, step, 100.0 if step == 1 else 2.0, loss=loss, is_spike=step % 2, skipped=float(step)
            )
        for step in range(5, 9):
            take_step(progress, clock, step, seconds=1.0, waited=0.0)
    first, second = records(tmp_path)
    expected = {"step": 4, "train/loss": 4.0, "train/is_spike": 0.5, "train/skipped": 4.0}
    rates = {"train/steps_per_second": 0.5, "train/clips_per_second": 2.0, "train/data_wait_share": 0.25}
    assert {name: first[name] for name in first if name != "time"} == expected | rates
    assert (second["train/steps_per_second"], second["train/clips_per_second"]) == (1.0, 4.0)
    assert second["train/data_wait_share"] == 0.0
    shown = summaries(tmp_path)
    for record in (first, second):
        for name in record.keys() - {"step", "time"}:
            assert shown[name, record["step"]].simple_value == pytest.approx(record[name])


def test_what_is_not_training_is_no_time_of_a_step(tmp_path, clock):
    with progress_of(tmp_path, log_every=2) as progress:
        take_step(progress, clock, 1)
        with progress.pause():
            clock.seconds += 50.0
        take_step(progress, clock, 2)
        take_step(progress, clock, 3)
        with progress.pause():
            clock.seconds += 50.0
        take_step(progress, clock, 4)
    assert [record["train/steps_per_second"] for record in records(tmp_path)] == [0.5, 0.5]


def test_clips_and_single_frames_are_counted_apart(tmp_path, clock):
    at_peak = {CLIPS: 1.2, IMAGES: 0.3}
    with progress_of(tmp_path, log_every=6, seconds_at_peak=at_peak.__getitem__) as progress:
        for step in range(1, 7):  # one of each shape compiles: two steps of either are left
            is_image = step % 2 == 1
            compiles = 60.0 if step < 3 else 0.0
            take_step(
                progress, clock, step, compiles + (1.0 if is_image else 3.0), video_shape=IMAGES if is_image else CLIPS
            )
    (record,) = records(tmp_path)
    assert record["train/clips_per_second"] == 8 / 8.0
    assert record["train/images_per_second"] == 24 / 8.0
    assert record["train/steps_per_second"] == 4 / 8.0
    assert record["train/model_flop_utilisation"] == pytest.approx((2 * 1.2 + 2 * 0.3) / 8.0)


def test_utilisation_is_not_shown_where_the_peak_is_not_known(tmp_path, clock):
    with progress_of(tmp_path, log_every=1) as progress:
        take_step(progress, clock, 1)
        take_step(progress, clock, 2)
    compiled, timed = records(tmp_path)
    assert compiled.keys() == {"step", "time", "train/loss"}
    assert "train/model_flop_utilisation" not in timed


def test_means_are_of_finite_values(tmp_path, clock):
    with progress_of(tmp_path, log_every=2) as progress:
        take_step(progress, clock, 1, loss=math.nan, gradient_norm=math.nan)
        take_step(progress, clock, 2, loss=3.0, gradient_norm=math.inf)
    (record,) = records(tmp_path)
    assert (record["train/loss"], record["train/gradient_norm"]) == (3.0, None)


def test_waiting_for_data_is_said_but_not_at_every_window(tmp_path, clock, capsys):
    def windows(count, waited):
        for _ in range(count):
            for _ in range(2):
                progress.number += 1
                take_step(progress, clock, progress.number, seconds=1.0, waited=waited)

    with progress_of(tmp_path, last_step=1000, log_every=2) as progress:
        progress.number = 0
        take_step(progress, clock, 1, seconds=100.0, waited=99.0)  # compilation: of no window
        progress.number = 1
        take_step(progress, clock, 2, seconds=1.0, waited=0.1)
        progress.number = 2
        windows(3, waited=0.5)
        assert "waiting for data" not in capsys.readouterr().out
        windows(1, waited=0.75)
        said = capsys.readouterr().out
        assert "warning: step 10: 75% of the time (0.75 s a step) went in waiting for data" in said
        assert "dataset.threads" in said
        assert "lumiere_jax.prepare_data" in said
        windows(20, waited=0.75)
        assert "warning" not in capsys.readouterr().out
        windows(1, waited=0.75)
        assert "75% of the time" in capsys.readouterr().out


def test_other_processes_show_and_write_nothing(tmp_path, clock, capfd):
    with progress_of(tmp_path / "run", log_every=1, is_shown=False) as progress:
        for step in (1, 2):
            take_step(progress, clock, step, waited=2.0)
        with progress.pause():
            progress.validation(2, {"loss": jnp.ones(())}, {"a": jnp.ones(())})
            progress.preview(2, tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_validation_and_gates(tmp_path, clock, capsys):
    losses = {"loss": jnp.float32(0.25), "image_model_loss": jnp.float32(0.5)}
    gates = {f"unet/down/{block}": jnp.float32(block / 8) for block in range(5)}
    with progress_of(tmp_path) as progress:
        progress.validation(0, losses, dict.fromkeys(gates, jnp.zeros(())))
        progress.validation(3, losses, gates)
        progress.validation(4, {"loss": jnp.float32(0.25)})
    assert "step 3: validation loss 0.25000 | the image model, frame by frame: 0.50000" in capsys.readouterr().out
    shown = summaries(tmp_path)
    assert shown["validation/image_model_loss", 3].simple_value == 0.5
    assert shown["gate_norms/unet/down/4", 3].simple_value == 0.5
    histogram = shown["gate_norms", 3].histo
    assert (histogram.num, histogram.min, histogram.max) == (5, 0.0, 0.5)
    assert shown["gate_norms", 0].histo.sum == 0.0
    assert records(tmp_path)[1]["gate_norms/unet/down/2"] == 0.25
    assert records(tmp_path)[2].keys() == {"step", "time", "validation/loss"}


def test_previews_move_in_tensorboard(tmp_path, clock):
    clip = np.linspace(-1, 1, 5 * 16 * 24 * 3, dtype=np.float32).reshape(5, 16, 24, 3)
    step_directory = tmp_path / "previews" / "step_000007"
    step_directory.mkdir(parents=True)
    video_io.write_gif(step_directory / "000_a_circle.gif", clip, 8.0)
    video_io.write_contact_sheet(step_directory / "sheet.png", [clip])
    with progress_of(tmp_path) as progress:
        progress.preview(7, step_directory)
    shown = summaries(tmp_path)
    moving, sheet = shown["preview/000_a_circle", 7].image, shown["preview", 7].image
    with Image.open(io.BytesIO(moving.encoded_image_string)) as picture:
        assert (picture.format, picture.n_frames, picture.size) == ("GIF", 5, (moving.width, moving.height))
    with Image.open(io.BytesIO(sheet.encoded_image_string)) as picture:
        assert (picture.format, picture.size) == ("PNG", (sheet.width, sheet.height))


def test_a_resumed_run_has_the_history_of_an_undisturbed_one(tmp_path, clock):
    def run(directory, first_step, last_step):
        with progress_of(directory, first_step=first_step, log_every=2) as progress:
            for step in range(first_step + 1, last_step + 1):
                take_step(progress, clock, step, loss=1.0 / step)

    run(tmp_path / "whole", 0, 12)
    run(tmp_path / "cut", 0, 9)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "tr')
    run(tmp_path / "cut", 4, 12)
    losses = [[(r["step"], r["train/loss"]) for r in records(tmp_path / name)] for name in ("cut", "whole")]
    assert losses[0] == losses[1]
    # TensorBoard hides what the first start had written of step 5 and on.
    starts = [event.step for event in events(tmp_path / "cut") if event.session_log.status == SessionLog.START]
    assert starts[-1] == 5


# ------------------------------------------------------------------------------------ the page that it writes


def page(directory):
    return (directory / "index.html").read_text()


def test_page_says_how_the_run_stands(tmp_path, clock):
    with progress_of(tmp_path, last_step=8) as progress:
        assert "has just started" in page(tmp_path)
        for step in range(1, 8):
            take_step(progress, clock, step, seconds=200.0)
            clock.seconds += 40.0
        progress.preview(7, written_sheet(tmp_path))
        # One step is left; the six since the first took 240 s each.
        assert "step 7 of 8 · 4 min left" in page(tmp_path)
        assert 'http-equiv="refresh"' in page(tmp_path)
        take_step(progress, clock, 8)
    assert "all steps are done" in page(tmp_path)
    assert "<title>100% " in page(tmp_path)
    assert 'http-equiv="refresh"' not in page(tmp_path)


def written_sheet(directory):
    step_directory = directory / "previews" / "step_000007"
    step_directory.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(step_directory / "sheet.png")
    return step_directory


def test_page_is_not_drawn_at_every_window(tmp_path, clock):
    with progress_of(tmp_path, log_every=1) as progress:
        drawn = []
        for step in range(1, 40):
            take_step(progress, clock, step, seconds=2.0)
            drawn.append(page(tmp_path))
        assert len(set(drawn)) == 3  # at the start, then after 30 and 60 of 78 seconds


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FloatingPointError("step 3: <loss> is not finite"), "FloatingPointError: step 3: &lt;loss&gt; is not finite"),
        (KeyboardInterrupt(), "KeyboardInterrupt</p>"),
    ],
)
def test_page_says_why_a_run_stopped(tmp_path, clock, error, said):
    def stop():
        with progress_of(tmp_path) as progress:
            take_step(progress, clock, 1)
            raise error

    with pytest.raises(type(error)):
        stop()
    assert 'class="state stopped"' in page(tmp_path)
    assert said in page(tmp_path)


def test_a_run_that_ends_early_without_error_is_stopped(tmp_path, clock):
    """A preemption: the loop saves and leaves."""
    with progress_of(tmp_path) as progress:
        take_step(progress, clock, 1)
    assert "the same command goes on from the newest checkpoint" in page(tmp_path)


def test_a_page_that_cannot_be_written_stops_the_run_but_hides_no_other_error(tmp_path, clock, capsys):
    def stop():
        with progress_of(tmp_path):
            (tmp_path / "index.html.partial").mkdir()
            raise FloatingPointError("the loss")

    with pytest.raises(FloatingPointError):
        stop()
    assert "index.html was not written" in capsys.readouterr().out
    with pytest.raises(IsADirectoryError):
        progress_of(tmp_path)
