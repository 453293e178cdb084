"""Import of pre-trained weights: `python -m lumiere_jax.import_weights WHAT --weights=PATH --output=DIR`.

WHAT is one of
  deepfloyd_if      the U-Net of DeepFloyd IF's stage I or II (diffusers: config.json and safetensors) -> a directory
                    for --config.init_from
  t5x               the encoder of a T5X checkpoint, local or gs://  -> a directory for --config.text.checkpoint
  hugging_face_t5   the encoder of a T5 1.1 in safetensors           -> the same

The weights are read and written one array at a time, so memory for the largest one is enough. What was mapped, what is
missing and what was not used is printed, and written to DIR/report.json; --dry_run does that much from the files'
headers and writes nothing. A file that is damaged or of another model leaves no DIR behind.

  python -m lumiere_jax.import_weights deepfloyd_if --weights=IF-I-M-v1.0/unet --output=imported/if_m
  python -m lumiere_jax.import_weights hugging_face_t5 --weights=t5-v1_1-xxl --tokenizer=t5-v1_1-xxl/spiece.model \\
      --output=imported/t5_xxl --dtype=bfloat16
  python -m lumiere_jax.train --config=configs/stunet.py:if_m --config.init_from=imported/if_m \\
      --config.text.checkpoint=imported/t5_xxl
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import Collection, Iterator

import ml_dtypes
import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS
from flax import nnx, traverse_util

from lumiere_jax.checkpoints import deepfloyd_if, safetensors_files
from lumiere_jax.checkpoints.import_report import ImportReport, parameter_shapes
from lumiere_jax.checkpoints.imported_unet import write_imported_unet
from lumiere_jax.distributed import platform
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.text import hugging_face_t5, t5x_checkpoint
from lumiere_jax.text.load_t5 import TOKENIZER
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.tokenizer import Tokenizer

WHAT = ("deepfloyd_if", "t5x", "hugging_face_t5")
DTYPES = {"as_stored": None, "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def import_deepfloyd_if(
    weights: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    *,
    config: str | os.PathLike[str] | None = None,
    dtype: str = "as_stored",
    allow_missing: Collection[str] = (),
) -> ImportReport:
    """Imports a U-Net of DeepFloyd IF's stage I or II.

    Args:
      weights: a `.safetensors` file, the `.index.json` of a sharded one, or a directory with either.
      output: the directory to make, see `checkpoints/imported_unet.py`. None: only compare.
      config: diffusers' config.json; default: the one beside the weights.
      dtype: a key of `DTYPES`.
      allow_missing: parameters that the file may lack, by our name; they are initialised newly.

    Raises:
      FileNotFoundError: weights, one of their shards or config.json are not there.
      FileExistsError: `output` exists.
      ValueError: files that are damaged or of another kind of model.
    """
    _check_output(output)
    files = safetensors_files.find_files(weights)
    config = pathlib.Path(config or files[0].parent / "config.json")
    if not config.is_file():
        raise FileNotFoundError(
            f"{config} does not exist: say with --config=FILE where the config.json of the weights is (diffusers keeps "
            "it in unet/, beside the safetensors)"
        )
    fields = deepfloyd_if.unet_config(config)
    parameters = deepfloyd_if.open_unet_parameters(weights)
    found = {"/".join(map(str, path)): array for path, array in parameters.items()}
    expected = parameter_shapes(lambda: UNet2D(fields, rngs=nnx.Rngs(0)))
    report = ImportReport(found, expected, allow_missing=allow_missing)
    report.check()
    if output is not None:
        source = {"config": config.name, "weights": [file.name for file in files], "dtype": dtype}
        with _new_directory(output) as directory:
            write_imported_unet(directory, fields, report, source, DTYPES[dtype])
            _write_report(directory, report)
    return report


def import_t5(
    what: str,
    weights: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    dtype: str = "as_stored",
) -> ImportReport:
    """Imports the encoder of a T5 1.1 as a T5X checkpoint of that encoder alone, which `load_t5_encoder` reads.

    Args:
      what: "t5x" or "hugging_face_t5".
      weights: a T5X checkpoint directory or its parent, local or `gs://`; or safetensors as for
        `import_deepfloyd_if`.
      output: the directory to make. None: only compare.
      tokenizer: the SentencePiece model that belongs to it, copied to `output`.
      dtype: a key of `DTYPES`.

    Raises:
      FileNotFoundError: weights, a part of them, or the tokenizer are not there.
      FileExistsError: `output` exists.
      ValueError: not a T5 1.1 encoder, a damaged file, or a tokenizer with more tokens than the encoder knows.
    """
    _check_output(output)
    if what == "t5x":
        found, beside = t5x_checkpoint.open_t5x_encoder(weights), t5x_checkpoint.shapes_beside_encoder(weights)
    else:
        found, beside = hugging_face_t5.open_hugging_face_t5(weights), hugging_face_t5.shapes_beside_encoder(weights)
    config = T5Config.from_parameters(traverse_util.unflatten_dict(found, sep="/"))
    expected = parameter_shapes(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))
    report = ImportReport(found, expected, beside=beside)
    report.check()
    vocabulary = None if tokenizer is None else Tokenizer.load(tokenizer)
    if vocabulary is not None and vocabulary.vocab_size > config.vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer} has {vocabulary.vocab_size} tokens, the encoder of {weights} knows "
            f"{config.vocab_size}: take the SentencePiece model that belongs to it"
        )
    if output is not None:
        arrays = report.arrays
        if DTYPES[dtype] is not None:
            arrays = {name: array.astype(DTYPES[dtype]) for name, array in arrays.items()}
        with _new_directory(output) as directory:
            t5x_checkpoint.write_t5x_checkpoint(directory, 0, traverse_util.unflatten_dict(arrays, sep="/"))
            if vocabulary is not None:
                (directory / TOKENIZER).write_bytes(vocabulary.model_bytes)
            _write_report(directory, report)
    return report


def _check_output(output: str | os.PathLike[str] | None) -> None:
    if output is not None and os.path.lexists(output):
        raise FileExistsError(f"output={os.fspath(output)} exists: remove it, or choose another directory")


@contextlib.contextmanager
def _new_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A directory that gets its name when it is complete; if anything goes wrong, there is none."""
    path = pathlib.Path(path)
    scratch = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_report(directory: pathlib.Path, report: ImportReport) -> None:
    (directory / "report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n")


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    flags.DEFINE_string("weights", None, "Safetensors (file, .index.json or directory), or a T5X checkpoint directory.")
    flags.DEFINE_string("output", None, "The directory to make; it must not exist.")
    flags.DEFINE_string("config", None, "deepfloyd_if: diffusers' config.json; default: the one beside the weights.")
    flags.DEFINE_string("tokenizer", None, "t5x, hugging_face_t5: the SentencePiece model, to keep beside the encoder.")
    flags.DEFINE_enum("dtype", "as_stored", list(DTYPES), "How the parameters are kept.")
    flags.DEFINE_list(
        "allow_missing", [], "deepfloyd_if: parameters, by our names, that may be missing; they are initialised newly."
    )
    flags.DEFINE_bool("dry_run", False, "Compare and report only: read headers, write nothing.")


