"""The data set that a config names, prepared on first use."""

from collections.abc import Sequence

import ml_collections
import tensorflow_datasets as tfds

from lumiere_jax.data import moving_shapes, video_folder
from lumiere_jax.data.input_pipeline import Record
from lumiere_jax.data.prepared_clips import open_prepared


def open_dataset(config: ml_collections.ConfigDict) -> tuple[Sequence[Record], Sequence[Record]]:
    """Opens `config.dataset`, preparing it first where it is missing.

    Args:
      config: `dataset` of a training config.

    Returns:
      Records for training and for validation. Where a data set has the split `train` alone, it serves as both.

    Raises:
      ValueError: an unknown name, or a folder that cannot be used.
      FileNotFoundError: nothing prepared in `dataset.path`.
    """
    data_dir = config.data_dir or tfds.core.constants.DATA_DIR
    match config.name:
        case "moving_shapes":
            builder = moving_shapes.prepare(data_dir, config.path)
            return builder.as_data_source(split="train"), builder.as_data_source(split="validation")
        case "video_folder":
            if not config.path:
                raise ValueError("dataset.path is empty: give the folder of videos, --config.dataset.path=DIR")
            builder = video_folder.prepare(
                config.path,
                data_dir,
                frames=config.stored_frames,
                fps=config.stored_fps,
                size=config.stored_size,
                captions=config.captions or None,
                default_caption=config.default_caption or None,
            )
            return (builder.as_data_source(split="train"),) * 2
        case "prepared":
            if not config.path:
                raise ValueError("dataset.path is empty: give the output of prepare_data, --config.dataset.path=DIR")
            builder = open_prepared(config.path)
            if "train" not in builder.info.splits:
                raise ValueError(f"dataset.path={config.path} has no split train, only {sorted(builder.info.splits)}")
            validation = "validation" if "validation" in builder.info.splits else "train"
            return builder.as_data_source(split="train"), builder.as_data_source(split=validation)
        case _:
            raise ValueError(f"dataset.name={config.name!r}: use moving_shapes, video_folder or prepared")
