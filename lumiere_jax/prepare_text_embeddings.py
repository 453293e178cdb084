"""T5 embeddings of a data set's captions, ahead of training: the train step then runs no text encoder.

    python -m lumiere_jax.prepare_text_embeddings --config=configs/text_to_image.py --output=DIR \\
        --config.text.checkpoint=gs://t5-data/pretrained_models/t5x/t5_1_1_xxl/checkpoint_1000000 \\
        --config.text.tokenizer=gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model
    python -m lumiere_jax.train --config=configs/text_to_image.py --config.text.embeddings=DIR ...

Takes the config and the overrides that training takes: data set, text length, and the text encoder of
`text.checkpoint` or of the image model `init_from`. Stopped and started again with the same command, it goes on.
Training checks that the embeddings were made by its own text encoder and tokenizer, for its own captions. It needs the
text encoder for previews alone: prompts that are new are always encoded live, in sampling too.

The encoder's float32 parameters (T5-XXL: 19 GB) are spread over all devices of this machine.
"""

import pathlib
import sys

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32
from ml_collections import config_flags

from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.frozen_parts import text_encoder_sha256
from lumiere_jax.checkpoints.imported_unet import is_imported_unet
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.data.open_dataset import captions_of, open_dataset
from lumiere_jax.distributed import mesh as meshes
from lumiere_jax.distributed import partitioning, platform
from lumiere_jax.text import embedding_store
from lumiere_jax.text.load_t5 import find_tokenizer, load_t5_encoder
from lumiere_jax.text.t5x_adapter import T5XEncoder, import_network
from lumiere_jax.text.tokenizer import Tokenizer


def prepare_text_embeddings(
    config: ml_collections.ConfigDict,
    output: str | pathlib.Path,
    *,
    batch_size: int = 64,
    dtype: str = "bfloat16",
    implementation: str = "lumiere",
    records_per_file: int = embedding_store.RECORDS_PER_FILE,
) -> None:
    """Writes the embeddings of all captions of `config.dataset`, and of the null prompt, to `output`.

    Args:
      config: of a training run.
      output: the directory to be named in `text.embeddings`.
      batch_size: captions that are encoded at once, a multiple of the number of devices.
      dtype: of the stored embeddings, bfloat16 or float32.
      implementation: lumiere, or t5x for the encoder of an installed T5X.
      records_per_file: see `embedding_store.write_embeddings`.

    Raises:
      ImportError: `implementation="t5x"`, and t5x is not installed.
      ValueError: a config without a text encoder that is trained already, or captions that it cannot encode.
      FileNotFoundError, CheckpointError: a text encoder that is not there.
    """
    mesh = meshes.make_mesh()
    if batch_size % mesh.size:
        raise ValueError(f"batch_size={batch_size} must be a multiple of the {mesh.size} devices")
    if implementation == "t5x":
        import_network()  # says now, not after the weights are read, that t5x is absent
    checkpoint, tokenizer, text = _find_text_encoder(config)
    captions = [caption for dataset in open_dataset(config.dataset) for caption in captions_of(dataset)]
    tokenizer.encode(captions, text.length)  # a caption that is too long is an error now, before the weights are read

    text_encoder = load_t5_encoder(checkpoint, sharding=lambda name: NamedSharding(mesh, _spread(name)))
    if tokenizer.vocab_size > text_encoder.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the text encoder {checkpoint} has "
            f"{text_encoder.config.vocab_size}: give the tokenizer that belongs to it"
        )
    sha256, text_dim = text_encoder_sha256(text_encoder, None), text_encoder.config.emb_dim
    facts = embedding_store.made_with(sha256, text_dim, tokenizer, text.length, text.padding_sees_tokens)
    encoder = text_encoder
    if implementation == "t5x":
        encoder = T5XEncoder(nnx.to_pure_dict(nnx.state(text_encoder)))

    @jax.jit
    def embed(encoder: nnx.Module, tokens: Array) -> Array:
        return encoder(tokens, padding_sees_tokens=text.padding_sees_tokens)

    def encode(tokens: Int32[np.ndarray, "batch tokens"]) -> Float[np.ndarray, "batch tokens text_dim"]:
        return np.asarray(embed(encoder, partitioning.shard_batch(mesh, tokens)))

    embedding_store.write_embeddings(
        output,
        captions,
        tokenizer,
        encode,
        facts,
        batch_size=batch_size,
        dtype=dtype,
        records_per_file=records_per_file,
    )


def _find_text_encoder(
    config: ml_collections.ConfigDict,
) -> tuple[str | pathlib.Path, Tokenizer, ml_collections.ConfigDict]:
    """Where the config's text encoder lies, its tokenizer, and the config's `text` with all of its fields."""
    init_from, checkpoint = config.get("init_from"), config.text.get("checkpoint")
    if init_from and not is_imported_unet(init_from):
        image = RunDirectory(init_from)
        image_config, tokenizer = image.read_config(), image.read_tokenizer()
        if image_config is None or tokenizer is None:
            raise CheckpointError(
                f"init_from={init_from} is no run directory: it has no config.json or tokenizer.model"
            )
        if image.published_weights.exists():
            raise ValueError(
                f"init_from={init_from} is a published model, whose text encoder is as small as the rest: train "
                "without embeddings made ahead of time"
            )
        if imported := image.read_references().text_encoder:
            return checkpoint or imported.path, tokenizer, image_config.text
        with image.checkpoints() as manager:
            return image.text_encoder(manager.latest_step() or 0), tokenizer, image_config.text
    if not checkpoint:
        raise ValueError(
            "the config names no text encoder: give text.checkpoint and text.tokenizer, or for a stage over an image "
            "model init_from. (A text encoder that is trained with its image model has no embeddings ahead of time.)"
        )
    return checkpoint, Tokenizer.load(find_tokenizer(checkpoint, config.text.tokenizer)), config.text


def _spread(name: str) -> P:
    """How a parameter of the text encoder lies over the devices: large ones cut, the others everywhere."""
    if name.endswith("kernel"):
        return P("data")
    return P(None, "data") if name == "token_embedder/embedding" else P()


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    config_flags.DEFINE_config_file("config", None, "What is to be trained: a file of configs/, FILE.py[:VARIANT].")
    flags.DEFINE_string("output", None, "The directory for the embeddings, to be named in --config.text.embeddings.")
    flags.DEFINE_integer("batch_size", 64, "Captions that are encoded at once.", 1)
    flags.DEFINE_enum("dtype", "bfloat16", list(embedding_store.DTYPES), "Of the stored embeddings.")
    flags.DEFINE_enum("implementation", "lumiere", ["lumiere", "t5x"], "t5x: the encoder of an installed T5X.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    try:
        prepare_text_embeddings(
            FLAGS.config,
            FLAGS.output,
            batch_size=FLAGS.batch_size,
            dtype=FLAGS.dtype,
            implementation=FLAGS.implementation,
        )
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    print(f"{FLAGS.output} is complete: train with --config.text.embeddings={FLAGS.output}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flags_as_required(["config", "output"])
    app.run(main)
