"""What a run does not train: image model and text encoder, its own copies or imported ones that it refers to.

Imported weights are found by their path and known by their SHA-256, so that they can be moved but not mistaken.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from lumiere_jax.checkpoints.checkpointing import CheckpointError, load_tree, tree_hash
from lumiere_jax.checkpoints.imported_unet import load_imported_unet, open_imported_unet
from lumiere_jax.checkpoints.run_directory import Reference, RunDirectory
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.text.load_t5 import load_t5_encoder, open_t5_encoder
from lumiere_jax.text.storage import is_remote
from lumiere_jax.text.t5_encoder import T5Encoder


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
