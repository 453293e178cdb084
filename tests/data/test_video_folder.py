import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds

from lumiere_jax.data import video_folder, video_io
from lumiere_jax.data.input_pipeline import make_batches

tfds.disable_progress_bar()

SETTINGS = {"frames": 4, "fps": 4, "size": 16}


def brightening(frames, height=20, width=30, first=0):
    """A clip of even gray frames, brighter by 4 per frame."""
    return np.full((frames, height, width, 3), 1, np.uint8) * np.uint8(
        first + 4 * np.arange(frames)[:, None, None, None]
    )


@pytest.fixture
def folder(tmp_path):
    """One-second clips are wanted: four files are good, of many sizes, rates and kinds; four are not."""
    root = tmp_path / "clips"
    (root / "deeper").mkdir(parents=True)
    video_io.write_mp4(root / "long.mp4", brightening(35, 24, 40), 10, crf=2)  # 3.5 s: three clips and a rest
    video_io.write_mp4(root / "UPPER.MP4", brightening(25, 31, 17, first=1), 24, crf=2)  # odd sizes; one clip
    video_io.write_mp4(root / "deeper" / "sixty.mov", brightening(60, 16, 16), 60, crf=2)
    write_avi(root / "old.AVI", brightening(30, 32, 48), 25)
    video_io.write_mp4(root / "short.mp4", brightening(7), 10, crf=2)
    video_io.write_mp4(root / "small.mp4", brightening(20, 12, 40), 10, crf=2)
    (root / "double.mp4").write_bytes((root / "long.mp4").read_bytes())
    cut = video_io.encode_mp4(np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8), 10)
    (root / "cut.mp4").write_bytes(cut[: len(cut) // 2])
    (root / "notes.md").write_text("no video")
    return root


def write_avi(path, video, fps):
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        stream.codec_context.max_b_frames = 2
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def records(builder):
    """Records by file and start."""
    found = {}
    for record in builder.as_data_source(split="train"):
        found[record["source"].decode(), round(record["start"], 3)] = record
    return found


def test_folder_becomes_uniform_clips_and_a_report(folder, tmp_path):
    builder = video_folder.prepare(folder, tmp_path / "data", **SETTINGS, default_caption="a gray wall")
    assert builder.report["clips"] == {"UPPER.MP4": 1, "deeper/sixty.mov": 1, "double.mp4": 3, "old.AVI": 1}
    rejected = builder.report["rejected"]
    assert rejected.keys() == {"cut.mp4", "long.mp4", "short.mp4", "small.mp4"}
    assert "truncated" in rejected["cut.mp4"] or "decode, then" in rejected["cut.mp4"]
    assert rejected["long.mp4"] == "long.mp4: duplicate of double.mp4"
    assert rejected["short.mp4"] == "short.mp4: too short, gives 3 of the 4 frames of a clip at 4 fps"
    assert "frames are 12x40, smaller than the 16x16" in rejected["small.mp4"]

    found = records(builder)
    assert found.keys() == {("UPPER.MP4", 0), ("deeper/sixty.mov", 0), ("old.AVI", 0)} | {
        ("double.mp4", start) for start in (0, 1, 2)
    }
    for record in found.values():
        assert record["caption"] == b"a gray wall"
        assert record["fps"] == 4
        frames, times = video_io.decode_video(record["clip"])
        assert frames.shape == (4, 16, 16, 3)
        np.testing.assert_allclose(times, [0, 0.25, 0.5, 0.75], atol=1e-6)


def test_clips_show_the_frames_of_their_times(folder, tmp_path):
    found = records(video_folder.prepare(folder, tmp_path / "data", **SETTINGS, default_caption="gray"))
    rates = {"double.mp4": 10, "UPPER.MP4": 24, "deeper/sixty.mov": 60, "old.AVI": 25}
    for (file, start), record in found.items():
        times = start + np.arange(4) / 4
        stamps = np.arange(100) / rates[file]
        # The nearest frame, the earlier of two, by brute force; brightness is 4 per frame.
        nearest = np.argmin(np.round(np.abs(stamps[None] - times[:, None]), 9), axis=1)
        shown = video_io.decode_video(record["clip"])[0].mean(axis=(1, 2, 3))
        np.testing.assert_allclose(shown, 4 * nearest + (file == "UPPER.MP4"), atol=1.9, err_msg=file)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_from_a_file_else_from_the_text_beside(folder, tmp_path, kind):
    named = {"long.mp4": 'a wall, "gray"', "deeper/sixty.mov": "größer", "gone.mp4": "not there"}
    captions = tmp_path / f"captions.{kind}"
    if kind == "csv":
        rows = [f'{file},"{caption.replace(chr(34), chr(34) * 2)}"' for file, caption in named.items()]
        captions.write_text("\n".join(["file,caption", *rows]), encoding="utf-8")
    else:
        rows = [json.dumps({"file": file, "caption": caption}) for file, caption in named.items()]
        captions.write_text("\n".join(rows) + "\n\n", encoding="utf-8")
    (folder / "old.txt").write_text("an old film\n")
    builder = video_folder.prepare(folder, tmp_path / "data", **SETTINGS, captions=captions)
    found = {file: record["caption"].decode() for (file, _), record in records(builder).items()}
    assert found == {
        "long.mp4": 'a wall, "gray"',
        "deeper/sixty.mov": "größer",
        "old.AVI": "an old film",
    }
    rejected = builder.report["rejected"]
    assert rejected["UPPER.MP4"] == "UPPER.MP4: no caption; add one, or set default_caption"
    assert rejected["gone.mp4"] == "gone.mp4: has a caption, but no such video"


def test_prepared_once_and_again_after_a_change(folder, tmp_path):
    def prepare(**settings):
        return video_folder.prepare(folder, tmp_path / "data", **(SETTINGS | settings), default_caption="gray")

    first = prepare()
    before = os.stat(first.data_dir).st_mtime_ns
    again = prepare()
    assert again.data_dir == first.data_dir
    assert os.stat(first.data_dir).st_mtime_ns == before
    assert again.report == first.report
    (folder / "long.txt").write_text("a new caption")
    other_caption = prepare()
    os.utime(folder / "UPPER.MP4", ns=(0, 0))
    touched = prepare()
    (folder / "UPPER.MP4").unlink()
    fewer = prepare()
    directories = [first, other_caption, touched, fewer, prepare(size=8), prepare(fps=2), prepare(frames=2)]
    assert len({builder.data_dir for builder in directories}) == 7
    assert "UPPER.MP4" not in fewer.report["clips"]


def test_feeds_the_pipeline(folder, tmp_path):
    builder = video_folder.prepare(folder, tmp_path / "data", **SETTINGS, default_caption="gray")
    source = builder.as_data_source(split="train")
    batch = next(make_batches(source, batch_size=6, frames=4, fps=4, size=8, seed=0))
    assert batch["video"].shape == (6, 4, 8, 8, 3)
    assert batch["caption"] == ["gray"] * 6
    assert (np.diff(batch["video"].mean(axis=(2, 3, 4)), axis=1) > 0).all()


def test_real_videos(fixtures, tmp_path):
    builder = video_folder.prepare(fixtures / "videos", tmp_path, frames=8, fps=8, size=32, default_caption="a video")
    rejected = builder.report["rejected"]
    assert rejected.keys() == {"corrupted.mp4", "unordered.mov"}
    assert rejected["corrupted.mp4"].startswith("corrupted.mp4: 28 frames decode, then: Invalid data")
    assert rejected["unordered.mov"].startswith("unordered.mov: too short, gives 1 of the 8 frames")
    # As many as the videos' durations hold: 5.28, 4.0, 10.33, 6.56, 10.0 and 10.0 seconds.
    assert builder.report["clips"] == {
        "bigbuckbunny.mp4": 5,
        "carphone_pristine.mp4": 4,
        "flipping_a_pancake.mkv": 10,
        "mm_test.avi": 6,
        "mm_test.mp4": 10,
        "scene_cuts.mp4": 10,
    }


def test_nothing_usable_is_an_error_with_every_reason(folder, tmp_path):
    with pytest.raises(video_io.VideoError, match="can be used") as caught:
        video_folder.prepare(folder, tmp_path / "data", **SETTINGS)
    assert str(caught.value).count("no caption") == 8


def test_bad_arguments(folder, tmp_path):
    def prepare(videos_dir=folder, **settings):
        return video_folder.prepare(videos_dir, tmp_path / "data", **(SETTINGS | settings))

    with pytest.raises(FileNotFoundError, match=r"videos_dir: .*absent is no directory"):
        prepare(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no video"):
        prepare(tmp_path / "empty")
    with pytest.raises(ValueError, match="frames, fps and size above 0"):
        prepare(frames=0)
    with pytest.raises(ValueError, match="size must be even"):
        prepare(size=15)
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        prepare(captions=tmp_path / "none.csv")
    (tmp_path / "c.csv").write_text("path,text\na.mp4,hello\n")
    with pytest.raises(ValueError, match=r"row 1 of .* needs file and caption"):
        prepare(captions=tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("file,caption\nlong.mp4,hello\nlong.mp4,hello\n")
    with pytest.raises(ValueError, match=r"names long\.mp4 twice"):
        prepare(captions=tmp_path / "d.csv")
    with pytest.raises(ValueError, match=r"must be a \.csv or \.jsonl"):
        prepare(captions=tmp_path / "e.txt")


def test_tensorflow_is_not_imported():
    code = "import sys, lumiere_jax.data.video_folder; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
