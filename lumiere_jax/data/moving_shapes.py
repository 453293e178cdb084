"""The embedded data set `moving_shapes`: captioned procedural clips with their ground truth.

    builder = prepare("data", "demo")
    source = builder.as_data_source("train")   # random access, no TensorFlow
    frames, times = video_io.decode_video(source[0]["clip"])

One or two plain shapes translate, bounce, circle, swing, grow, shrink or spin before a neutral background.
Everything follows from (seed, index). Single frames carry statistical cues of the motion, without which the
frozen image model could not hand the motion's words on to the video model: see `shapes_sampling`. None of this is
from the paper, whose data are 30M captioned clips of 80 frames at 16 fps (section 4).

The split `held_out` has only combinations of (shape, colour, motion) that no other split has, whereas each pair
of these attributes occurs in train (`shapes_scene.is_held_out`).
"""

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from lumiere_jax.data import video_io
from lumiere_jax.data.shapes_captions import caption
from lumiere_jax.data.shapes_rendering import render
from lumiere_jax.data.shapes_sampling import scene
from lumiere_jax.data.shapes_scene import MAX_OBJECTS, MovingObject, Scene, is_held_out, trajectory

__all__ = [
    "BUILDER_CONFIGS",
    "MovingObject",
    "MovingShapes",
    "MovingShapesConfig",
    "Scene",
    "caption",
    "is_held_out",
    "prepare",
    "prompts",
    "render",
    "scene",
    "trajectory",
]

# Each use draws from its own range of indices, so that no scene is shared whatever the number of clips.
_FIRST_INDEX = {"train": 0, "validation": 10**9, "held_out": 2 * 10**9, "prompts": 3 * 10**9}


