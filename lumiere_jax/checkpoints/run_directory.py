"""What one training run leaves on disk. Whatever this project trained is in it; imported weights it refers to.

config.json                       the config, the data's hash, imported weights outside (path, SHA-256), versions
tokenizer.model                   SentencePiece
text_encoder/checkpoint_<step>/   T5X format; absent where the text encoder was imported
backbone/                         inflated runs: the frozen image model; absent where it was imported
checkpoints/<step>/               training state: parameters, their averages, optimiser
image_model/                      inflated runs that trained their backbone: its run directory
base/                             what starts from an inflated run: the temporal layers that it started from
index.html, previews/, events.*   what people look at
metrics.jsonl, parameters.txt     ... and read: measured values, the table of parameters

A published model (`published_model.py`) has the first two of these, and `weights.safetensors` in place of the others.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import DTypeLike

from lumiere_jax.checkpoints import safetensors_files
from lumiere_jax.checkpoints.checkpointing import CheckpointError, CheckpointManager, load_tree, nested, tree_hash
from lumiere_jax.checkpoints.deepfloyd_if import check_parameters
from lumiere_jax.checkpoints.imported_unet import load_imported_unet, open_imported_unet
from lumiere_jax.distributed import partitioning, processes
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.conditioning import expand_first_convolution
from lumiere_jax.models.rematerialization import Rematerialization, rematerialize
from lumiere_jax.models.stunet import inflate
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d import UNet2D, UNet2DConfig
from lumiere_jax.text.load_t5 import TOKENIZER, encoder_from_parameters, load_t5_encoder, open_t5_encoder
from lumiere_jax.text.storage import StoredArray, is_remote
from lumiere_jax.text.t5_encoder import T5Encoder
from lumiere_jax.text.t5x_checkpoint import write_t5x_checkpoint
from lumiere_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Reference:
    """Imported weights outside of a run's directory."""

    path: str  # absolute, or gs://
    sha256: str  # of unet.safetensors; of a text encoder's parameters (`tree_hash` of them in float32)


@dataclasses.dataclass(frozen=True)
class References:
    """What a run refers to because it was imported; None where the run holds its own."""

    unet: Reference | None = None
    text_encoder: Reference | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with all that is needed to sample from it or to inflate it."""

    config: ml_collections.ConfigDict
    tokenizer: Tokenizer
    model: TextToVideo  # with the averaged parameters
    step: int
    path: pathlib.Path
    mesh: jax.sharding.Mesh  # where its parameters lie, and where it is sampled
    references: References = References()

    def parameters(self) -> dict:
        """All parameters, as nested dicts."""
        return nnx.to_pure_dict(nnx.state(self.model))


class RunDirectory:
    """Paths of a run directory, and its small files. In a run of several processes the first alone writes them."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)

    def checkpoints(self, keep: int = 2) -> CheckpointManager:
        """The training states."""
        return CheckpointManager(self.path / "checkpoints", keep=keep)

    @property
    def published_weights(self) -> pathlib.Path:
        """All parameters of a published model."""
        return self.path / "weights.safetensors"

    @property
    def backbone(self) -> pathlib.Path:
        """The frozen image model of an inflated run."""
        return self.path / "backbone"

    @property
    def base(self) -> pathlib.Path:
        """The temporal layers that a student, a conditional model or a fine-tuned run started from."""
        return self.path / "base"

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
        facts = self._read_facts()
        return config_from_json(facts["config"]) if facts else None

    def read_references(self) -> References:
        """The imported weights that the run refers to."""
        references = self._read_facts().get("references", {})
        return References(**{name: Reference(**value) for name, value in references.items() if value})

    def read_versions(self) -> dict[str, str]:
        """What the run ran with when it was last started."""
        return self._read_facts().get("versions", {})

    def read_data(self) -> dict[str, str]:
        """The `fingerprint` of the data sets that the run was started with, by split; empty if it is not known."""
        return self._read_facts().get("data", {})

    def _read_facts(self) -> dict[str, Any]:
        file = self.path / "config.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def write_config(
        self,
        config: ml_collections.ConfigDict,
        versions: dict[str, str],
        references: References = References(),
        data: Mapping[str, str] | None = None,
    ) -> None:
        """Writes `config.json`, whole or not at all.

        Args:
          config: of the run.
          versions: what it runs with.
          references: to imported weights.
          data: `fingerprint` of the data sets by split.
        """
        facts = {
            "config": json.loads(config.to_json_best_effort()),
            "data": dict(data or {}),
            "references": dataclasses.asdict(references),
            "versions": versions,
        }
        self._write("config.json", (json.dumps(facts, indent=2) + "\n").encode())

    def _write(self, name: str, content: bytes) -> None:
        if processes.is_first():
            self.path.mkdir(parents=True, exist_ok=True)
            partial = self.path / f"{name}.partial"
            partial.write_bytes(content)
            partial.replace(self.path / name)

    def read_tokenizer(self) -> Tokenizer | None:
        """The run's tokenizer; None before its first start."""
        file = self.path / TOKENIZER
        return Tokenizer.load(file) if file.exists() else None

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Writes `tokenizer.model`, whole or not at all."""
        self._write(TOKENIZER, tokenizer.model_bytes)

    def write_text_encoder(self, step: int, parameters: dict[str, Any], keep: int = 2) -> None:
        """Writes the text encoder as T5X does, for the training state of `step`, before that; the newest `keep` stay.

        One that this project trained but the run does not is written once, for step 0; an imported one never.
        """
        if not processes.is_first():
            return
        directory = self.path / "text_encoder"
        directory.mkdir(parents=True, exist_ok=True)
        # What a killed run left: half-written, or of steps whose training state was never complete or is lost.
        half_written = [child for child in directory.iterdir() if ".tmp-" in child.name]
        for left in [*half_written, *(_encoder(directory, other) for other in _steps(directory) if other >= step)]:
            shutil.rmtree(left)
        write_t5x_checkpoint(directory, step, parameters)
        for old in sorted(_steps(directory))[:-keep]:
            shutil.rmtree(_encoder(directory, old))

    def remove_image_model(self) -> None:
        """Removes the run's copies of what it starts from: frozen image model, text encoder, temporal layers."""
        if not processes.is_first():
            return
        for directory in (self.backbone, self.base, self.path / "text_encoder"):
            if directory.exists():
                shutil.rmtree(directory)

    def text_encoder(self, step: int) -> pathlib.Path:
        """The T5X checkpoint that belongs to the training state of `step`.

        Raises:
          CheckpointError: there is none.
        """
        directory = self.path / "text_encoder"
        for candidate in (step, 0):
            if candidate in _steps(directory):
                return _encoder(directory, candidate)
        raise CheckpointError(f"{directory} has no text encoder for step {step}: was it removed? Train again")


