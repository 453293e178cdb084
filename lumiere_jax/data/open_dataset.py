"""The data set that a config names, prepared on first use."""

from collections.abc import Sequence

import ml_collections
import tensorflow_datasets as tfds

from lumiere_jax.data import moving_shapes, stock_videos, video_folder
from lumiere_jax.data.clip_loader import Record, as_text
from lumiere_jax.data.mixture import Mixture, parse_mixture
from lumiere_jax.data.prepared_clips import open_prepared

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
            return _splits(moving_shapes.prepare(data_dir, path))
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
            return _splits(builder)
        case "tfds":
            return stock_videos.open_stock_videos(path, data_dir)
        case "prepared":
            if not path:
                raise ValueError("dataset.path is empty: give the output of prepare_data, --config.dataset.path=DIR")
            builder = open_prepared(path)
            if "train" not in builder.info.splits:
                raise ValueError(f"dataset.path={path} has no split train, only {sorted(builder.info.splits)}")
            return _splits(builder)
        case _:
            raise ValueError(f"dataset.name={name!r}: use moving_shapes, prepared, video_folder, tfds or mixture")


def _splits(builder: tfds.core.DatasetBuilder) -> tuple[Sequence[Record], Sequence[Record]]:
    validation = "validation" if "validation" in builder.info.splits else "train"
    return builder.as_data_source(split="train"), builder.as_data_source(split=validation)


def captions_of(dataset: Dataset) -> list[str]:
    """The captions that records of the data set have, without reading a record where they are known ahead."""
    if isinstance(dataset, Mixture):
        return [caption for records in dataset.sources for caption in captions_of(records)]
    if isinstance(dataset, stock_videos.StockVideos):
        return dataset.captions
    return [as_text(record["caption"]) for record in dataset]
