"""Export: `python -m lumiere_jax.export_weights --checkpoint=RUN --output=FILE.safetensors`.

Writes what a run trained on top of its image model, the temporal layers (averaged, as they are sampled), and nothing of
the image model: so they can be shared under a licence of their own. Whoever has the same image model samples with them:

  python -m lumiere_jax.sample --checkpoint=FILE.safetensors --init_from=IMPORTED_UNET --text_checkpoint=IMPORTED_T5 ...

The file says which image model, text encoder and tokenizer it belongs to (SHA-256), how it was trained, and that no
backbone weights are inside.
"""

import sys

from absl import app, flags, logging
from absl.flags import FLAGS

from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.temporal_weights import export_temporal
from lumiere_jax.distributed import platform


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    flags.DEFINE_string("checkpoint", None, "The --workdir of a training on top of an image model.")
    flags.DEFINE_string("output", None, "The .safetensors file to write; it must not exist.")
    flags.DEFINE_string("license", "", "Of the temporal layers, to be written into the file (an SPDX name, say).")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    try:
        metadata = export_temporal(FLAGS.checkpoint, FLAGS.output, license_text=FLAGS.license)
    except (ValueError, OSError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    print(f"{FLAGS.output}: {metadata['contents']}, step {metadata['step']}")
    print(f"  belongs to {metadata['backbone']}, sha256 {metadata['backbone_sha256']}")
    print(f"  text encoder sha256 {metadata['text_encoder_sha256']}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flags_as_required(["checkpoint", "output"])
    app.run(main)
