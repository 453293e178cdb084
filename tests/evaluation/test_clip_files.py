import numpy as np
import pytest

from lumiere_jax.data.video_io import VideoError, write_mp4
from lumiere_jax.evaluation.clip_files import find_clips, read_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of 12 frames at 6 fps, whose level tells the number of the frame."""
    root = tmp_path_factory.mktemp("videos")
    levels = np.arange(12, dtype=np.uint8) * 20
    frames = np.broadcast_to(levels[:, None, None, None], (12, 16, 32, 3))
    for name in ("b/two.mp4", "a/one.mp4", "c.mp4", ".hidden/no.mp4", "d.MP4"):
        (root / name).parent.mkdir(exist_ok=True)
        write_mp4(root / name, frames, 6, lossless=True)
    (root / "a/one.json").write_text("{}")
    return root


def numbers(clip):
    return (clip[:, 0, 0, 0] * 127.5 + 127.5).round() / 20


def test_which_clips(folder):
    found = [file.relative_to(folder).as_posix() for file in find_clips(folder)]
    assert found == ["a/one.mp4", "b/two.mp4", "c.mp4", "d.MP4"]
    assert [file.name for file in find_clips(folder, most=2)] == ["one.mp4", "c.mp4"]
    assert [file.name for file in find_clips(folder, "t*")] == ["two.mp4"]
    with pytest.raises(FileNotFoundError, match=r"holds no video.*'x\*'"):
        find_clips(folder, "x*")
    with pytest.raises(ValueError, match="clips=0"):
        find_clips(folder, most=0)


def test_which_frames(folder):
    file = folder / "c.mp4"
    np.testing.assert_array_equal(numbers(read_clip(file)), np.arange(12))
    np.testing.assert_array_equal(numbers(read_clip(file, frames=4)), [4, 5, 6, 7])
    # By time: frames lie at 0 to 11/6 s. Three at 2 fps span a second, from 5/12 s on: the earlier of two equally near.
    np.testing.assert_array_equal(numbers(read_clip(file, frames=3, fps=2)), [2, 5, 8])
    np.testing.assert_array_equal(numbers(read_clip(file, fps=3)), [0, 2, 4, 6, 8, 10])
    with pytest.raises(VideoError, match="it has 12 frames and 13 are measured"):
        read_clip(file, frames=13)
    with pytest.raises(VideoError, match="too short"):
        read_clip(file, frames=5, fps=2)


def test_which_size(folder):
    assert read_clip(folder / "c.mp4", frames=2, size=(8, 8)).shape == (2, 8, 8, 3)
    with pytest.raises(VideoError, match="smaller"):
        read_clip(folder / "c.mp4", size=(32, 32))
