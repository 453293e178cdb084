"""TFDS's stock data sets, on tiny ones that their real builders wrote (`tests/goldens/make_tfds_videos.py`)."""

import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from make_tfds_videos import MNIST_CLIPS, OUTPUT, UCF101_FRAMES, UCF101_SIZE, UCF101_VIDEOS, mnist_values, video_values

from configs import text_to_image
from lumiere_jax.data import stock_videos, video_io
from lumiere_jax.data.input_pipeline import make_batches
from lumiere_jax.data.open_dataset import captions_of, open_dataset
from lumiere_jax.data.ucf101_prompts import PROMPTS


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    # The first releases of Python 3.11 have no filters; later ones warn where none is chosen.
    filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(OUTPUT) as archive:
        archive.extractall(directory, **filters)
    return directory


def one_batch(source, **settings):
    settings = {"batch_size": len(source), "frames": 4, "fps": 5, "size": 16, "seed": 0, "shuffle": False} | settings
    return next(make_batches(source, **settings))


def numbers_and_times(batch):
    """What `video_values` wrote into red and green, through JPEG's rounding."""
    values = video_io.to_uint8(batch["video"]).astype(float)
    red, green = values[..., 2:6, 2:6, 0].mean((2, 3)), values[..., 2:6, 2:6, 1].mean((2, 3))
    return np.rint((red[:, 0] - 20) / 60).astype(int), green / 8


def test_ucf101_has_prompts_and_is_sampled_by_time(data_dir):
    train, validation = stock_videos.open_stock_videos("ucf101", data_dir)
    assert (len(train), len(validation)) == (3, 1)
    assert {record["caption"] for record in train} == {
        PROMPTS[c] for c in ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
    }
    assert validation[0]["caption"] == PROMPTS["BasketballDunk"]
    assert validation[0]["fps"] == 25.0
    assert len(validation[0]["frames"]) == UCF101_FRAMES
    prompts = {PROMPTS[pathlib.Path(file).parent.name]: number for file, number in UCF101_VIDEOS["train"].items()}
    starts = set()
    for batch in itertools.islice(make_batches(train, batch_size=3, frames=4, fps=5, size=16, seed=0), 10):
        numbers, times = numbers_and_times(batch)
        assert [prompts[caption] for caption in batch["caption"]] == numbers.tolist()
        np.testing.assert_allclose(np.diff(times), 5, atol=1)  # stored at 25 fps, wanted at 5
        starts |= set(np.rint(times[:, 0]).astype(int).tolist())
    assert len(starts) > 4


def test_frames_keep_their_colours_and_their_shape(data_dir):
    _, validation = stock_videos.open_stock_videos("ucf101/ucf101_1:2.0.0", data_dir)
    frames = one_batch(validation, frames=25, fps=25, size=UCF101_SIZE)["video"][0]
    expected = video_io.to_float(video_values(3, UCF101_FRAMES, *UCF101_SIZE))
    inside = np.r_[2:14, 18:30]  # away from the edge, which chroma at half the size blurs
    np.testing.assert_allclose(frames[:, :, inside], expected[:, :, inside], atol=0.15)


def test_bair_shows_its_main_camera(data_dir):
    train, validation = stock_videos.open_stock_videos("bair_robot_pushing_small@10", data_dir)
    for number, records in enumerate((train, validation)):
        frames = one_batch(records, frames=30, fps=10, size=64)["video"][0]
        np.testing.assert_array_equal(video_io.to_uint8(frames), video_values(number, 30, 64, 64))
        assert records.captions == [records[0]["caption"]] == ["a robot arm pushing objects around in a bin"]


def test_moving_mnist_is_grey_made_rgb_and_its_test_split_is_divided(data_dir):
    train, validation = stock_videos.open_stock_videos("moving_mnist@4", data_dir)
    assert (len(train), len(validation)) == (9, 1)
    shown = [one_batch(records, frames=20, fps=4, size=64)["video"] for records in (train, validation)]
    shown = {video_io.to_uint8(video).tobytes() for video in np.concatenate(shown)}
    assert shown == {np.repeat(mnist_values(number)[..., None], 3, -1).tobytes() for number in range(MNIST_CLIPS)}


def test_the_rate_that_is_given_decides_what_is_sampled(data_dir):
    slow, _ = stock_videos.open_stock_videos("bair_robot_pushing_small@5", data_dir)
    _, times = numbers_and_times(one_batch(slow, frames=3, fps=2.5))
    np.testing.assert_allclose(np.diff(times), 2)


def test_captions_are_known_without_reading_a_record(data_dir, monkeypatch):
    train, _ = stock_videos.open_stock_videos("ucf101", data_dir)
    monkeypatch.setattr(train, "_records", [train._records[0]])  # one record tells one caption
    assert captions_of(train) == [PROMPTS[name] for name in PROMPTS]  # in the order of the labels


def test_prompts_are_101_different_sentences():
    assert len(set(PROMPTS.values())) == len(PROMPTS) == 101
    for name, prompt in PROMPTS.items():
        assert " " in prompt, name
        assert prompt == prompt.strip()
        assert len(prompt) < 80


def test_reading_imports_no_tensorflow(data_dir):
    script = f"""
import sys
from lumiere_jax.data.input_pipeline import make_batches
from lumiere_jax.data.stock_videos import open_stock_videos
train, _ = open_stock_videos("ucf101", {str(data_dir)!r})
next(make_batches(train, batch_size=2, frames=2, fps=5, size=16, seed=0))
print("tensorflow" in sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert process.stdout == "False\n", process.stderr


def test_a_config_names_them(data_dir):
    config = text_to_image.get_config("test").dataset
    config.update({"name": "tfds", "path": "ucf101", "data_dir": str(data_dir)})
    train, validation = open_dataset(config)
    assert (len(train), len(validation)) == (3, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kinetics", "'kinetics' is no stock data set: use ucf101, bair_robot_pushing_small, moving_mnist"),
        ("ucf101@30", "leave @30 out, ucf101 has 25 fps"),
        ("moving_mnist", r"no frame rate of its own; .* moving_mnist@10"),
        ("moving_mnist@0", "no frame rate of its own"),
        ("moving_mnist@fast", "no frame rate of its own"),
        ("ucf101/ucf101_9", r"'ucf101/ucf101_9' is not in .*needs .*TensorFlow"),
        ("ucf101:1.0.0", r"'ucf101/ucf101_1:1.0.0' is not in .*TensorFlow .*ffmpeg"),
    ],
)
def test_names_that_cannot_be_opened(data_dir, monkeypatch, name, message):
    monkeypatch.setattr(stock_videos.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(stock_videos.shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match=message):
        stock_videos.open_stock_videos(name, data_dir)


def test_files_without_random_access(data_dir, tmp_path):
    directory = tmp_path / "moving_mnist/1.0.0"
    shutil.copytree(data_dir / "moving_mnist/1.0.0", directory)
    info = json.loads((directory / "dataset_info.json").read_text())
    (directory / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"holds tfrecord files.*convert_format"):
        stock_videos.open_stock_videos("moving_mnist@4", tmp_path)


def test_a_frame_that_is_no_picture(data_dir):
    train, _ = stock_videos.open_stock_videos("ucf101", data_dir)
    broken = [train[0] | {"frames": [b"\xff\xd8\xff\xe0 cut"] * 25}]
    with pytest.raises(video_io.VideoError, match=r"record 0 \(ucf101 train\): a frame cannot be decoded"):
        one_batch(broken)
