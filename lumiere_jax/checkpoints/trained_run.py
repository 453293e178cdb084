"""A trained model with all that is needed to sample from it: from a run's directory, or a published model's."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import DTypeLike

from lumiere_jax.abstract_model import abstract_unet
from lumiere_jax.checkpoints import safetensors_files
from lumiere_jax.checkpoints.checkpointing import CheckpointError, nested
from lumiere_jax.checkpoints.deepfloyd_if import check_parameters
from lumiere_jax.checkpoints.frozen_parts import load_image_unet, load_text_encoder
from lumiere_jax.checkpoints.run_directory import References, RunDirectory
from lumiere_jax.distributed import partitioning
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.conditioning import expand_first_convolution
from lumiere_jax.models.rematerialization import Rematerialization, rematerialize
from lumiere_jax.models.stunet import inflate
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.text.load_t5 import TOKENIZER, encoder_from_parameters
from lumiere_jax.text.storage import StoredArray
from lumiere_jax.text.tokenizer import Tokenizer

_OWN = References()  # to nothing: all is the run's own


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with all that is needed to sample from it or to inflate it."""

    config: ml_collections.ConfigDict
    tokenizer: Tokenizer
    model: TextToVideo  # with the averaged parameters
    step: int
    path: pathlib.Path
    mesh: jax.sharding.Mesh  # where its parameters lie, and where it is sampled
    references: References = _OWN

    def parameters(self) -> dict:
        """All parameters, as nested dicts."""
        return nnx.to_pure_dict(nnx.state(self.model))


def build_unet(config: ml_collections.ConfigDict, image_unet: UNet2D | None = None) -> UNet2D:
    """The U-Net of a config: `config.unet`, inflated where the config has `temporal`, with the policies of `remat`.

    Where the config has `conditioning`, its first convolution is that of the conditional model.

    Args:
      config: of a run.
      image_unet: the image model's, which is inflated in place; by default a new one.
    """
    unet = UNet2D(UNet2DConfig(**config.unet), rngs=nnx.Rngs(config.seed)) if image_unet is None else image_unet
    if "temporal" in config:
        unet = inflate(unet, TemporalConfig(**config.temporal), rngs=nnx.Rngs(config.seed + 1))
    if "conditioning" in config:
        kernel = config.conditioning.get("kernel", "zeros")  # runs from before this field have none
        unet = expand_first_convolution(unet, kernel=kernel, rngs=nnx.Rngs(config.seed))
    return rematerialize(unet, Rematerialization(**config.remat))


def load_run(
    path: str | os.PathLike[str],
    *,
    mesh: jax.sharding.Mesh | None = None,
    init_from: str | None = None,
    text_checkpoint: str | None = None,
    text_dtype: DTypeLike | None = None,
    ema_decay: float | None = None,
    require_finished: bool = False,
) -> Run:
    """Loads a trained model with its averaged parameters. In a run of several processes all of them call it.

    Args:
      path: a run directory, as `train --workdir` makes it, or a published model's.
      mesh: of all devices of all processes, on which it is sampled; None: their batch is divided over all of them.
      init_from: where the imported U-Net lies now, if it was moved since the training.
      text_checkpoint: where the imported text encoder lies now, if it was moved.
      text_dtype: of the parameters of an imported text encoder; None: the run's `compute_dtype`.
      ema_decay: which of the run's averages: one of `training.ema_decays`; None: the first.
      require_finished: refuse a run that has not reached its config's number of steps.

    Raises:
      CheckpointError: no such run, none of its training states is complete, one does not fit its config, or imported
        weights are gone or others than in training.
      ValueError: `init_from` or `text_checkpoint` for a run that holds its own, an average that it does not have, or a
        published model's weights that are damaged or do not fit its config.
    """
    directory = RunDirectory(path)
    mesh = make_mesh() if mesh is None else mesh
    config, tokenizer = directory.read_config(), directory.read_tokenizer()
    if config is None or tokenizer is None:
        missing = "config.json" if config is None else TOKENIZER
        raise CheckpointError(f"{path} is no run directory: it has no {missing}. Give the --workdir of a training run")
    if init_from and directory.read_references().unet is None:
        raise ValueError(f"init_from={init_from}: {path} refers to no imported U-Net, it holds its own")
    decays = config.training.ema_decays
    if ema_decay is not None and ema_decay not in decays:
        raise ValueError(f"ema_decay={ema_decay}: {path} has averages of training.ema_decays={decays}, choose of these")
    if directory.published_weights.exists():
        return _load_published(directory, config, tokenizer, mesh)
    chosen = 0 if ema_decay is None else decays.index(ema_decay)
    with directory.checkpoints() as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(
                f"{path} has no complete checkpoint: its training was stopped before the first one. Start the same "
                "training command again"
            )
        if require_finished and step < config.training.steps:
            raise CheckpointError(
                f"{path} has done {step} of {config.training.steps} steps: start its training command again to finish"
            )
        image_unet, unet_reference = None, None
        if "temporal" in config:
            everywhere = partitioning.replicated(mesh)
            image_unet, unet_reference = load_image_unet(directory, config, moved_to=init_from, sharding=everywhere)
        graphdef, trained, frozen = parameter_partition.split(build_unet(config, image_unet))
        trained = partitioning.shapes_on(trained, partitioning.parameter_shardings(mesh, trained))
        _, restored = manager.restore({"averages": {chosen: {"unet": trained}}}, step, partial=True)
    dtype, padding_sees_tokens = jnp.dtype(config.compute_dtype), config.text.padding_sees_tokens
    text_dtype = dtype if text_dtype is None else text_dtype
    text_encoder, text_reference = load_text_encoder(
        directory, step, moved_to=text_checkpoint, dtype=text_dtype, sharding=partitioning.replicated(mesh)
    )
    unet = nnx.merge(graphdef, restored["averages"][chosen]["unet"], frozen)
    model = TextToVideo(text_encoder, unet, dtype=dtype, padding_sees_tokens=padding_sees_tokens)
    return Run(config, tokenizer, model, step, directory.path, mesh, References(unet_reference, text_reference))


def _load_published(
    directory: RunDirectory, config: ml_collections.ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh
) -> Run:
    """The parameters come as they are in the file, and are computed with as float32."""
    stored = nested(safetensors_files.open_arrays(directory.published_weights))
    if stored.keys() != {"unet", "text_encoder"}:
        raise CheckpointError(
            f"{directory.published_weights} holds {sorted(stored)}, not the unet and text_encoder of a published "
            "model: copy it again, or publish it again with export_weights"
        )
    text_encoder = encoder_from_parameters(jax.tree.map(_in_float32, stored.pop("text_encoder")))
    temporal = TemporalConfig(**config.temporal) if "temporal" in config else None
    unet = abstract_unet(UNet2DConfig(**config.unet), temporal, is_conditional="conditioning" in config)
    graphdef, abstract = nnx.split(rematerialize(unet, Rematerialization(**config.remat)))
    expected = traverse_util.flatten_dict(nnx.to_pure_dict(abstract))
    check_parameters(traverse_util.flatten_dict(stored["unet"]), expected)
    model = TextToVideo(
        parameter_partition.freeze(text_encoder),
        nnx.merge(graphdef, jax.tree.map(_in_float32, stored["unet"])),
        dtype=jnp.dtype(config.compute_dtype),
        padding_sees_tokens=config.text.padding_sees_tokens,
    )
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, partitioning.place(mesh, nnx.to_pure_dict(state)))
    return Run(config, tokenizer, model, config.training.steps, directory.path, mesh)


def _in_float32(array: StoredArray) -> np.ndarray:
    return array.load().astype(np.float32)
