"""What the seams' benchmarks measure, on clips whose seams and drift are known; and that methods are what they say."""

import csv
import dataclasses

import numpy as np
import pytest
from random_runs import random_run

from benchmarks import longer_clips, temporal_seams
from benchmarks.temporal_seams import ANY, FRAMES, METHODS, TILES, TRUTH, WINDOW
from lumiere_jax.data.clip_loader import as_text
from lumiere_jax.data.open_dataset import open_dataset
from lumiere_jax.data.video_io import write_mp4

DISJOINT, OVERWRITTEN, AVERAGED, FEATHERED = METHODS
SETS = temporal_seams.pair_sets(FRAMES, WINDOW, METHODS)


def moving(clips=2, frames=FRAMES, seed=0):
    """A bright bar that moves a pixel each frame, around and around."""
    video = np.full((clips, frames, 8, 16, 3), -0.5, np.float32)
    for clip in range(clips):
        for frame in range(frames):
            video[clip, frame, :, (frame + 3 * clip + seed) % 16] = 0.5
    return video


def with_seams(clips, later, jump):
    """Every frame from each of `later` on is brighter by `jump` than what comes before: up, then down again."""
    made = clips.copy()
    for number, first in enumerate(later):
        made[:, first:] += jump * (-1) ** number
    return made


def later_frames(name):
    return (np.flatnonzero(SETS[name]) + 1).tolist()


@pytest.fixture(scope="module")
def measured():
    real = moving()
    seamless = [real, moving(seed=1)]
    made = {
        DISJOINT: [with_seams(clips, later_frames(DISJOINT), 0.4) for clips in seamless],
        OVERWRITTEN: [with_seams(clips, later_frames(OVERWRITTEN), 0.2) for clips in seamless],
        AVERAGED: seamless,
        FEATHERED: seamless,
    }
    return list(temporal_seams.measure("bars", real, made, SETS, ("frames",)))


def test_windows_end_with_the_clip():
    """No window is moved back, so each method has its borders at even distances."""
    assert later_frames(DISJOINT) == list(range(8, FRAMES, 8))
    assert later_frames(OVERWRITTEN) == list(range(6, FRAMES - 2, 6))
    assert later_frames(AVERAGED) == sorted([*range(6, FRAMES - 2, 6), *range(8, FRAMES - 2, 6)])
    assert set(later_frames(FEATHERED)) == set(later_frames(AVERAGED)) | set(range(7, FRAMES - 2, 6))
    assert later_frames(ANY) == sorted({*later_frames(DISJOINT), *later_frames(FEATHERED)})


def test_known_seams(measured):
    found = temporal_seams.summary(measured)
    motion = 2 / 16  # two columns of pixels change by 1
    assert found[DISJOINT][DISJOINT]["ratio"]["mean"] == pytest.approx(1 + 0.16 / motion, rel=1e-4)
    assert found[OVERWRITTEN][OVERWRITTEN]["ratio"]["mean"] == pytest.approx(1 + 0.04 / motion, rel=1e-4)
    for method in (TRUTH, AVERAGED, FEATHERED):
        for pairs in SETS:
            assert found[method][pairs]["ratio"]["mean"] == pytest.approx(1.0, rel=1e-5)
    # Two clips and two seeds; what is elsewhere has no seam of any method in it.
    assert found[DISJOINT][DISJOINT]["measured"] == 4
    assert found[DISJOINT][DISJOINT]["elsewhere_over_real"]["mean"] == pytest.approx(1.0, rel=1e-5)
    assert found[DISJOINT][ANY]["ratio"]["mean"] < found[DISJOINT][DISJOINT]["ratio"]["mean"]
    assert found[AVERAGED][ANY]["error"] > 0.0  # the second seed's bar is elsewhere
    assert found[TRUTH][ANY]["error"] == 0.0


def test_real_clips_own_motion_is_divided_out():
    """A clip that jumps at the borders by itself, made without a fault."""
    real = with_seams(moving(), later_frames(AVERAGED), 0.4)
    made = {label: [real] for label in METHODS}
    found = temporal_seams.summary(list(temporal_seams.measure("bars", real, made, SETS, ("frames",))))
    assert found[AVERAGED][AVERAGED]["ratio"]["mean"] > 2
    assert found[AVERAGED][AVERAGED]["over_real"] == {"mean": 1.0, "deviation": 0.0, "highest": 1.0}


