"""A pre-trained U-Net that was imported (`python -m lumiere_jax.import_weights deepfloyd_if`): one directory.

unet.safetensors   the parameters under our names and in our layouts
config.json        what the U-Net is, how it was trained, where it came from, SHA-256 of unet.safetensors
report.json        how the file's arrays became parameters

Runs refer to such a directory, they do not copy it: the weights stay where their licence says that they may be.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx, traverse_util
from jaxtyping import DTypeLike

from lumiere_jax.checkpoints import safetensors_files
from lumiere_jax.checkpoints.checkpointing import CheckpointError, nested
from lumiere_jax.checkpoints.deepfloyd_if import check_parameters
from lumiere_jax.checkpoints.import_report import ImportReport, initial_values
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig

WEIGHTS = "unet.safetensors"
# The same for every import of the same weights, so that its SHA-256 is, too.
_METADATA = {"format": "lumiere-jax", "contents": "UNet2D"}
# How all of DeepFloyd IF's U-Nets were trained.
DEEPFLOYD_IF_DIFFUSION = {"schedule": "discrete_cosine", "prediction": "epsilon"}


@dataclasses.dataclass(frozen=True)
class ImportedUNet:
    """What `config.json` says of an imported U-Net."""

    path: pathlib.Path  # the directory
    name: str  # for people
    config: UNet2DConfig
    diffusion: dict[str, str]  # how it was trained, as fields of a config's `diffusion`
    sha256: str  # of unet.safetensors

    @property
    def is_super_resolution(self) -> bool:
        """Whether it takes a low-resolution image (stage II)."""
        return self.config.noise_level_embedding


def is_imported_unet(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a directory that `import_weights deepfloyd_if` made."""
    return _read_facts(pathlib.Path(path)).get("class") == "UNet2D"


def write_imported_unet(
    directory: pathlib.Path, config: UNet2DConfig, report: ImportReport, source: dict[str, Any], dtype: DTypeLike | None
) -> ImportedUNet:
    """Writes `unet.safetensors` and `config.json` into `directory`, which exists; one array at a time is in memory.

    Args:
      directory: to write into.
      config: of the U-Net.
      report: whose arrays are written, and whose new parameters are initialised.
      source: what to say of where the weights came from.
      dtype: to store all in; None: as in the source.
    """
    arrays = dict(report.arrays)
    if report.new:
        arrays |= initial_values(lambda: UNet2D(config, rngs=nnx.Rngs(0)), report.new)
    if dtype is not None:
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    sha256 = safetensors_files.write_arrays(directory / WEIGHTS, arrays, _METADATA)
    facts = {
        "class": "UNet2D",
        "name": _name(config, report),
        "unet": dataclasses.asdict(config),
        "diffusion": DEEPFLOYD_IF_DIFFUSION,
        "sha256": sha256,
        "source": source,
    }
    (directory / "config.json").write_text(json.dumps(facts, indent=2) + "\n")
    return open_imported_unet(directory)


def _name(config: UNet2DConfig, report: ImportReport) -> str:
    return f"DeepFloyd IF, stage {'II' if config.noise_level_embedding else 'I'}, {report.parameters:,} parameters"


def open_imported_unet(path: str | os.PathLike[str]) -> ImportedUNet:
    """Reads `config.json`; the weights are not read.

    Raises:
      CheckpointError: not a directory that `import_weights deepfloyd_if` made, or an incomplete one.
    """
    path = pathlib.Path(path)
    facts = _read_facts(path)
    known = {field.name for field in dataclasses.fields(UNet2DConfig)}
    if facts.get("class") != "UNet2D" or set(facts["unet"]) != known or not (path / WEIGHTS).is_file():
        raise CheckpointError(
            f"{path} is no imported U-Net (its config.json and {WEIGHTS}), or was imported by another version: run "
            "python -m lumiere_jax.import_weights deepfloyd_if again"
        )
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in facts["unet"].items()}
    return ImportedUNet(
        pathlib.Path(os.path.abspath(path)), facts["name"], UNet2DConfig(**fields), facts["diffusion"], facts["sha256"]
    )


def _read_facts(path: pathlib.Path) -> dict[str, Any]:
    file = path / "config.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def load_imported_unet(
    imported: ImportedUNet, dtype: DTypeLike = jnp.float32, sharding: jax.sharding.Sharding | None = None
) -> UNet2D:
    """Loads the U-Net after its file was checked; parameters go one by one from the file to the devices.

    Args:
      imported: from `open_imported_unet`.
      dtype: of the parameters.
      sharding: of every parameter; None: the first local device.

    Raises:
      CheckpointError: the weights are not those of config.json.
    """
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    file = imported.path / WEIGHTS
    sha256 = safetensors_files.file_sha256(file)
    if sha256 != imported.sha256:
        raise CheckpointError(
            f"{file} is damaged or was exchanged: its sha256 is {sha256}, its config.json says {imported.sha256}. "
            "Import the weights again"
        )
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: UNet2D(imported.config, rngs=nnx.Rngs(0))))
    arrays = safetensors_files.open_arrays(file)
    check_parameters(traverse_util.flatten_dict(nested(arrays)), traverse_util.flatten_dict(nnx.to_pure_dict(abstract)))
    return nnx.merge(graphdef, nested({name: array.load(dtype, sharding) for name, array in arrays.items()}))


def check_conventions(imported: ImportedUNet, diffusion: ml_collections.ConfigDict) -> None:
    """Raises a ValueError where a config's `diffusion` is not how the imported U-Net was trained.

    The fields are not taken over silently: what a run computes stays readable in its config.
    """
    wrong = [
        f"--config.diffusion.{field}={value} (it is {diffusion[field]})"
        for field, value in imported.diffusion.items()
        if diffusion[field] != value
    ]
    if imported.is_super_resolution and not diffusion.low_res_factor:
        wrong.append("a super-resolution config such as configs/ssr.py (diffusion.low_res_factor is 0)")
    if not imported.is_super_resolution and diffusion.low_res_factor:
        wrong.append(f"--config.diffusion.low_res_factor=0 (it is {diffusion.low_res_factor}), or import a stage II")
    if wrong:
        raise ValueError(f"{imported.path} is {imported.name}. To train on it, use:\n  " + "\n  ".join(wrong))
