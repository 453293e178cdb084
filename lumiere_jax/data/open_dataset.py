"""The data set that a config names, prepared on first use."""

from collections.abc import Sequence

import ml_collections
import tensorflow_datasets as tfds

from lumiere_jax.data import moving_shapes, video_folder
from lumiere_jax.data.input_pipeline import Record


def open_dataset(config: ml_collections.ConfigDict) -> tuple[Sequence[Record], Sequence[Record]]:
    """Opens `config.dataset`, preparing it first where it is missing.

    Args:
      config: `dataset` of a training config.

    Returns:
      Records for training and for validation. A folder of videos has one split, which serves as both.

    Raises:
      ValueError: an unknown name, or a folder that cannot be used.
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
        case _:
            raise ValueError(f"dataset.name={config.name!r}: use moving_shapes or video_folder")
