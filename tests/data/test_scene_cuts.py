import numpy as np
import pytest
from raw_videos import scenes

from lumiere_jax.data import video_io
from lumiere_jax.data.scene_cuts import split_scenes


def scene_lengths(source):
    with video_io.open_video(source) as video:
        return [len(list(scene)) for scene in split_scenes(video.frames)]


@pytest.mark.parametrize("lengths", [(30,), (12, 9, 20), (1, 15), (15, 1), (2, 15, 2), (1, 1), (1,)])
def test_cuts_are_found_wherever_they_are(lengths):
    """Also next to the ends, where the detector's window is not full."""
    assert scene_lengths(video_io.encode_mp4(scenes(*lengths), 10, crf=10)) == list(lengths)


def test_black_and_white_with_a_little_noise_in_its_colours():
    """Whose hue is anything from frame to frame."""
    noise = np.random.default_rng(0).integers(-1, 2, (41, 1, 1, 3))
    gray = scenes(12, 9, 20).mean(axis=-1, keepdims=True)
    video = np.clip(gray + noise, 0, 255).astype(np.uint8)
    assert scene_lengths(video_io.encode_mp4(video, 10, lossless=True)) == [12, 9, 20]


def test_every_frame_is_in_one_scene_with_its_time():
    data = video_io.encode_mp4(scenes(7, 9), 10, crf=10)
    with video_io.open_video(data) as video:
        times = [[time for time, _ in scene] for scene in split_scenes(video.frames)]
    np.testing.assert_allclose(times[0], np.arange(7) / 10)
    np.testing.assert_allclose(times[1], np.arange(7, 16) / 10)


def test_decodes_only_a_few_frames_ahead():
    asked = 0

    def counted(frames):
        nonlocal asked
        for timed in frames:
            asked += 1
            yield timed

    with video_io.open_video(video_io.encode_mp4(scenes(40), 10)) as video:
        next(next(split_scenes(counted(video.frames))))
        assert asked <= 4


def test_cuts_of_a_real_film(fixtures):
    """By eye, the cuts are where its scenes begin: frames 30, 76, 137, 187 and 242 of 250."""
    lengths = scene_lengths(fixtures / "videos" / "scene_cuts.mp4")
    assert np.cumsum(lengths).tolist() == [30, 76, 137, 187, 242, 250]


@pytest.mark.parametrize("file", ["bigbuckbunny.mp4", "carphone_pristine.mp4", "mm_test.avi", "mm_test.mp4"])
def test_real_videos_of_one_scene(fixtures, file):
    assert len(scene_lengths(fixtures / "videos" / file)) == 1