@dataclasses.dataclass(eq=False)
class MovingShapesConfig(tfds.core.BuilderConfig):
    """What to generate. Two configurations of different values have different names, hence different files.

    Attributes:
      name: of the data set's folder; leave it out unless adding to `BUILDER_CONFIGS`: it is made of the values.
      size: width and height of a frame, pixels, >= 16.
      frames: frames in a clip, >= 1.
      fps: frames per second, > 0; the motion lasts `frames / fps` seconds.
      train: number of clips in the split of this name, >= 1; likewise
      validation: and
      held_out: (clips of attribute combinations that train does not have); of these two 0 is for no such split.
      seed: of all scenes, >= 0.
      two_object_probability: how often a clip shows two objects.
    """

    name: str = ""
    size: int = 64
    frames: int = 32
    fps: float | int = 16
    train: int = 3000
    validation: int = 200
    held_out: int = 200
    seed: int = 0
    two_object_probability: float | int = 0.15

    def __post_init__(self):
        for field, least in (("size", 16), ("frames", 1), ("train", 1), ("validation", 0), ("held_out", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"moving_shapes: {field}={getattr(self, field)} must be >= {least}")
        if not self.fps > 0:
            raise ValueError(f"moving_shapes: fps={self.fps} must be > 0")
        if self.seed < 0:
            raise ValueError(f"moving_shapes: seed={self.seed} must be >= 0")
        if not 0 <= self.two_object_probability <= 1:
            raise ValueError(f"moving_shapes: two_object_probability={self.two_object_probability} must be in [0, 1]")
        if not self.name:
            self.name = (
                f"{self.size}px_{self.frames}f_{self.fps:g}fps_{self.train}_{self.validation}_{self.held_out}"
                f"_seed{self.seed}_two{self.two_object_probability:g}"
            )

    @property
    def duration(self) -> float:
        """Seconds that a clip lasts."""
        return self.frames / self.fps


_EIGHT = {"train": 8, "validation": 0, "held_out": 0, "seed": 7, "two_object_probability": 0}

BUILDER_CONFIGS = {
    "demo": MovingShapesConfig(name="demo"),
    "one_object": MovingShapesConfig(name="one_object", two_object_probability=0.0),
    # For super-resolution; few enough that the decoded frames of all clips fit into `dataset.cache_bytes`.
    "one_object_256": MovingShapesConfig(
        name="one_object_256",
        size=256,
        frames=16,
        fps=8,
        train=200,
        validation=32,
        held_out=0,
        two_object_probability=0,
    ),
    "tiny": MovingShapesConfig(name="tiny", size=32, frames=16, train=16, validation=8, held_out=8),
    # What lumiere-shapes is trained on (docs/model_card.md): five seconds, as the paper's clips.
    "five_seconds": MovingShapesConfig(
        name="five_seconds", frames=40, fps=8, train=8000, validation=200, held_out=200, two_object_probability=0
    ),
    # To be learned by heart (docs/overfit.md). Few frames a second, so that 8 of them show a whole motion.
    "eight_clips": MovingShapesConfig(name="eight_clips", size=32, frames=8, fps=4, **_EIGHT),
    # To fine-tune lumiere-shapes on, in minutes (docs/demo.md).
    "eight_long_clips": MovingShapesConfig(name="eight_long_clips", frames=40, fps=8, **_EIGHT),
    "full": MovingShapesConfig(
        name="full", size=128, frames=80, train=50_000, validation=500, held_out=500, two_object_probability=0.3
    ),
}


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder; `prepare` makes and opens it.

    Features of an example: `clip`, a lossless mp4; `caption`; `fps`; `attributes`, the whole scene as JSON
    (`Scene.from_json`); `trajectory` [2, frames, 4], the (x, y, radius, angle) of each object in units of the
    frame's width and radians, NaN where there is no second object.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = list(BUILDER_CONFIGS.values())
    builder_config: MovingShapesConfig

    def _info(self) -> tfds.core.DatasetInfo:
        track_shape = (MAX_OBJECTS, self.builder_config.frames, 4)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Captioned procedural clips of moving shapes, with their ground truth.",
            features=tfds.features.FeaturesDict(
                {
                    "clip": tfds.features.Scalar(np.object_),
                    "caption": tfds.features.Text(),
                    "fps": tfds.features.Scalar(np.float32),
                    "attributes": tfds.features.Text(),
                    "trajectory": tfds.features.Tensor(shape=track_shape, dtype=np.float32),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        counts = {split: getattr(self.builder_config, split) for split in ("train", "validation", "held_out")}
        return {split: self._generate_examples(split) for split, count in counts.items() if count}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        count = getattr(self.builder_config, split)
        for number in range(count):
            yield number, self._example(split, number)
            if (number + 1) % 1000 == 0 and number + 1 < count:
                _say(f"  {split}: {number + 1} of {count} clips")

    def _example(self, split: str, number: int) -> dict[str, Any]:
        config = self.builder_config
        one = scene(
            config.seed,
            _FIRST_INDEX[split] + number,
            duration=config.duration,
            two_object_probability=config.two_object_probability,
            held_out=split == "held_out",
        )
        frames = render(one, config.size, config.frames, config.fps)
        return {
            "clip": video_io.encode_mp4(frames, float(config.fps), lossless=True),
            "caption": caption(one, _caption_rng(one)),
            "fps": config.fps,
            "attributes": one.to_json(),
            "trajectory": trajectory(one, config.frames, config.fps),
        }


def prepare(data_dir: str | os.PathLike, config: str | MovingShapesConfig = "demo") -> MovingShapes:
    """Opens the data set, generating it first where it is missing.

    Args:
      data_dir: the folder of TFDS data sets; this one goes to `data_dir/moving_shapes/<config>/<version>`.
      config: a key of `BUILDER_CONFIGS`, or a configuration of one's own.

    Returns:
      The builder; read it with `builder.as_data_source(split)`.

    Raises:
      ValueError: an unknown name.
    """
    if isinstance(config, str):
        if config not in BUILDER_CONFIGS:
            raise ValueError(
                f"moving_shapes has no config {config!r}: take one of {list(BUILDER_CONFIGS)} "
                "or pass a MovingShapesConfig"
            )
        config = BUILDER_CONFIGS[config]
    with _quiet_tfds():
        builder = MovingShapes(config=config, data_dir=os.fspath(data_dir), file_format="array_record")
        if not builder.is_prepared():
            clips = config.train + config.validation + config.held_out
            _say(f"Generating moving_shapes/{config.name} ({clips} clips) in {builder.data_dir} ...")
            builder.download_and_prepare()
            _say(f"  done: {builder.info.dataset_size / 2**20:.1f} MiB")
    return builder


def prompts(
    n: int, seed: int, held_out: bool = False, *, duration: float | int = 2.0, two_objects: bool = False
) -> list[tuple[str, Scene]]:
    """Captions with the scenes that they describe, for `evaluation.prompt_following`.

    No scene of theirs is in any data set.

    Args:
      n: how many.
      seed: of the scenes and of their wording.
      held_out: combinations of attributes that train does not have, rather than those that it has.
      duration: seconds that the scenes' motion lasts: matters for rendering them only.
      two_objects: in each scene, rather than one.

    Raises:
      ValueError: a value out of its range.
    """
    if n < 1:
        raise ValueError(f"n={n} must be >= 1")
    indices = range(_FIRST_INDEX["prompts"], _FIRST_INDEX["prompts"] + n)
    how = {"duration": duration, "two_object_probability": float(two_objects), "held_out": held_out}
    scenes = [scene(seed, index, **how) for index in indices]
    return [(caption(one, _caption_rng(one)), one) for one in scenes]


def _caption_rng(one: Scene) -> np.random.Generator:
    # A third number keeps this stream apart from the one that drew the scene.
    return np.random.default_rng((one.seed, one.index, 2))


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Hides TFDS's progress bars, its prints about a download, and its log below errors."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
