"""The trained part of an inflated run in one safetensors file: what one may share, without the backbone under it.

The file holds the averaged temporal parameters (`average` of the training state). Its metadata hold the config (without
local paths), and the SHA-256 of the backbone, text encoder and tokenizer that they belong to, which are checked when
the file is loaded onto them.
"""

import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx, traverse_util

from lumiere_jax.checkpoints import safetensors_files
from lumiere_jax.checkpoints.checkpointing import CheckpointError, named_leaves, nested, tree_hash
from lumiere_jax.checkpoints.deepfloyd_if import check_parameters
from lumiere_jax.checkpoints.frozen_parts import check_same, text_encoder_sha256
from lumiere_jax.checkpoints.image_model import load_image_model
from lumiere_jax.checkpoints.imported_unet import is_imported_unet, open_imported_unet
from lumiere_jax.checkpoints.run_directory import Reference, RunDirectory, config_from_json
from lumiere_jax.checkpoints.trained_run import Run, build_unet, load_run
from lumiere_jax.distributed import partitioning
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.stunet import deflate
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.text.storage import StoredArray

CONTENTS = "lumiere-jax temporal layers: the trained part only, no backbone weights inside"


def export_temporal(
    path: str | os.PathLike[str], output: str | os.PathLike[str], *, license_text: str = ""
) -> dict[str, str]:
    """Writes the averaged temporal parameters of the newest checkpoint of a run.

    Args:
      path: the directory of an inflated run.
      output: a `.safetensors` file, which must not exist.
      license_text: of the temporal parameters, for the metadata.

    Returns:
      the metadata that were written.

    Raises:
      CheckpointError: as `load_run`.
      FileExistsError: `output` exists.
      ValueError: an image model's run, or `output` is not a `.safetensors` file.
    """
    if pathlib.Path(output).suffix != ".safetensors":
        raise ValueError(f"output={os.fspath(output)}: give a file name that ends in .safetensors")
    if os.path.lexists(output):
        raise FileExistsError(f"output={os.fspath(output)} exists: remove it, or choose another file")
    run = load_run(path)
    if "temporal" not in run.config:
        raise ValueError(f"{path} is the run of an image model: only an inflated one has temporal layers to export")
    _, temporal, _ = parameter_partition.split(run.model.unet)
    unet, name = run.references.unet, "an image model trained by Lumiere-JAX"
    if unet is not None:
        name = open_imported_unet(unet.path).name
    metadata = {
        "contents": CONTENTS,
        "license": license_text,
        "config": without_paths(run.config).to_json_best_effort(),
        "step": str(run.step),
        "backbone": name,
        "backbone_sha256": unet.sha256 if unet else _sha256_of(deflate(run.model.unet)),
        "text_encoder_sha256": text_encoder_sha256(run.model.text_encoder, run.references.text_encoder),
        "tokenizer_sha256": hashlib.sha256(run.tokenizer.model_bytes).hexdigest(),
        "versions": json.dumps(RunDirectory(path).read_versions()),
    }
    arrays = {name: StoredArray.in_memory(np.asarray(leaf)) for name, leaf in named_leaves(temporal).items()}
    safetensors_files.write_arrays(output, arrays, metadata)
    return metadata


def _sha256_of(module: nnx.Module) -> str:
    return tree_hash(nnx.to_pure_dict(nnx.state(module)))


def without_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """What of a config is of use elsewhere: not this machine's paths and devices, nor the image model's training."""
    fields = {k: v for k, v in config.to_dict().items() if k not in ("dataset", "image_model", "init_from", "mesh")}
    fields["text"] = {k: v for k, v in fields["text"].items() if k not in ("checkpoint", "tokenizer", "embeddings")}
    for section, field in (("conditioning", "base"), ("distillation", "teacher"), ("style", "base")):
        if field in fields.get(section, {}):
            fields[section][field] = ""
    return ml_collections.ConfigDict(fields)


def load_temporal(
    path: str | os.PathLike[str],
    *,
    init_from: str,
    text_checkpoint: str = "",
    tokenizer: str = "",
    mesh: jax.sharding.Mesh | None = None,
) -> Run:
    """Puts exported temporal layers onto the image model that they were trained over.

    Args:
      path: the file that `export_temporal` wrote.
      init_from: the image model: an imported U-Net's directory, or the run of an image model.
      text_checkpoint: with an imported U-Net: its T5 encoder, as for `load_image_model`.
      tokenizer: the SentencePiece model of `text_checkpoint`; default: `tokenizer.model` in it.
      mesh: as for `load_run`.

    Returns:
      A run to sample from: it gives what the exported run gives, bit by bit.

    Raises:
      CheckpointError: another U-Net, text encoder or tokenizer than in training; the message names both hashes.
      FileNotFoundError, ValueError: `path` is missing, damaged, or not such a file; or as `load_image_model`.
    """
    metadata = safetensors_files.read_metadata(path)
    if metadata.get("contents") != CONTENTS:
        raise ValueError(f"{path} was not written by export_weights: it does not say that it holds temporal layers")
    config = config_from_json(json.loads(metadata["config"]))
    backbone = Reference(metadata["backbone"], metadata["backbone_sha256"])
    if is_imported_unet(init_from):  # known before anything is loaded
        check_same("U-Net", Reference(init_from, open_imported_unet(init_from).sha256), backbone)
    dtype, mesh = jnp.dtype(config.compute_dtype), make_mesh() if mesh is None else mesh
    image = load_image_model(init_from, text_checkpoint=text_checkpoint, tokenizer=tokenizer, dtype=dtype, mesh=mesh)
    if image.references.unet is None:
        check_same("U-Net", Reference(init_from, _sha256_of(image.unet)), backbone)
    if image.unet.config != UNet2DConfig(**config.unet):
        raise CheckpointError(f"{init_from} has {image.unet.config}, {path} was trained over {config.unet}")
    text_sha256 = text_encoder_sha256(image.text_encoder, image.references.text_encoder)
    found = (text_sha256, hashlib.sha256(image.tokenizer.model_bytes).hexdigest())
    for what, ours in zip(("text encoder", "tokenizer"), found, strict=True):
        wanted = metadata[f"{what.replace(' ', '_')}_sha256"]
        if ours != wanted:
            raise CheckpointError(
                f"the {what} ({text_checkpoint or init_from}) is another than the one of {path}: its sha256 is {ours}, "
                f"wanted is {wanted}"
            )
    graphdef, temporal, frozen = parameter_partition.split(build_unet(config, image.unet))
    arrays = safetensors_files.open_arrays(path)
    check_parameters(traverse_util.flatten_dict(nested(arrays)), traverse_util.flatten_dict(temporal))
    temporal = partitioning.place(mesh, nested({name: array.load() for name, array in arrays.items()}))
    unet, padding_sees_tokens = nnx.merge(graphdef, temporal, frozen), config.text.padding_sees_tokens
    model = TextToVideo(image.text_encoder, unet, dtype=dtype, padding_sees_tokens=padding_sees_tokens)
    return Run(config, image.tokenizer, model, int(metadata["step"]), pathlib.Path(path), mesh, image.references)
