"""Pretrained T5 encoders: from files in either format to a module."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jaxtyping import DTypeLike

from lumiere_jax.text.hugging_face_t5 import is_hugging_face_t5, open_hugging_face_t5, read_hugging_face_t5
from lumiere_jax.text.storage import Sharding
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.t5x_checkpoint import open_t5x_encoder, read_t5x_encoder

TOKENIZER = "tokenizer.model"  # where it lies beside an encoder: in a run, or in what `import_weights` makes


def encoder_from_parameters(tree: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> T5Encoder:
    """An encoder around existing parameters: arrays are neither copied nor cast nor moved, numpy's stay numpy's.

    Args:
      tree: nested dict in T5X's names, as `read_t5x_encoder` and `read_hugging_face_t5` return it.
      dtype: of the computation.

    Raises:
      ValueError: a parameter is missing, unknown, or of a shape that does not fit the others.
    """
    config = T5Config.from_parameters(tree)
    abstract = nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0), dtype=dtype))
    graph, state = nnx.split(abstract)
    expected = {k: v.shape for k, v in traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/").items()}
    found = {k: v.shape for k, v in traverse_util.flatten_dict(tree, sep="/").items()}
    problems = [
        f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if problems:
        raise ValueError(f"the parameters do not fit {config}:\n" + "\n".join(problems))
    nnx.replace_by_pure_dict(state, dict(tree))
    return nnx.merge(graph, state)


def load_t5_encoder(
    path: str | os.PathLike[str],
    dtype: DTypeLike = jnp.float32,
    *,
    param_dtype: DTypeLike | None = None,
    sharding: Sharding = None,
    on_host: bool = False,
) -> T5Encoder:
    """A pretrained encoder, from a T5X checkpoint (local or `gs://`) or Hugging Face safetensors.

    Parameters go from the file straight to the devices, cast on the way: the host holds only those in flight.

    Args:
      path: a T5X checkpoint directory or its parent; or a `.safetensors` file, an `.index.json` file or a
        directory that holds them.
      dtype: of the computation.
      param_dtype: of the parameters; None: `dtype`.
      sharding: one for all parameters, or a function of the parameter's path ("encoder/layers_0/..."); None
        puts everything on the first local device.
      on_host: leaves the parameters in the host's memory, as numpy arrays, and takes no memory of a device; not
        together with `sharding`.

    Raises:
      FileNotFoundError: nothing to load at `path`, or a part of it is missing.
      ValueError: not a T5 1.1 encoder, or both `on_host` and `sharding`.
    """
    if on_host and sharding is not None:
        raise ValueError("on_host=True and a sharding exclude each other")
    if sharding is None and not on_host:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    read = read_hugging_face_t5 if is_hugging_face_t5(path) else read_t5x_encoder
    parameters = read(path, dtype=dtype if param_dtype is None else param_dtype, sharding=sharding)
    return encoder_from_parameters(parameters, dtype)


def open_t5_encoder(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The parameters of an encoder in either format, a nested dict of `StoredArray`s; none of them is read.

    Raises:
      FileNotFoundError, ValueError: as `load_t5_encoder`.
    """
    arrays = open_hugging_face_t5(path) if is_hugging_face_t5(path) else open_t5x_encoder(path)
    return traverse_util.unflatten_dict(arrays, sep="/")


def find_tokenizer(checkpoint: str, tokenizer: str) -> str:
    """The SentencePiece model that belongs to an encoder: `tokenizer`, or else what `import_weights` put beside it.

    Raises:
      ValueError: neither is there.
    """
    beside = f"{checkpoint.rstrip('/')}/{TOKENIZER}"
    if not tokenizer and not os.path.isfile(beside):
        raise ValueError(
            f"text.tokenizer={tokenizer!r} and there is no {beside}: say which SentencePiece model belongs to "
            f"text.checkpoint={checkpoint!r}"
        )
    return tokenizer or beside