def test_flicker_does_not_pass_for_no_seams():
    """Noise in every frame drowns seams: the ratio falls, and what it was divided by is shown."""
    real = moving()
    noise = np.random.default_rng(0).normal(0.0, 0.5, real.shape).astype(np.float32)
    made = {label: [with_seams(real, later_frames(DISJOINT), 0.4) + noise] for label in METHODS}
    found = temporal_seams.summary(list(temporal_seams.measure("bars", real, made, SETS, ("frames",))))
    assert found[DISJOINT][DISJOINT]["ratio"]["mean"] < 1.5
    assert found[DISJOINT][DISJOINT]["elsewhere_over_real"]["mean"] > 4


def test_real_clips_that_do_not_change_at_borders(measured):
    """At the border of tiles a plain background does not: such clips are not what others are divided by."""
    still = [dataclasses.replace(row, ratio=0.0) if row.method == TRUTH and row.clip == 0 else row for row in measured]
    before, found = (temporal_seams.summary(rows)[FEATHERED][FEATHERED] for rows in (measured, still))
    assert found["compared"] < before["compared"] == before["measured"]
    assert np.isfinite(found["over_real"]["mean"])
    none = [dataclasses.replace(row, ratio=0.0) if row.method == TRUTH else row for row in measured]
    found = temporal_seams.summary(none)
    assert found[FEATHERED][FEATHERED]["over_real"] is None
    assert "—" in temporal_seams.report("r", found)


def test_verdict(measured):
    found = temporal_seams.summary(measured)
    said = temporal_seams.verdict(found)
    assert said.startswith("goal of 1.05 where disjoint windows show 2.28")
    assert said.count(", reached") == 2
    found[FEATHERED][FEATHERED]["ratio"]["mean"] = 1.06
    assert f"{FEATHERED} 1.06, NOT reached" in temporal_seams.verdict(found)
    found[DISJOINT][DISJOINT]["ratio"]["mean"] = 1.4
    assert temporal_seams.verdict(found).startswith("no verdict")


def test_tiles_are_measured_along_both_sides():
    sets = temporal_seams.pair_sets(64, 32, TILES)
    assert (np.flatnonzero(sets["disjoint tiles"]) + 1).tolist() == [32]
    ramp = np.linspace(-0.5, 0.5, 64, dtype=np.float32)
    real = np.broadcast_to(ramp[:, None, None] + ramp[None, :, None] / 2, (1, 2, 64, 64, 3))
    for axis in (2, 3):
        made = real.copy()
        np.moveaxis(made, axis, 0)[32:] += 0.2
        tiled = {label: [made] for label in TILES}
        found = temporal_seams.summary(list(temporal_seams.measure("r", real, tiled, sets, ("height", "width"))))
        assert found["disjoint tiles"]["disjoint tiles"]["over_real"]["mean"] > 50


def test_pictures_and_tables(measured, tmp_path):
    real = moving()
    found = temporal_seams.summary(measured)
    text = temporal_seams.report("bars", found)
    assert all(label in text for label in (TRUTH, *METHODS))
    temporal_seams.write_measurements(tmp_path / "rows.csv", measured)
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(measured) == (2 + 4 * 4) * len(SETS)
    clips = dict.fromkeys((TRUTH, *METHODS), real[0])
    curve = {label: temporal_seams.neighbour_mse(clip) for label, clip in clips.items()}
    for name, figure in (
        ("slices.png", temporal_seams.draw_slices(clips, SETS)),
        ("curves.png", temporal_seams.draw_curves({"bars": curve, "more bars": curve}, SETS)),
        ("drift.png", longer_clips.draw_drift({FRAMES: {label: [real] for label in clips}})),
    ):
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_methods_are_what_they_say():
    """One step of an untrained network, without threshold: the first window, the second, and their mean."""
    run = random_run(super_resolution=True)
    run.config.sampling.update({"steps": 1, "threshold": "none"})
    real = np.random.default_rng(0).uniform(-1, 1, (1, 16, 8, 8, 3)).astype(np.float32)
    made = {
        label: temporal_seams.super_resolved(run, real, ["a red circle"], joining, 1)[0][0]
        for label, joining in METHODS.items()
        if label != FEATHERED
    }
    assert made[DISJOINT].shape == real.shape[1:]
    first, second = made[DISJOINT][6:8], made[OVERWRITTEN][6:8]
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(made[AVERAGED][6:8], (first + second) / 2, atol=1e-4)
    for label in (OVERWRITTEN, AVERAGED):
        np.testing.assert_allclose(made[label][:6], made[DISJOINT][:6], atol=1e-4)


