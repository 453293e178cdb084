"""Clips of videos whose frames say at what time they were taken."""

import itertools

import numpy as np
import pytest
from raw_videos import brightening, scenes, write_at_times, write_audio_only, write_avi, write_rotated

from lumiere_jax.data import clip_extraction, video_io
from lumiere_jax.data.clip_extraction import Clip, ClipSettings, LeftOut, extract_clips

SETTINGS = ClipSettings(frames=4, fps=4, size=16)


def extract(path, settings=SETTINGS):
    parts = list(extract_clips(path, settings, name=path.name))
    return [part for part in parts if isinstance(part, Clip)], [part for part in parts if isinstance(part, LeftOut)]


def gray(clip):
    return clip.images.mean(axis=(1, 2, 3))


@pytest.mark.parametrize("fps", [4, 10, 24, 29.97, 60])
def test_clips_show_the_frames_of_their_times(tmp_path, fps):
    frames = int(2.5 * fps)
    path = tmp_path / "a.mp4"
    video_io.write_mp4(path, brightening(min(frames, 60))[np.minimum(np.arange(frames), 59)], fps, crf=2)
    clips, left_out = extract(path)
    assert [(clip.start, clip.end) for clip in clips] == [(0, 1), (1, 2)]
    for clip in clips:
        times = clip.start + np.arange(4) / 4
        # The nearest frame, the earlier of two, by brute force.
        nearest = np.argmin(np.round(np.abs(np.arange(frames)[None] / fps - times[:, None]), 9), axis=1)
        np.testing.assert_allclose(gray(clip), 4 * np.minimum(nearest, 59), atol=2)
    assert [(part.start, part.frames) for part in left_out] == [(2, 2)]


def test_variable_frame_rate_is_sampled_by_time(tmp_path):
    """Three frames a second, then sixty, with a pause: the clip's speed is the scene's."""
    times = np.round(np.concatenate([np.arange(6) / 3, 2 + np.arange(30) / 60, [3.1, 3.4, 3.7, 4.0]]), 3)
    video = brightening(len(times))
    write_at_times(tmp_path / "a.mp4", video, times)
    clips, _ = extract(tmp_path / "a.mp4")
    assert len(clips) == 4
    for clip in clips:
        distances = np.abs(times[None] - (clip.start + np.arange(4) / 4)[:, None])
        nearest = np.argmin(np.round(distances, 9), axis=1)
        np.testing.assert_allclose(gray(clip), 4 * nearest, atol=3)


def test_rotated_video_is_upright(tmp_path):
    video = np.zeros((10, 48, 32, 3), np.uint8)
    video[:, :24] = 250, 10, 10
    write_rotated(tmp_path / "a.mp4", video, 10)
    with video_io.open_video(tmp_path / "a.mp4") as opened:
        assert next(opened.frames)[1].width == 48  # on its side
    [clip], _ = extract(tmp_path / "a.mp4")
    assert (clip.source_height, clip.source_width) == (48, 32)
    assert clip.images[:, :6, :, 0].min() > 200
    assert clip.images[:, -6:, :, 0].max() < 50


@pytest.mark.parametrize(("kind", "height", "width"), [("ten_bit", 32, 48), ("odd", 31, 17), ("avi", 32, 48)])
def test_ten_bits_odd_sizes_and_avi(tmp_path, kind, height, width):
    video = brightening(20, height, width)
    match kind:
        case "ten_bit":
            write_at_times(tmp_path / "a.mp4", video, np.arange(20) / 10, pix_fmt="yuv420p10le")
            with video_io.open_video(tmp_path / "a.mp4") as opened:
                assert next(opened.frames)[1].format.name == "yuv420p10le"
        case "odd":
            write_at_times(tmp_path / "a.mp4", video, np.arange(20) / 10, pix_fmt="yuv444p")
        case "avi":
            write_avi(tmp_path / "a.mp4", video, 10)
    clips, _ = extract(tmp_path / "a.mp4")
    assert [(clip.source_height, clip.source_width) for clip in clips] == [(height, width)] * len(clips)
    np.testing.assert_allclose(np.concatenate([gray(clip) for clip in clips])[:4], 4 * np.array([0, 2, 5, 7]), atol=3)


def test_no_clip_crosses_a_cut(tmp_path):
    """At 10 fps scenes of 2.3, 0.7 and 1.5 s: two clips, none, one, each from the first frame of its scene."""
    path = tmp_path / "a.mp4"
    video_io.write_mp4(path, scenes(23, 7, 15), 10, crf=10)
    clips, left_out = extract(path)
    assert [round(clip.start, 3) for clip in clips] == [0, 1, 3]
    assert [(round(part.start, 3), round(part.end, 3), part.frames) for part in left_out] == [
        (2, 2.2, 2),
        (2.3, 2.8, 3),
        (4, 4.2, 2),
    ]
    without, _ = extract(path, ClipSettings(frames=4, fps=4, size=16, scene_cuts=False))
    assert [clip.start for clip in without] == [0, 1, 2, 3]


def test_too_short_says_how_much(tmp_path):
    video_io.write_mp4(tmp_path / "a.mp4", brightening(7), 10)
    with pytest.raises(video_io.VideoError, match=r"a\.mp4: too short, gives 3 of the 4 frames of a clip at 4 fps"):
        extract(tmp_path / "a.mp4")
    video_io.write_mp4(tmp_path / "b.mp4", scenes(5, 7), 10)
    with pytest.raises(video_io.VideoError, match="too short, the longest of its 2 scenes, gives 3 of the 4"):
        extract(tmp_path / "b.mp4")
    video_io.write_mp4(tmp_path / "one.mp4", brightening(1), 10)
    with pytest.raises(video_io.VideoError, match="gives 1 of the 4"):
        extract(tmp_path / "one.mp4")


def test_what_is_no_video(tmp_path):
    write_audio_only(tmp_path / "a.mp4")
    with pytest.raises(video_io.VideoError, match=r"a\.mp4: has no video stream"):
        extract(tmp_path / "a.mp4")
    with pytest.raises(video_io.VideoError, match=r"gone\.mp4: is no longer there"):
        extract(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(video_io.VideoError, match="cannot be decoded"):
        extract(tmp_path / "text.mp4")


def test_a_huge_video_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    """The first clip comes before more than a few frames behind it are decoded."""
    video_io.write_mp4(tmp_path / "a.mp4", brightening(50)[np.arange(300) % 50], 10)
    decoded = 0
    open_video = video_io.open_video

    class Counted:
        def __init__(self, source, name):
            self._context = open_video(source, name=name)

        def __enter__(self):
            video = self._context.__enter__()
            self.fps, self.frames = video.fps, self._count(video.frames)
            return self

        def __exit__(self, *error):
            return self._context.__exit__(*error)

        def _count(self, frames):
            nonlocal decoded
            for timed in frames:
                decoded += 1
                yield timed

    monkeypatch.setattr(clip_extraction, "open_video", Counted)
    parts = extract_clips(tmp_path / "a.mp4", SETTINGS, name="a.mp4")
    list(itertools.islice(parts, 3))
    assert decoded <= 30 + 6


@pytest.mark.parametrize("settings", [{"frames": 0}, {"fps": 0}, {"fps": 1e6}, {"size": 0}, {"size": 15}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ClipSettings(**settings)