def _encoder(directory: pathlib.Path, step: int) -> pathlib.Path:
    return directory / f"checkpoint_{step}"


def _steps(directory: pathlib.Path) -> list[int]:
    names = (child.name.removeprefix("checkpoint_") for child in directory.glob("checkpoint_*"))
    return [int(name) for name in names if name.isdecimal()]  # others are half-written


def config_from_json(fields: dict[str, Any]) -> ml_collections.ConfigDict:
    """The config that `to_json_best_effort` wrote, with what it lacks because it was written by an older version.

    Before there was `text.padding_sees_tokens`, and with it embeddings ahead of time, all text was encoded as T5X does.
    Before there were flips and batches of single frames, a run had none. Exported layers have no `dataset`. Before
    there was `remat`, every activation was kept. Before there were crops and degraded low-resolution videos, a run had
    none, and low-resolution videos were enlarged with aligned corners.
    """
    before = {
        "clip": {"crop_from": 0},
        "dataset": {"flip_probability": 0.0},
        "diffusion": {"max_blur": 0.0, "min_jpeg_quality": 0, "align_corners": True},
        "training": {"image_share": 0.0, "image_batch_size": 0},
        "text": {"padding_sees_tokens": False},
    }
    fields = {"remat": dataclasses.asdict(Rematerialization())} | _as_tuples(fields)
    return ml_collections.ConfigDict(fields | {name: before[name] | fields[name] for name in before if name in fields})


def _as_tuples(node: Any) -> Any:
    """JSON has no tuples; configs have no lists."""
    if isinstance(node, dict):
        return {key: _as_tuples(value) for key, value in node.items()}
    return tuple(_as_tuples(value) for value in node) if isinstance(node, list) else node


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


# ---------------------------------------------------------------- The frozen parts: the run's own, or imported


