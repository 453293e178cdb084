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

import ml_collections

from lumiere_jax.checkpoints.checkpointing import CheckpointError, CheckpointManager
from lumiere_jax.distributed import processes
from lumiere_jax.models.rematerialization import Rematerialization
from lumiere_jax.text.load_t5 import TOKENIZER
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