def run(what: str) -> ImportReport:
    """Imports as the flags say.

    Raises:
      ValueError: flags that do not go together; otherwise as the import itself.
    """
    if FLAGS.output is None and not FLAGS.dry_run:
        raise ValueError("--output=DIR says where the imported weights go; or give --dry_run")
    output = None if FLAGS.dry_run else FLAGS.output
    if what == "deepfloyd_if":
        _refuse_flags(what, tokenizer=FLAGS.tokenizer)
        return import_deepfloyd_if(
            FLAGS.weights, output, config=FLAGS.config, dtype=FLAGS.dtype, allow_missing=FLAGS.allow_missing
        )
    # Frozen ever after: what a text encoder lacks could never be learned.
    _refuse_flags(what, config=FLAGS.config, allow_missing=FLAGS.allow_missing)
    return import_t5(what, FLAGS.weights, output, tokenizer=FLAGS.tokenizer, dtype=FLAGS.dtype)


def _refuse_flags(what: str, **values: object) -> None:
    for name, value in values.items():
        if value:
            raise ValueError(f"--{name}={value}: {what} has no use for it")


def main(argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) != 2 or argv[1] not in WHAT:
        sys.exit(f"error: say what to import, one of {', '.join(WHAT)}: got {argv[1:] or 'nothing'}. --help explains")
    try:
        report = run(argv[1])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{argv[1]} from {FLAGS.weights}")
    print(report.summary())
    print("dry run: nothing was written" if FLAGS.dry_run else f"written to {FLAGS.output}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flag_as_required("weights")
    app.run(main)
