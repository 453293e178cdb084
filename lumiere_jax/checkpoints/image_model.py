"""The frozen image model that a Space-Time U-Net is inflated from: another run's, or an imported U-Net with a T5."""

import dataclasses
import os

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from lumiere_jax.checkpoints.frozen_parts import load_imported_text_encoder
from lumiere_jax.checkpoints.imported_unet import is_imported_unet, load_imported_unet, open_imported_unet
from lumiere_jax.checkpoints.run_directory import Reference, References
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.distributed import partitioning
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.text.load_t5 import find_tokenizer, open_t5_encoder
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """Everything of an image model that an inflated run keeps or refers to."""

    unet: UNet2D
    text_encoder: T5Encoder
    tokenizer: Tokenizer
    text: dict  # of the config that it was trained with; empty where it was imported
    references: References


def load_image_model(
    path: str | os.PathLike[str],
    *,
    text_checkpoint: str = "",
    tokenizer: str = "",
    dtype: DTypeLike = jnp.float32,
    mesh: jax.sharding.Mesh | None = None,
    text_on_host: bool = False,
) -> ImageModel:
    """Loads an image model.

    Args:
      path: the directory of a finished run of an image model, or one that `import_weights deepfloyd_if` made.
      text_checkpoint: with an imported U-Net: its T5 encoder (see `load_t5_encoder`). With a run: where the imported
        encoder that it refers to lies now, if it was moved.
      tokenizer: the SentencePiece model of `text_checkpoint`; default: `tokenizer.model` in it.
      dtype: of imported parameters, the U-Net's and the text encoder's.
      mesh: of all devices of all processes, where its parameters lie; None: `make_mesh()`.
      text_on_host: leaves an imported text encoder in the host's memory.

    Raises:
      CheckpointError: nothing complete at `path`, or imported weights that are damaged.
      ValueError: an imported U-Net without a text encoder, or with one of another width; the run of an inflated model.
    """
    mesh = make_mesh() if mesh is None else mesh
    if not is_imported_unet(path):
        run = load_run(
            path, mesh=mesh, text_checkpoint=text_checkpoint or None, text_dtype=dtype, require_finished=True
        )
        if "temporal" in run.config:
            raise ValueError(f"init_from={path} is an inflated run: give the run of an image model")
        return ImageModel(
            run.model.unet, run.model.text_encoder, run.tokenizer, run.config.text.to_dict(), run.references
        )
    imported = open_imported_unet(path)
    if not text_checkpoint:
        raise ValueError(
            f"init_from={path} is an imported U-Net, which comes without a text encoder: give text.checkpoint (the T5 "
            "encoder: imported, a T5X checkpoint, or Hugging Face's safetensors) and text.tokenizer"
        )
    vocabulary = Tokenizer.load(find_tokenizer(text_checkpoint, tokenizer))
    check_width(text_checkpoint, imported.config.text_dim)
    sharding = partitioning.replicated(mesh)
    unet = load_imported_unet(imported, dtype, sharding)
    text_encoder, text_reference = load_imported_text_encoder(
        text_checkpoint, dtype=dtype, sharding=None if text_on_host else sharding, on_host=text_on_host
    )
    references = References(Reference(str(imported.path), imported.sha256), text_reference)
    return ImageModel(unet, text_encoder, vocabulary, {}, references)


def check_width(text_checkpoint: str, text_dim: int) -> None:
    """Raises a ValueError if a text encoder is not as wide as a U-Net expects; reads no parameters."""
    width = T5Config.from_parameters(open_t5_encoder(text_checkpoint)).emb_dim
    if width != text_dim:
        raise ValueError(
            f"text.checkpoint={text_checkpoint} is {width} wide, the U-Net expects text_dim={text_dim}: take the "
            "encoder that the U-Net was trained with (DeepFloyd IF: T5 1.1 XXL, 4096)"
        )
