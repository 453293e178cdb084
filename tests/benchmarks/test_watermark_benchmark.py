"""The benchmark of the watermark, on one small clip."""

import numpy as np
import pytest
from marked_clips import textured_clip

from benchmarks import watermark
from lumiere_jax.data.video_io import write_mp4

CLIP = textured_clip(4, 64, 64)


@pytest.mark.parametrize(
    ("name", "shape"),
    {
        "none": (4, 64, 64, 3),
        "H.264 crf 35": (4, 64, 64, 3),
        "resize 0.5": (4, 32, 32, 3),
        "resize 1.5": (4, 96, 96, 3),
        "crop 75% centre": (4, 48, 48, 3),
        "crop 50% corner": (4, 32, 32, 3),
        "resize 0.5, crf 23": (4, 32, 32, 3),
        "GIF": (4, 64, 64, 3),
        "one frame": (1, 64, 64, 3),
    }.items(),
)
def test_changes(name, shape):
    changed = watermark.changes()[name](CLIP)
    assert (changed.dtype, changed.shape) == (np.uint8, shape)


def test_crops_are_where_they_are_said_to_be():
    np.testing.assert_array_equal(watermark.cropped(CLIP, 0.75), CLIP[:, 8:56, 8:56])
    np.testing.assert_array_equal(watermark.cropped(CLIP, 0.5, (1, 0)), CLIP[:, 32:, :32])


def test_real_videos_are_cut_and_bad_ones_named(tmp_path, capsys):
    write_mp4(tmp_path / "a.mp4", np.concatenate([textured_clip(20, 48, 80)] * 2), watermark.FPS)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    clips = watermark.real_clips(sorted(tmp_path.iterdir()), 32)
    assert [clip.shape for clip in clips] == [(16, 32, 32, 3)] * 2
    assert "left out" in capsys.readouterr().out


def test_measures_and_tables(monkeypatch, tmp_path):
    monkeypatch.setattr(watermark, "OTHER_KEYS", 1)
    few = {name: change for name, change in watermark.changes().items() if name in ("none", "one frame")}
    monkeypatch.setattr(watermark, "changes", lambda: few)
    result = watermark.measured([CLIP], "textured, 64 pixels")
    assert result["found"]["none"] == {"accuracy": 1, "n": 1, "low": pytest.approx(0.2065, abs=1e-3), "high": 1}
    assert result["quality"]["PSNR"]["least"] > 40
    assert result["quality"]["SSIM"]["least"] > 0.9
    assert result["without mark"]["looks"] == 3
    assert result["without mark"]["p < 1e-6"]["accuracy"] == 0
    lines = watermark.tables({"textured, 64 pixels": result}).splitlines()
    assert lines[0] == "| | textured, 64 pixels (1 clips) |"
    assert "| none | 100.0% (20.7% to 100.0%) |" in lines
    assert [panel.get_title() for panel in watermark.draw({"textured, 64 pixels": result}).axes] == ["textured"]


def test_ssim():
    assert watermark.ssim(CLIP, CLIP) == pytest.approx(1)
    assert watermark.ssim(CLIP, 255 - CLIP) < 0
