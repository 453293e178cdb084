"""What one training run leaves on disk. Whatever this project trained is in it; imported weights it refers to.

config.json                       the config, imported weights outside (path and SHA-256), the versions it ran with
tokenizer.model                   SentencePiece
text_encoder/checkpoint_<step>/   T5X format; absent where the text encoder was imported
backbone/                         inflated runs: the frozen image model; absent where it was imported
checkpoints/<step>/               training state: parameters, their average, optimiser
image_model/                      inflated runs that trained their backbone: its run directory
previews/, events.*               what people look at
"""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import DTypeLike

from lumiere_jax.checkpoints.checkpointing import CheckpointError, CheckpointManager, load_tree, tree_hash
from lumiere_jax.checkpoints.imported_unet import load_imported_unet, open_imported_unet
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.stunet import inflate
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d import UNet2D, UNet2DConfig
from lumiere_jax.text.load_t5 import TOKENIZER, load_t5_encoder
from lumiere_jax.text.storage import is_remote
from lumiere_jax.text.t5_encoder import T5Encoder
from lumiere_jax.text.t5x_checkpoint import write_t5x_checkpoint
from lumiere_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with all that is needed to sample from it or to inflate it."""

    config: ml_collections.ConfigDict
    tokenizer: Tokenizer
    model: TextToVideo  # with the averaged parameters
    step: int
    path: pathlib.Path

    def parameters(self) -> dict:
        """All parameters, as nested dicts."""
        return nnx.to_pure_dict(nnx.state(self.model))


class RunDirectory:
    """Paths of a run directory, and its small files."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)

    def checkpoints(self, keep: int = 2) -> CheckpointManager:
        """The training states."""
        return CheckpointManager(self.path / "checkpoints", keep=keep)

    @property
    def backbone(self) -> pathlib.Path:
        """The frozen image model of an inflated run."""
        return self.path / "backbone"

    @property
    def image_model(self) -> pathlib.Path:
        """The run directory of the image model that was trained first."""
        return self.path / "image_model"

    @property
    def previews(self) -> pathlib.Path:
        """Clips sampled while training."""
        return self.path / "previews"

    def read_config(self) -> ml_collections.ConfigDict | None:
        """The config that the run was started with; None before its first start."""
        file = self.path / "config.json"
        if not file.exists():
            return None
        return ml_collections.ConfigDict(_as_tuples(json.loads(file.read_text())["config"]))

    def write_config(self, config: ml_collections.ConfigDict, versions: dict[str, str]) -> None:
        """Writes `config.json`, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"config": json.loads(config.to_json_best_effort()), "versions": versions}, indent=2)
        partial = self.path / "config.json.partial"
        partial.write_text(text + "\n")
        partial.replace(self.path / "config.json")

    def read_tokenizer(self) -> Tokenizer | None:
        """The run's tokenizer; None before its first start."""
        file = self.path / "tokenizer.model"
        return Tokenizer.load(file) if file.exists() else None

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Writes `tokenizer.model`, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / "tokenizer.model.partial"
        partial.write_bytes(tokenizer.model_bytes)
        partial.replace(self.path / "tokenizer.model")

    def write_text_encoder(self, step: int, parameters: dict[str, Any], keep: int = 2) -> None:
        """Writes the text encoder as T5X does, for the training state of `step`; the newest `keep` stay.

        A text encoder that the run does not train is written once, for step 0.
        """
        directory = self.path / "text_encoder"
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / f"checkpoint_{step}").exists():
            write_t5x_checkpoint(directory, step, parameters)
        for old in sorted(_steps(directory))[:-keep]:
            shutil.rmtree(directory / f"checkpoint_{old}")

    def text_encoder(self, step: int) -> pathlib.Path:
        """The T5X checkpoint that belongs to the training state of `step`.

        Raises:
          CheckpointError: there is none.
        """
        directory = self.path / "text_encoder"
        for candidate in (step, 0):
            if candidate in _steps(directory):
                return directory / f"checkpoint_{candidate}"
        raise CheckpointError(f"{directory} has no text encoder for step {step}: was it removed? Train again")


def _steps(directory: pathlib.Path) -> list[int]:
    return [int(child.name.removeprefix("checkpoint_")) for child in directory.glob("checkpoint_*[0-9]")]


def _as_tuples(node: Any) -> Any:
    """JSON has no tuples; configs have no lists."""
    if isinstance(node, dict):
        return {key: _as_tuples(value) for key, value in node.items()}
    return tuple(_as_tuples(value) for value in node) if isinstance(node, list) else node


def build_unet(config: ml_collections.ConfigDict, image_parameters: dict | None = None) -> UNet2D:
    """The U-Net of a config: `config.unet`, inflated where the config has `temporal`.

    Args:
      config: of a run.
      image_parameters: the image model's, as `nnx.to_pure_dict` gives them; by default they are new.
    """
    fields = UNet2DConfig(**config.unet)
    if image_parameters is None:
        unet = UNet2D(fields, rngs=nnx.Rngs(config.seed))
    else:
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: UNet2D(fields, rngs=nnx.Rngs(0))))
        unet = nnx.merge(graphdef, image_parameters)
    if "temporal" in config:
        unet = inflate(unet, TemporalConfig(**config.temporal), rngs=nnx.Rngs(config.seed + 1))
    return unet


def load_backbone(path: str | os.PathLike[str], config: ml_collections.ConfigDict) -> dict:
    """Reads the image model's parameters that an inflated run keeps in `RunDirectory.backbone`."""
    image = nnx.eval_shape(lambda: UNet2D(UNet2DConfig(**config.unet), rngs=nnx.Rngs(0)))
    return load_tree(path, nnx.to_pure_dict(nnx.state(image)))


def load_run(path: str | os.PathLike[str], *, require_finished: bool = False) -> Run:
    """Loads a trained model with its averaged parameters.

    Args:
      path: a run directory, as `train --workdir` makes it.
      require_finished: refuse a run that has not reached its config's number of steps.

    Raises:
      CheckpointError: no such run, none of its training states is complete, or one does not fit its config.
    """
    directory = RunDirectory(path)
    config, tokenizer = directory.read_config(), directory.read_tokenizer()
    if config is None or tokenizer is None:
        missing = "config.json" if config is None else "tokenizer.model"
        raise CheckpointError(f"{path} is no run directory: it has no {missing}. Give the --workdir of a training run")
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
        backbone = load_backbone(directory.backbone, config) if "temporal" in config else None
        graphdef, trained, frozen = parameter_partition.split(build_unet(config, backbone))
        _, restored = manager.restore({"average": {"unet": trained}}, step, partial=True)
    text_encoder = parameter_partition.freeze(load_t5_encoder(directory.text_encoder(step)))
    unet = nnx.merge(graphdef, restored["average"]["unet"], frozen)
    model = TextToVideo(text_encoder, unet, dtype=jnp.dtype(config.compute_dtype))
    return Run(config, tokenizer, model, step, directory.path)
