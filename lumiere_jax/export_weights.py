"""Export: `python -m lumiere_jax.export_weights --checkpoint=RUN --output=FILE.safetensors`, or `--output=DIR`.

To a file it writes what a run trained on top of its image model, the temporal layers (averaged, as they are sampled),
and nothing of the image model: so they can be shared under a licence of their own. Whoever has the same image model
samples with them:

  python -m lumiere_jax.sample --checkpoint=FILE.safetensors --init_from=IMPORTED_UNET --text_checkpoint=IMPORTED_T5 ...

The file says which image model, text encoder and tokenizer it belongs to (SHA-256), how it was trained, and that no
backbone weights are inside.

To a directory it writes the whole model, where this project trained all of it: DIR is then sampled from, evaluated and
started from like the run itself.
"""

import sys
from collections.abc import Mapping

from absl import app, flags, logging
from absl.flags import FLAGS

from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.published_model import publish
from lumiere_jax.checkpoints.temporal_weights import export_temporal
from lumiere_jax.distributed import platform


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    flags.DEFINE_string("checkpoint", None, "The --workdir of a training.")
    flags.DEFINE_string("output", None, "The .safetensors file, or directory, to write; it must not exist.")
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the parameters in a directory.")
    flags.DEFINE_string("license", "", "Of what is written, for the file's header (an SPDX name, say).")


def export(checkpoint: str, output: str, dtype: str, license_text: str) -> Mapping[str, str]:
    """Writes temporal layers to a file, or a whole model to a directory: the header's metadata."""
    if output.endswith(".safetensors"):
        return export_temporal(checkpoint, output, license_text=license_text)
    return publish(checkpoint, output, dtype=dtype, license_text=license_text)


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    try:
        metadata = export(FLAGS.checkpoint, FLAGS.output, FLAGS.dtype, FLAGS.license)
    except (ValueError, OSError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    print(f"{FLAGS.output}: {metadata['contents']}, step {metadata['step']}")
    if "backbone" in metadata:
        print(f"  belongs to {metadata['backbone']}, sha256 {metadata['backbone_sha256']}")
        print(f"  text encoder sha256 {metadata['text_encoder_sha256']}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flags_as_required(["checkpoint", "output"])
    app.run(main)
