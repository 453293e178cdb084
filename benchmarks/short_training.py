"""Short trainings of temporal layers that differ in one thing: what the ablations of the paper share.

One image model is trained as for any run (`lumiere_jax.train`) and frozen. Each variant then inflates it anew and
trains its temporal layers on the same batches with the same noise. The losses reported are those of the parameters as
they are: their average would hide the first steps.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from configs import stunet
from lumiere_jax.checkpoints.image_model import ImageModel, load_image_model
from lumiere_jax.data.open_dataset import Dataset, open_dataset
from lumiere_jax.distributed.model_flops import count_flops
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.stunet import inflate
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.optimizer import make_optimizer
from lumiere_jax.train import train
from lumiere_jax.train_setup import batches_of, caption_encoder, make_objective, training_batches_of
from lumiere_jax.train_step import Batch, create_state, train_step, validation_step

# Compiled once for all variants whose networks have the same structure.
_update = jax.jit(
    train_step, static_argnames=("graphdef", "optimizer", "objective", "ema_decays"), donate_argnames="state"
)
_validate = jax.jit(validation_step, static_argnames=("graphdef", "objective"))


@dataclasses.dataclass(frozen=True)
class Data:
    """A frozen image model and the clips that temporal layers are trained and measured on."""

    name: str
    config: ml_collections.ConfigDict
    image: ImageModel
    train_set: Dataset
    validation: Batch


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one training measured."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]  # on the validation clips at fixed noise levels
    image_model_loss: float  # the same, of the image model frame by frame
    seconds_per_step: float  # without compilation and validation

    def points(self) -> Iterator[tuple[int, float]]:
        """(step, loss) of each measurement."""
        return zip(self.steps, self.losses, strict=True)


def ablation_config(videos: str, image_steps: int, size: int = 32) -> ml_collections.ConfigDict:
    """The demo's config with a shorter training of its image model.

    Args:
      videos: a folder of real clips; empty: moving_shapes.
      image_steps: of the image model.
      size: height and width, pixels.
    """
    config = stunet.get_config("demo")
    if videos:
        config.dataset.update({"name": "video_folder", "path": videos})
    image = config.image_model
    image.training.update({"steps": image_steps, "checkpoint_every": image_steps, "validate_every": image_steps})
    image.training.preview_every = 0
    config.clip.size = image.clip.size = size
    config.sampling.threshold = "static"  # the dynamic one ties the frames of a clip together
    return config


def prepare(name: str, config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> Data:
    """Trains the image model, or takes the one that an earlier start left in `workdir`, and opens the clips.

    Args:
      name: of the data, for tables and files.
      config: as `ablation_config` makes it; the one in `Data` has the image model's sizes too.
      workdir: holds the image model's run.
    """
    directory = pathlib.Path(workdir) / f"image_model_{name}"
    train(config.image_model, directory)
    image = load_image_model(directory)
    config = ml_collections.ConfigDict(config.to_dict())
    config.unet = dataclasses.asdict(image.unet.config)
    train_set, validation_set = open_dataset(config.dataset)
    encode = caption_encoder(config, image.tokenizer, None)
    validation = next(batches_of(config, encode, validation_set, config.training.validation_clips))
    return Data(name, config, image, train_set, _to_batch(validation))


def training_batches(data: Data, seed: int, steps: int) -> list[Batch]:
    """The batches of a training, in memory: the same for every variant of a seed."""
    config = ml_collections.ConfigDict(data.config.to_dict())
    config.seed = seed
    encode = caption_encoder(config, data.image.tokenizer, None)
    batches = training_batches_of(config, encode, data.train_set, start_step=0)
    return [_to_batch(batch) for batch in itertools.islice(batches, steps)]


def inflated(data: Data, seed: int, **temporal: Any) -> TextToVideo:
    """A new STUNet over the image model.

    Args:
      data: what to inflate.
      seed: of the new parameters.
      temporal: fields of `TemporalConfig` that differ from the config's.
    """
    fields = TemporalConfig(**(data.config.temporal.to_dict() | temporal))
    return _model(data, inflate(nnx.merge(*nnx.split(data.image.unet)), fields, rngs=nnx.Rngs(seed)))


def image_model(data: Data) -> TextToVideo:
    """The image model itself, which makes each frame on its own."""
    return _model(data, data.image.unet)


def step_settings(config: ml_collections.ConfigDict, steps: int) -> dict[str, Any]:
    """What a training step is compiled for; trainings that share this object share the compiled program."""
    fields = ml_collections.ConfigDict(config.training.to_dict() | {"steps": steps})
    return {"optimizer": make_optimizer(fields), "objective": make_objective(config), "ema_decays": (0.0,)}


def flops_per_step(model: TextToVideo, batch: Batch, settings: dict[str, Any]) -> float:
    """XLA's count for the lowered training step."""
    graphdef, trained, frozen = parameter_partition.split(model)
    state = jax.eval_shape(lambda parameters: create_state(parameters, settings["optimizer"]), trained)
    return count_flops(functools.partial(train_step, graphdef=graphdef, **settings), state, frozen, batch, 0)


def train_temporal(
    model: TextToVideo,
    batches: Sequence[Batch],
    validation: Batch,
    settings: dict[str, Any],
    *,
    seed: int,
    measure_at: Sequence[int],
) -> Curve:
    """Trains the temporal layers of `model`, which is used up, for one step a batch.

    Args:
      model: as `inflated` makes it.
      batches: one for each step.
      validation: clips on which the loss is measured.
      settings: as `step_settings` makes them, for as many steps.
      seed: of the noise.
      measure_at: steps after which the validation loss is taken; 0 is before training.
    """
    graphdef, trained, frozen = parameter_partition.split(model)
    state, seed = create_state(trained, settings["optimizer"]), jnp.int32(seed)
    update = _update.lower(state, frozen, batches[0], seed, graphdef=graphdef, **settings).compile()
    validate = functools.partial(_validate, graphdef=graphdef, objective=settings["objective"])
    measured, seconds = {}, 0.0
    for step in range(len(batches) + 1):
        if step > 0:
            since = time.perf_counter()
            state, _ = jax.block_until_ready(update(state, frozen, batches[step - 1], seed))
            seconds += time.perf_counter() - since
        if step in measure_at:
            losses = validate(state.parameters, frozen, validation)
            measured[step] = {name: float(loss) for name, loss in losses.items()}
    return Curve(
        steps=tuple(measured),
        losses=tuple(losses["loss"] for losses in measured.values()),
        image_model_loss=next(iter(measured.values()))["image_model_loss"],
        seconds_per_step=seconds / len(batches),
    )


def _model(data: Data, unet: UNet2D) -> TextToVideo:
    config = data.config
    return TextToVideo(
        parameter_partition.freeze(data.image.text_encoder),
        unet,
        dtype=jnp.dtype(config.compute_dtype),
        padding_sees_tokens=config.text.padding_sees_tokens,
    )


def _to_batch(batch: dict) -> Batch:
    return Batch(jnp.asarray(batch["video"]), jnp.asarray(batch["text"]))
