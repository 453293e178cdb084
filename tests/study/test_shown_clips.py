"""What browsers get: both methods' clips encoded alike, at the same length, rate and size."""

import av
import numpy as np
import pytest
from study_raters import FPS, clip, write_pairs

from lumiere_jax.data.video_io import decode_video, to_float, write_mp4
from lumiere_jax.study.shown_clips import clip_names, damaged, prepare_clips


def test_clips_that_browsers_play(tmp_path):
    pairs = write_pairs(tmp_path, 3)
    prepare_clips(pairs, [1, 2], tmp_path / "shown")
    names = {file.name for file in (tmp_path / "shown").iterdir()}
    assert names == {f"{number:05d}_{kind}.mp4" for number in range(3) for kind in "ab"} | {
        "00001_damaged.mp4",
        "00002_damaged.mp4",
    }
    for number, pair in enumerate(pairs):
        for name, source in zip(clip_names(number, False), (pair.a, pair.b), strict=True):
            with av.open(str(tmp_path / "shown" / f"{name}.mp4")) as container:
                stream = container.streams.video[0]
                assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", FPS)
                assert "generated" not in str(container.metadata)
            shown, _ = decode_video(tmp_path / "shown" / f"{name}.mp4")
            assert shown.shape == (4, 256, 256, 3)
            enlarged = decode_video(source)[0].repeat(16, axis=1).repeat(16, axis=2)
            assert np.abs(shown.astype(int) - enlarged).mean() < 6


def test_both_methods_are_treated_alike(tmp_path):
    pairs = write_pairs(tmp_path, 1)
    pairs[0].b.write_bytes(pairs[0].a.read_bytes())
    prepare_clips(pairs, [], tmp_path / "shown")
    a, b = (tmp_path / "shown" / f"00000_{method}.mp4" for method in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_what_is_there_is_not_made_again(tmp_path):
    pairs = write_pairs(tmp_path, 2)
    prepare_clips(pairs, [0], tmp_path / "shown")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "shown").iterdir()}
    (tmp_path / "shown" / "00001_b.mp4").unlink()
    prepare_clips(pairs, [0], tmp_path / "shown")
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "shown").iterdir()}
    assert {file.name for file in after if after[file] != before[file]} == {"00001_a.mp4", "00001_b.mp4"}


@pytest.mark.parametrize(
    ("other", "fps"), [({"frames": 5}, FPS), ({"size": 20}, FPS), ({}, 2 * FPS)], ids=["frames", "size", "fps"]
)
def test_clips_that_differ_are_refused_or_brought_together(tmp_path, other, fps):
    (pair,) = write_pairs(tmp_path, 1)
    write_mp4(pair.b, clip(5, **other), fps, lossless=True)
    with pytest.raises(ValueError, match=r"4 frames of 16x16 at 8 fps .* people would tell .* give --frames, --fps"):
        prepare_clips([pair], [], tmp_path / "shown")
    assert not list((tmp_path / "shown").iterdir())
    prepare_clips([pair], [0], tmp_path / "shown", frames=2, fps=8.0, size=(12, 12))
    clips = [decode_video(file)[0] for file in sorted((tmp_path / "shown").iterdir())]
    assert [shown.shape for shown in clips] == [(2, 264, 264, 3)] * 3


@pytest.mark.parametrize("video", [clip(0), clip(0)[[0] * 4], np.full((4, 16, 16, 3), 90, np.uint8)])
def test_damage_is_seen_on_any_clip(video):
    video = to_float(video)
    harmed = damaged(video, np.random.default_rng(0))
    assert np.abs(harmed).max() <= 1
    assert np.abs(np.diff(harmed, axis=0)).mean() > np.abs(np.diff(video, axis=0)).mean() + 0.15


def test_checks_take_the_clips_of_both_methods_in_turn(tmp_path):
    assert clip_names(4, False) == ("00004_a", "00004_b")
    assert clip_names(4, True) == ("00004_a", "00004_damaged")
    assert clip_names(5, True) == ("00005_b", "00005_damaged")
    pairs = write_pairs(tmp_path, 2)
    for pair in pairs:
        write_mp4(pair.a, np.full((4, 16, 16, 3), 20, np.uint8), FPS, lossless=True)
        write_mp4(pair.b, np.full((4, 16, 16, 3), 230, np.uint8), FPS, lossless=True)
    prepare_clips(pairs, [0, 1], tmp_path / "shown")
    brightness = [decode_video(tmp_path / "shown" / f"0000{number}_damaged.mp4")[0].mean() for number in (0, 1)]
    assert brightness[0] < 100 < 155 < brightness[1]
