import json

import numpy as np
import pytest
from PIL import Image
from raw_videos import scenes

from lumiere_jax.data import moving_shapes, video_io
from lumiere_jax.data.clip_extraction import ClipSettings
from lumiere_jax.data.preparation import prepare_clips
from lumiere_jax.data.source_videos import find_sources
from lumiere_jax.inspect_data import draw_histograms, inspect_data, machines_needed


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three clips of four frames, whose brightness tells them apart."""
    root = tmp_path_factory.mktemp("inspected")
    for number, fps in enumerate((10, 20, 30)):
        video = scenes(2 * fps, height=32 + 16 * number) // 4 + np.uint8(60 * number)
        video_io.write_mp4(root / f"{number}.mp4", video, fps, crf=2)
        (root / f"{number}.txt").write_text(f"größer {number}")
    prepare_clips(find_sources(root), root / "data", ClipSettings(frames=8, fps=4, size=32))
    return root / "data"


def test_pictures_captions_and_numbers(prepared, tmp_path):
    summary = inspect_data(prepared, tmp_path, clips=3, batch_size=2, seconds=0.01, step_time=1e-6)
    assert summary["clips"] == 3
    assert summary["stored"] == {"frames": 8, "fps": 4, "size": 32}
    assert summary["captions"] == ["größer 0", "größer 1", "größer 2"]
    originals = summary["original videos"]
    assert originals["frames per second"] == {"count": 3, "min": 10, "median": 20, "max": 30}
    assert originals["height, px"] == {"count": 3, "min": 32, "median": 48, "max": 64}
    assert originals["length, s"]["max"] == 2
    assert summary["loader"]["clips_per_second"] > 0
    assert summary["loader"]["machines"] > 1
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "captions.txt").read_text().splitlines() == summary["captions"]
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size == (8 * 34 - 2, 3 * 34 - 2)
        rows = np.asarray(sheet)[[16, 50, 84]].mean(axis=(1, 2))
        assert (np.diff(rows) > 30).all()  # the clips' order
    with Image.open(tmp_path / "xt_slices.png") as slices:
        assert slices.size == (3 * 36, 8 * 8 + 4)
    with Image.open(tmp_path / "histograms.png") as histograms:
        assert histograms.size[0] == 640


def test_another_data_set_of_clips(tmp_path):
    builder = moving_shapes.prepare(tmp_path, "tiny")
    summary = inspect_data(builder.data_dir, tmp_path / "out", split="validation", clips=4, batch_size=2, seconds=0.01)
    assert summary["clips"] == 8
    assert summary["clips shown"]["length, s"] == {"count": 4, "min": 1, "median": 1, "max": 1}
    assert "machines" not in summary["loader"]


def test_bars_are_as_high_as_the_counts(tmp_path):
    draw_histograms(tmp_path / "h.png", "title", {"a": [1, 1, 1, 1, 2, 2, 5], "b": [3, 3]}, bins=4)
    image = np.asarray(Image.open(tmp_path / "h.png")).astype(int)
    blue = (image == (70, 130, 180)).all(axis=-1)
    heights = [blue[:204, 24 + 148 * index + 70].sum() for index in range(4)]
    assert heights[0] >= 100
    np.testing.assert_allclose(np.array(heights) / heights[0], [1, 0.5, 0, 0.25], atol=0.02)


def test_machines():
    assert machines_needed(8, 2.0, 4.0) == 1
    assert machines_needed(8, 2.0, 3.9) == 2
    assert machines_needed(1024, 0.5, 10.0) == 205


def test_bad_arguments(prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no prepared data set"):
        inspect_data(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"split='test': .* has train"):
        inspect_data(prepared, tmp_path / "out", split="test")
    with pytest.raises(ValueError, match="needs clips >= 1"):
        inspect_data(prepared, tmp_path / "out", clips=0)
