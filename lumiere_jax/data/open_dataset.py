"""The data set that a config names, prepared on first use."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from lumiere_jax.data import moving_shapes, stock_videos, style_images, video_folder
from lumiere_jax.data.clip_loader import Record, as_text
from lumiere_jax.data.mixture import Mixture, parse_mixture
from lumiere_jax.data.prepared_clips import PreparedClips, open_prepared

Dataset = Sequence[Record] | Mixture


def open_dataset(config: ml_collections.ConfigDict) -> tuple[Dataset, Dataset]:
    """Opens `config.dataset`, preparing it first where it is missing.

    Args:
      config: `dataset` of a training config.

    Returns:
      Records for training and for validation. Where a data set has the split `train` alone, it serves as both.

    Raises:
      ValueError: an unknown name, or data that cannot be used.
      FileNotFoundError: nothing prepared in `dataset.path`.
    """
    if config.name != "mixture":
        return _open(config, config.name, config.path)
    parts = parse_mixture(config.path)
    weights = tuple(weight for _, _, weight in parts)
    train, validation = zip(*(_open(config, name, path) for name, path, _ in parts), strict=True)
    return Mixture(train, weights), Mixture(validation, weights)


def _open(config: ml_collections.ConfigDict, name: str, path: str) -> tuple[Sequence[Record], Sequence[Record]]:
    data_dir = config.data_dir or tfds.core.constants.DATA_DIR
    match name:
        case "moving_shapes":
            builder = moving_shapes.prepare(data_dir, path)
            return builder.as_data_source(split="train"), builder.as_data_source(split=_validation_split(builder))
        case "video_folder":
            if not path:
                raise ValueError("dataset.path is empty: give the folder of videos, --config.dataset.path=DIR")
            builder = video_folder.prepare(
                path,
                data_dir,
                frames=config.stored_frames,
                fps=config.stored_fps,
                size=config.stored_size,
                captions=config.captions or None,
                default_caption=config.default_caption or None,
            )
            return (PreparedClips(builder, "train"),) * 2
        case "style_images":
            if not path:
                raise ValueError(
                    "dataset.path is empty: give an image or a folder of images, --config.dataset.path=DIR"
                )
            options = {"captions": config.captions or None, "default_caption": config.default_caption or None}
            return (style_images.open_style_images(path, **options),) * 2
        case "tfds":
            return stock_videos.open_stock_videos(path, data_dir)
        case "prepared":
            if not path:
                raise ValueError("dataset.path is empty: give the output of prepare_data, --config.dataset.path=DIR")
            builder = open_prepared(path)
            if "train" not in builder.info.splits:
                raise ValueError(f"dataset.path={path} has no split train, only {sorted(builder.info.splits)}")
            return PreparedClips(builder, "train"), PreparedClips(builder, _validation_split(builder))
        case _:
            known = "moving_shapes, prepared, video_folder, style_images, tfds or mixture"
            raise ValueError(f"dataset.name={name!r}: use {known}")


def _validation_split(builder: tfds.core.DatasetBuilder) -> str:
    return "validation" if "validation" in builder.info.splits else "train"


def captions_of(dataset: Dataset) -> list[str]:
    """The captions that records of the data set have, without reading a record where they are known ahead."""
    if isinstance(dataset, Mixture):
        return [caption for records in dataset.sources for caption in captions_of(records)]
    if isinstance(dataset, stock_videos.StockVideos | PreparedClips):
        return dataset.captions
    return [as_text(record["caption"]) for record in dataset]


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 (hex) of what a data set holds, as far as it is read at the start of a run.

    That is all captions in their order, the first and the last record; of a mixture also the
    weights. Other data, or the same in another order, are found out; a clip in the middle that was exchanged is not.
    """
    if isinstance(dataset, Mixture):
        parts = [fingerprint(records) for records in dataset.sources]
        return hashlib.sha256(json.dumps([parts, *map(float, dataset.weights)]).encode()).hexdigest()
    facts = [
        captions_of(dataset),
        *({name: _plain(field) for name, field in dataset[i].items()} for i in (0, len(dataset) - 1)),
    ]
    return hashlib.sha256(json.dumps([len(dataset), facts], sort_keys=True).encode()).hexdigest()


def _plain(field: Any) -> Any:
    """A field of a record as JSON has it; pictures and clips by their hash."""
    if isinstance(field, bytes):
        return hashlib.sha256(field).hexdigest()
    if isinstance(field, list | tuple):
        return [_plain(item) for item in field]
    return field.tolist() if isinstance(field, np.ndarray | np.generic) else field
