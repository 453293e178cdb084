"""TFDS's stock video data sets: ucf101, bair_robot_pushing_small, moving_mnist.

TFDS prepares them with TensorFlow (the `tf` extra). What it stores is one encoded PNG or JPEG per frame, which needs no
TensorFlow to be read: here the features are declared as those bytes, and the input pipeline decodes the frames that it
uses. So data that were prepared on one machine train on others without TensorFlow.

    source = open_stock_videos("ucf101", "data", split="train")
    source[0]["frames"], source[0]["caption"], source[0]["fps"]
"""

import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.dataset_info import read_proto_from_builder_dir
from tensorflow_datasets.core.read_only_builder import ReadOnlyBuilder
from tensorflow_datasets.core.utils.version import list_all_versions

from lumiere_jax.data.ucf101_prompts import PROMPTS


@dataclasses.dataclass(frozen=True)
class StockVideoSet:
    """What this project knows of a stock data set.

    Attributes:
        frames: the feature that holds the frames.
        splits: for training and for validation.
        fps: frames per second, where the data set has a rate.
        config: TFDS config where the name alone is given.
        label: the feature that holds the class, whose prompt is the caption; or
        caption: of every clip.
        needs: programs that preparing runs.
    """

    frames: str
    splits: tuple[str, str]
    fps: float | None = None
    config: str | None = None
    label: str | None = None
    caption: str = ""
    needs: tuple[str, ...] = ()


STOCK_VIDEO_SETS = {
    # 25 fps: "fixed frame rate" (Soomro et al. 2012). TFDS's default config, ucf101_1_256, squeezes 320x240 to 256x256.
    "ucf101": StockVideoSet("video", ("train", "test"), fps=25.0, config="ucf101_1", label="label", needs=("ffmpeg",)),
    "bair_robot_pushing_small": StockVideoSet(
        "image_main", ("train", "test"), caption="a robot arm pushing objects around in a bin"
    ),
    # It has a test split alone.
    "moving_mnist": StockVideoSet(
        "image_sequence",
        ("test[:90%]", "test[90%:]"),
        caption="two white handwritten digits moving on a black background",
    ),
}


class StockVideos(Sequence):
    """Records `frames` (list of PNG or JPEG bytes), `caption`, `fps`, `source`.

    Attributes:
        captions: every caption that a record can have.
    """

    def __init__(self, name: str, builder: "_EncodedFramesBuilder", split: str, fps: float | int):
        self._name, self._split, self._fps = name, split, fps
        self._stock = STOCK_VIDEO_SETS[builder.name]
        self._records = builder.as_data_source(split=split)
        self._prompts = None
        if self._stock.label:
            self._prompts = [PROMPTS[label] for label in builder.info.features[self._stock.label].names]
        self.captions = self._prompts or [self._stock.caption]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):  # array_record's own error is none that ends an iteration
            raise IndexError(f"{self._name} {self._split} has {len(self)} records, asked for number {index}")
        record = self._records[index]
        return {
            "frames": record[self._stock.frames],
            "caption": self._prompts[record[self._stock.label]] if self._prompts else self._stock.caption,
            "fps": self._fps,
            "source": f"{self._name} {self._split}",
        }


class _EncodedFramesBuilder(ReadOnlyBuilder, skip_registration=True):
    """Reads a prepared data set, its frames as they are stored; `features.Video` would import TensorFlow."""

    def _info(self) -> tfds.core.DatasetInfo:
        stock = STOCK_VIDEO_SETS[self.name]
        features = {stock.frames: tfds.features.Sequence(tfds.features.Scalar(np.object_))}
        if stock.label:
            features[stock.label] = tfds.features.ClassLabel(num_classes=len(PROMPTS))
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


def open_stock_videos(name: str, data_dir: str | os.PathLike) -> tuple[StockVideos, StockVideos]:
    """Opens a stock data set, preparing it first where it is missing.

    Args:
        name: a key of `STOCK_VIDEO_SETS`, with TFDS's config and version if wanted: `ucf101/ucf101_2:2.0.0`. A data
            set that has no frame rate is given one: `moving_mnist@10`.
        data_dir: the folder of TFDS data sets.

    Returns:
        Records for training and for validation.

    Raises:
        ValueError: an unknown name, a rate that is missing or given where the data set has its own, files of another
            format than array_record, or a data set that is missing and cannot be prepared here.
    """
    builder_name, config, version, fps = _parse(name)
    stock = STOCK_VIDEO_SETS[builder_name]
    directory = _find(data_dir, builder_name, config, version)
    if directory is None:
        _prepare("/".join(filter(None, (builder_name, config))) + (f":{version}" if version else ""), data_dir, stock)
        directory = _find(data_dir, builder_name, config, version)
    file_format = read_proto_from_builder_dir(directory).file_format
    if file_format != "array_record":
        raise ValueError(
            f"dataset.path={name!r}: {directory} holds {file_format} files, which have no random access. Convert them: "
            f"python -m tensorflow_datasets.scripts.convert_format --dataset_version_dir={directory} "
            "--out_file_format=array_record --out_dir=..., or give another dataset.data_dir"
        )
    builder = _EncodedFramesBuilder(directory)
    train, validation = (StockVideos(name, builder, split, fps) for split in stock.splits)
    return train, validation


def _parse(name: str) -> tuple[str, str | None, str | None, float]:
    """Builder, config, version and frames per second of NAME[/CONFIG][:VERSION][@FPS]."""
    path, _, rate = name.partition("@")
    path, _, version = path.partition(":")
    builder_name, _, config = path.partition("/")
    if builder_name not in STOCK_VIDEO_SETS:
        raise ValueError(f"dataset.path={name!r} is no stock data set: use {', '.join(STOCK_VIDEO_SETS)}")
    stock = STOCK_VIDEO_SETS[builder_name]
    if stock.fps and rate:
        raise ValueError(f"dataset.path={name!r}: leave @{rate} out, {builder_name} has {stock.fps:g} fps")
    if not stock.fps and not (rate.replace(".", "", 1).isdecimal() and float(rate) > 0):
        raise ValueError(
            f"dataset.path={name!r}: {builder_name} has no frame rate of its own; say how many of its frames make a "
            f"second, for example {path}@10 (clips are sampled by time)"
        )
    return builder_name, config or stock.config, version or None, stock.fps or float(rate)


def _find(data_dir: str | os.PathLike, name: str, config: str | None, version: str | None) -> epath.Path | None:
    """The directory of the version, or of the newest; None where there is none."""
    parent = epath.Path(data_dir).expanduser() / name / (config or "")
    versions = [version] if version else [str(found) for found in list_all_versions(parent)]
    directory = parent / versions[-1] if versions else None
    return directory if directory is not None and (directory / "dataset_info.json").exists() else None


def _prepare(name: str, data_dir: str | os.PathLike, stock: StockVideoSet) -> None:
    missing = [program for program in stock.needs if shutil.which(program) is None]
    if importlib.util.find_spec("tensorflow") is None:
        missing.insert(0, "TensorFlow (pip install 'lumiere-jax[tf]')")
    if missing:
        raise ValueError(
            f"dataset.path={name!r} is not in {data_dir}, and preparing it needs {', '.join(missing)}. Or prepare it "
            f"on another machine, tfds.builder({name!r}, file_format='array_record').download_and_prepare(), and copy "
            "the folder here: reading it needs none of these"
        )
    print(f"{name} is not in {data_dir}: downloading and preparing it with TFDS", flush=True)
    tfds.builder(name, data_dir=os.fspath(data_dir), file_format="array_record").download_and_prepare()