def load_image_unet(
    directory: RunDirectory,
    config: ml_collections.ConfigDict,
    *,
    moved_to: str | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[UNet2D, Reference | None]:
    """The image model's U-Net under an inflated run: its own copy, or the imported one that it refers to.

    Args:
      directory: of the run.
      config: of the run.
      moved_to: where the imported U-Net lies now, if it was moved.
      sharding: of every parameter; None: the first local device.

    Returns:
      the U-Net, and how to refer to it from now on (None: it is the run's own).

    Raises:
      CheckpointError: it is missing, damaged, or not the one that the run was made with.
    """
    fields = UNet2DConfig(**config.unet)
    recorded = directory.read_references().unet
    if recorded is None:
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: UNet2D(fields, rngs=nnx.Rngs(0))))
        return nnx.merge(graphdef, load_tree(directory.backbone, nnx.to_pure_dict(abstract), sharding)), None
    imported = open_imported_unet(_locate("U-Net", recorded, moved_to))
    found = Reference(str(imported.path), imported.sha256)
    check_same("U-Net", found, recorded)
    imported = dataclasses.replace(imported, config=fields)
    return load_imported_unet(imported, jnp.dtype(config.compute_dtype), sharding), found


def load_text_encoder(
    directory: RunDirectory,
    step: int,
    *,
    moved_to: str | None = None,
    dtype: DTypeLike = jnp.float32,
    sharding: jax.sharding.Sharding | None = None,
    on_host: bool = False,
) -> tuple[T5Encoder, Reference | None]:
    """The text encoder of a run at `step`, frozen: its own, in float32, or the imported one that it refers to.

    Arguments, result and errors as for `load_image_unet`; `dtype` as for `load_imported_text_encoder`; `on_host` as for
    `load_t5_encoder`; a ValueError for `moved_to` of a run that holds its own.
    """
    recorded = directory.read_references().text_encoder
    if moved_to and recorded is None:
        raise ValueError(f"text encoder {moved_to}: {directory.path} refers to no imported one, it holds its own")
    if recorded is None:
        encoder = load_t5_encoder(directory.text_encoder(step), sharding=sharding, on_host=on_host)
        return parameter_partition.freeze(encoder), None
    path = _locate("text encoder", recorded, moved_to)
    return load_imported_text_encoder(path, recorded, dtype=dtype, sharding=sharding, on_host=on_host)


def load_imported_text_encoder(
    path: str,
    recorded: Reference | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    sharding: jax.sharding.Sharding | None = None,
    on_host: bool = False,
) -> tuple[T5Encoder, Reference]:
    """A pre-trained text encoder, frozen, and how to refer to it. It computes in float32, whatever `dtype` is.

    The file is read twice: one array at a time for the hash, which is of float32 values, and then to where it belongs.

    Args:
      path: as for `load_t5_encoder`.
      recorded: what it must be the same as; None: nothing yet.
      dtype: of its parameters.
      sharding, on_host: where its parameters lie, as for `load_t5_encoder`.

    Raises:
      CheckpointError: it is another than `recorded`.
    """
    absolute = path if is_remote(path) else os.path.abspath(path)
    stored = jax.tree.map(lambda array: array.astype(np.float32), open_t5_encoder(path))
    found = Reference(absolute, tree_hash(stored))
    if recorded is not None:
        check_same("text encoder", found, recorded)
    encoder = load_t5_encoder(path, param_dtype=dtype, sharding=sharding, on_host=on_host)
    return parameter_partition.freeze(encoder), found


def text_encoder_sha256(text_encoder: T5Encoder, reference: Reference | None) -> str:
    """The `Reference.sha256` of a text encoder: as it was found in loading an imported one, else computed.

    Args:
      text_encoder: where `reference` is None, with its float32 parameters.
      reference: how a run refers to it; None: it holds its own.
    """
    return reference.sha256 if reference else tree_hash(nnx.to_pure_dict(nnx.state(text_encoder)))


_MOVED = {
    "U-Net": "--config.init_from=DIR in training, --init_from=DIR in sampling",
    "text encoder": "--config.text.checkpoint=DIR in training, --text_checkpoint=DIR in sampling",
}


def _locate(what: str, recorded: Reference, moved_to: str | None) -> str:
    path = moved_to or recorded.path
    if not is_remote(path) and not os.path.exists(path):
        raise CheckpointError(
            f"the imported {what} that this run refers to is not at {path}: put it back, import it again, or say where "
            f"it is now ({_MOVED[what]}). Its sha256 is {recorded.sha256}"
        )
    return path


def check_same(what: str, found: Reference, recorded: Reference) -> None:
    """Raises a CheckpointError if `found` is not the U-Net or text encoder that was `recorded`."""
    if found.sha256 != recorded.sha256:
        raise CheckpointError(
            f"{found.path} is another {what} than the one that was trained with: its sha256 is {found.sha256}, wanted "
            f"is {recorded.sha256} ({recorded.path}). Say where that one is ({_MOVED[what]}), or import it again as it "
            "was, with the same --dtype"
        )


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
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build_unet(config)))
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
