"""What `video_folder` adds to `preparation`: a directory for each state of the folder."""

import os
import subprocess
import sys

import numpy as np
import pytest
from raw_videos import brightening

from lumiere_jax.data import video_folder, video_io
from lumiere_jax.data.input_pipeline import make_batches
from lumiere_jax.data.preparation import read_report

SETTINGS = {"frames": 4, "fps": 4, "size": 16}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "clips"
    root.mkdir()
    video_io.write_mp4(root / "long.mp4", brightening(35, 24, 40), 10, crf=2)  # 3.5 s: three clips and a rest
    video_io.write_mp4(root / "UPPER.MP4", brightening(25, 32, 18, first=1), 24, crf=2)
    video_io.write_mp4(root / "short.mp4", brightening(7), 10, crf=2)
    return root


def test_prepared_once_and_again_after_a_change(folder, tmp_path, capsys):
    def prepare(**settings):
        return video_folder.prepare(folder, tmp_path / "data", **(SETTINGS | settings), default_caption="gray")

    first = prepare()
    assert "4 clips of 1 s from 2 of 3 files" in capsys.readouterr().out
    assert read_report(first.data_dir)["rejected"].keys() == {"short.mp4"}
    before = os.stat(first.data_dir).st_mtime_ns
    again = prepare()
    assert again.data_dir == first.data_dir
    assert os.stat(first.data_dir).st_mtime_ns == before
    (folder / "long.txt").write_text("a new caption")
    other_caption = prepare()
    os.utime(folder / "UPPER.MP4", ns=(0, 0))
    touched = prepare()
    (folder / "UPPER.MP4").unlink()
    fewer = prepare()
    directories = [first, other_caption, touched, fewer, prepare(size=8), prepare(fps=2), prepare(frames=2)]
    assert len({builder.data_dir for builder in directories}) == 7
    assert "UPPER.MP4" not in read_report(fewer.data_dir)["clips"]


def test_feeds_the_pipeline(folder, tmp_path):
    builder = video_folder.prepare(folder, tmp_path / "data", **SETTINGS, default_caption="gray")
    source = builder.as_data_source(split="train")
    batch = next(make_batches(source, batch_size=6, frames=4, fps=4, size=8, seed=0))
    assert batch["video"].shape == (6, 4, 8, 8, 3)
    assert batch["caption"] == ["gray"] * 6
    assert (np.diff(batch["video"].mean(axis=(2, 3, 4)), axis=1) > 0).all()


def test_real_videos(fixtures, tmp_path):
    builder = video_folder.prepare(fixtures / "videos", tmp_path, frames=8, fps=8, size=32, default_caption="a video")
    report = read_report(builder.data_dir)
    rejected = report["rejected"]
    assert rejected.keys() == {"corrupted.mp4", "unordered.mov"}
    assert rejected["corrupted.mp4"].startswith("corrupted.mp4: 28 frames decode, then: Invalid data")
    assert rejected["unordered.mov"].startswith("unordered.mov: too short, gives 1 of the 8 frames")
    # As many as the videos' durations hold: 5.28, 4.0, 10.33, 6.56 and 10.0 seconds; and the scenes of scene_cuts.mp4,
    # of 1.2, 1.84, 2.44, 2.0, 2.2 and 0.32 s.
    assert report["clips"] == {
        "bigbuckbunny.mp4": 5,
        "carphone_pristine.mp4": 4,
        "flipping_a_pancake.mkv": 10,
        "mm_test.avi": 6,
        "mm_test.mp4": 10,
        "scene_cuts.mp4": 1 + 1 + 2 + 2 + 2,
    }
    facts = report["videos"]["flipping_a_pancake.mkv"]
    assert (facts["height"], facts["width"]) == (240, 426)


def test_nothing_usable_is_an_error_with_every_reason(folder, tmp_path):
    with pytest.raises(video_io.VideoError, match="can be used") as caught:
        video_folder.prepare(folder, tmp_path / "data", **SETTINGS)
    assert str(caught.value).count("no caption") == 3
    with pytest.raises(FileNotFoundError, match=r"videos: .*absent is no directory"):
        video_folder.prepare(tmp_path / "absent", tmp_path / "data", **SETTINGS)


def test_tensorflow_is_not_imported():
    code = "import sys, lumiere_jax.data.video_folder; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
