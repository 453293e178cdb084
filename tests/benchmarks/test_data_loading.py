"""The benchmark of data loading: the work is the same, and what is not installed is said."""

import json

import numpy as np
import pytest
from absl.testing import flagsaver

from benchmarks import data_loading
from benchmarks.data_loading import OURS, PEERS, Task
from lumiere_jax.data import video_io

TASK = Task(frames=4, fps=8.0, size=32, batch_size=2, workers=1, batches=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    raw, prepared = folder / "raw", folder / "prepared"
    raw.mkdir()
    prepared.mkdir()
    data_loading.write_rendered(raw, TASK, count=2, size=64, fps=24)
    data_loading.write_prepared(raw, prepared, TASK)
    return raw, prepared


@pytest.mark.parametrize("kind", ["raw", "prepared"])
def test_ours_shows_the_frames_that_it_should(folders, kind):
    raw, prepared = folders
    shown = data_loading.measure(OURS, raw, raw if kind == "raw" else prepared, TASK).shown
    assert set(shown) == {"000.mp4", "001.mp4"}
    for name, frames in shown.items():
        video, times = video_io.decode_video(raw / name)
        expected = video[[np.abs(times - time).argmin() for time in np.arange(4) / 8]]
        expected = expected.reshape(4, 32, 2, 32, 2, 3).mean((2, 4))
        assert np.abs(frames - expected).mean() < 4


@pytest.mark.parametrize("peer", PEERS)
def test_peers_show_the_same_frames(folders, peer):
    if peer not in data_loading.installed_peers()[0]:
        pytest.skip(f"needs {peer}")
    rates = data_loading.compare(*folders, TASK, 1, [peer])  # raises if they differ from ours
    assert all(set(found) == {OURS, peer} for found in rates.values())


def test_other_frames_are_no_measurement():
    ours = {"a": np.zeros((4, 8, 8, 3), np.uint8)}
    data_loading.check_same_frames("decord", "raw", ours, {"a": ours["a"] + 2})
    with pytest.raises(ValueError, match=r"decord shows other frames of a \(raw\)"):
        data_loading.check_same_frames("decord", "raw", ours, {"a": ours["a"] + 9})
    with pytest.raises(ValueError, match="no raw file in common"):
        data_loading.check_same_frames("decord", "raw", ours, {"b": ours["a"]})


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(data_loading.importlib.util, "find_spec", lambda _: None)
    assert data_loading.installed_peers() == ([], list(PEERS))
    lines = data_loading.table({"raw": {OURS: 2.0, "torch": 1.0}, "prepared": {OURS: 8.0, "torch": 2.0}}, ["decord"])
    assert f"| {OURS} | 2.00 |  | 8.00 |  |" in lines
    assert "| torch | 1.00 | 2.00 x | 2.00 | 4.00 x |" in lines
    assert "| decord | not installed |" in lines
    assert "ours: 4.00 x" in lines


def test_the_command(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(data_loading, "installed_peers", lambda: ([], list(PEERS)))
    data_loading.define_flags()
    with flagsaver.flagsaver():
        data_loading.FLAGS(["data_loading", "--quick", "--workers=1", f"--output={tmp_path}"])
        data_loading.main([])
    facts = json.loads((tmp_path / "data_loading.json").read_text())
    assert facts["not installed"] == list(PEERS)
    assert facts["files"] == 4
    assert facts["clips per second"]["prepared"][OURS] > 0
    assert "not installed, left out: decord" in capfd.readouterr().out


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "raw").mkdir()
    video_io.write_mp4(tmp_path / "short.mp4", np.zeros((3, 64, 64, 3), np.uint8), 24)
    with pytest.raises(video_io.VideoError, match=r"no video in .*short.mp4: too short, has 3 of \d+ frames"):
        data_loading.write_raw(str(tmp_path), tmp_path / "raw", TASK)
