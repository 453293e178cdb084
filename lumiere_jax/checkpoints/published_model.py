"""A finished model as one may publish it: whole, small, and used like the run that made it.

config.json           the run's, without paths of the machine that it was trained on
tokenizer.model       SentencePiece
weights.safetensors   averaged parameters of U-Net and text encoder, each once; what they are is in the file's header

`load_run` takes such a directory wherever it takes a run's: it is sampled from, evaluated, inflated, conditioned. Only
its training cannot be gone on with, as the optimiser's state is not there. Imported weights are not ours to publish:
for models over those, `temporal_weights.py` has the temporal layers alone.
"""

import json
import os
import pathlib

import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from lumiere_jax.checkpoints import safetensors_files
from lumiere_jax.checkpoints.checkpointing import named_leaves
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.temporal_weights import without_paths
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.text.storage import StoredArray


def publish(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: DTypeLike = "bfloat16",
    license_text: str = "",
) -> dict[str, str]:
    """Writes the averaged parameters of a run's newest checkpoint, with its config and tokenizer.

    Args:
      path: the directory of a run, finished or not.
      output: the directory to write; it must not exist.
      dtype: of the parameters in the file; bfloat16 halves it, and rounds each to 8 bits.
      license_text: of the weights, for the file's header.

    Returns:
      the header's metadata.

    Raises:
      CheckpointError: as `load_run`.
      FileExistsError: `output` exists.
      ValueError: the run is over imported weights.
    """
    output = pathlib.Path(output)
    if os.path.lexists(output):
        raise FileExistsError(f"output={output} exists: remove it, or choose another directory")
    run = load_run(path)
    if run.references.unet or run.references.text_encoder:
        raise ValueError(f"{path} is over imported weights, which are not yours to publish: export its temporal layers")
    versions = RunDirectory(path).read_versions()
    config = without_paths(run.config)
    config.training.update({"steps": run.step, "ema_decays": run.config.training.ema_decays[:1]})
    metadata = {
        "contents": f"lumiere-jax model {config.name}: averaged parameters of U-Net and text encoder",
        "license": license_text,
        "step": str(run.step),
        "versions": json.dumps(versions),
    }
    leaves = named_leaves(nnx.to_pure_dict(nnx.state(run.model)))
    arrays = {name: StoredArray.in_memory(np.asarray(leaf).astype(dtype)) for name, leaf in leaves.items()}
    directory = RunDirectory(output)
    directory.path.mkdir(parents=True)
    directory.write_tokenizer(run.tokenizer)
    directory.write_config(config, versions)
    safetensors_files.write_arrays(directory.published_weights, arrays, metadata)
    return metadata