def test_held_out_clips():
    clips, captions = temporal_seams.rendered_clips(2, 16, 20, 8.0)
    assert clips.shape == (2, 20, 16, 16, 3)
    assert clips.min() >= -1
    assert clips.max() <= 1
    assert len(set(captions)) == 2
    whole = np.arange(64 * 64, dtype=np.float32).reshape(1, 1, 64, 64, 1)
    np.testing.assert_array_equal(temporal_seams.middle(whole), whole[:, :, 16:48, 16:48])


def test_real_videos_are_held_out_whole(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    frame, row, column = np.ogrid[: FRAMES + 8, :64, :64]
    names = [f"{number}.mp4" for number in range(6)]
    for number, name in enumerate(names):  # they fade evenly: no cut
        gray = (frame + row + (number + 1) * column // 4).astype(np.uint8)
        write_mp4(folder / name, np.repeat(gray[..., None], 3, axis=-1), 16)
    config = temporal_seams.seams_config(1, 1)
    temporal_seams.use_videos(config, str(folder), tmp_path)
    train_set, validation_set = open_dataset(config.dataset)
    training, validation = (
        {as_text(part[i]["source"]) for i in range(len(part))} for part in (train_set, validation_set)
    )
    assert training
    assert validation
    assert not training & validation
    clips, captions = temporal_seams.held_out(config, 100)
    assert clips.shape == (len(validation_set), FRAMES, 64, 64, 3)
    assert set(captions) == {"a video"}
    for name in names[1:]:
        (folder / name).unlink()
    with pytest.raises(ValueError, match="no clip fell to the split"):
        temporal_seams.use_videos(config, str(folder), tmp_path / "one")


def test_drift():
    clip = np.zeros((40, 16, 16, 3), np.float32)
    clip[8:, ..., 0] = 0.3
    distance = longer_clips.drift(clip)
    np.testing.assert_allclose(distance[:8], 0.0)
    np.testing.assert_allclose(distance[8:], 0.3 / np.sqrt(3), rtol=1e-6)
    still, _ = temporal_seams.rendered_clips(1, 32, 16, 8.0)
    same = np.concatenate([still[0], still[0]])
    assert longer_clips.keeps_colour(same, 8.0) == 1.0
    turned = np.concatenate([still[0], still[0][..., [1, 2, 0]]])  # another hue
    assert longer_clips.keeps_colour(turned, 8.0) == pytest.approx(1 / 3)
    assert longer_clips.keeps_colour(clip[:, ..., :1].repeat(3, -1), 8.0) is None
    found = longer_clips.drift_summary({"made": [same[None]], "gray": [clip[None]]}, 8.0)
    assert found["made"]["colour_kept"] == 1.0
    assert found["gray"]["last_window"] > found["gray"]["first_window"]
    assert "no object seen" in longer_clips.drift_report(40, found)


def test_windows_of_longer_clips(monkeypatch):
    asked = []
    monkeypatch.setattr(longer_clips, "sample_videos", lambda run, captions, **options: asked.append(options))
    longer_clips.sampled(None, ["a red circle"], 20, 1)
    same = {"seed": 0, "frames": 20}
    assert asked == [
        same,
        same | {"window": (8, 0), "weights": "uniform"},
        same | {"window": (8, 2), "weights": "uniform"},
        same | {"window": (8, 4), "weights": "uniform"},
        same | {"window": (8, 4), "weights": "feathered"},
    ]
    for frames in longer_clips.LENGTHS:
        sets = temporal_seams.pair_sets(frames, WINDOW, longer_clips.METHODS)
        assert not sets[ANY].all()
