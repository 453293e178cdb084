"""T5 1.1 encoders in Hugging Face's safetensors, read into T5X's names and shapes.

Hugging Face stores a linear layer's weight as `[outputs, inputs]`; T5X's kernels are `[inputs, outputs]`.
"""

import concurrent.futures
import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import safetensors
from flax import traverse_util
from jaxtyping import DTypeLike

from lumiere_jax.text.storage import Sharding, StoredArray, is_remote, sharding_at

# T5X's name within a layer -> Hugging Face's within a block. Kernels are transposed, scales are vectors.
LAYER_PARAMETERS = {
    "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
    "attention/query/kernel": "layer.0.SelfAttention.q.weight",
    "attention/key/kernel": "layer.0.SelfAttention.k.weight",
    "attention/value/kernel": "layer.0.SelfAttention.v.weight",
    "attention/out/kernel": "layer.0.SelfAttention.o.weight",
    "pre_mlp_layer_norm/scale": "layer.1.layer_norm.weight",
    "mlp/wi_0/kernel": "layer.1.DenseReluDense.wi_0.weight",
    "mlp/wi_1/kernel": "layer.1.DenseReluDense.wi_1.weight",
    "mlp/wo/kernel": "layer.1.DenseReluDense.wo.weight",
}
POSITION_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
PARALLEL_READS = 4


def is_hugging_face_t5(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is safetensors: a file, an index, or a local directory that holds either."""
    if is_remote(os.fspath(path)):
        return False
    path = pathlib.Path(path)
    if path.is_dir():
        return any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index*.json"))
    return path.suffix in (".safetensors", ".json")


def read_hugging_face_t5(
    path: str | os.PathLike[str], *, dtype: DTypeLike | None = None, sharding: Sharding = None
) -> dict[str, Any]:
    """Reads a T5 1.1 (or umT5) encoder from safetensors; a decoder in the same files is left alone.

    Args:
      path: a `.safetensors` file, the `.index.json` of a sharded one, or a directory with either of them.
      dtype: to cast the parameters to; None leaves them as stored.
      sharding: one for all parameters, or a function of the parameter's T5X path. The result then holds jax
        arrays, and each process reads only the shards of its own devices. None: numpy arrays on the host.

    Returns:
      The same nested dict as `read_t5x_encoder`: T5X's names and shapes.

    Raises:
      FileNotFoundError: `path`, or a file that the index names, does not exist.
      ValueError: a file is damaged, or a tensor is missing.
    """
    files = _open_files(_tensor_files(pathlib.Path(path)))
    where = {tensor: file for file in files.values() for tensor in file.keys()}  # noqa: SIM118 (no mapping)
    names = _parameter_names(where)
    missing = sorted(tensor for tensor in names.values() if tensor not in where)
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} tensors of a T5 1.1 encoder: {missing[:8]}. "
            "(The first T5, which has DenseReluDense.wi in place of wi_0 and wi_1, is not supported.)"
        )

    def load(name: str) -> Any:
        stored = _stored_array(where[names[name]], names[name], transpose=not _is_stored_as_is(name))
        return stored.load(dtype, sharding_at(sharding, name))

    with concurrent.futures.ThreadPoolExecutor(PARALLEL_READS) as pool:
        return traverse_util.unflatten_dict(dict(zip(names, pool.map(load, names), strict=True)), sep="/")


def _tensor_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files that `path` stands for."""
    if path.is_dir():
        path = _main_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix != ".json":
        return [path]
    weight_map = json.loads(path.read_text()).get("weight_map")
    if not weight_map:
        raise ValueError(f"{path} has no weight_map: it is not the index of a sharded safetensors file")
    # Shards that hold nothing of the encoder need not be there.
    wanted = {file for tensor, file in weight_map.items() if not tensor.startswith(("decoder.", "lm_head."))}
    files = [path.parent / file for file in sorted(wanted)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{path} names shards that are not beside it: {missing}; download them too")
    return files


def _main_file(directory: pathlib.Path) -> pathlib.Path:
    """The one model of a directory. Variants such as `model.fp16.safetensors` are taken only where alone."""
    for pattern in ("model.safetensors", "model.safetensors.index.json", "*.index*.json", "*.safetensors"):
        found = sorted(directory.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{directory} holds several models, give one: {[file.name for file in found]}")
    raise FileNotFoundError(f"{directory} has neither *.safetensors nor *.index.json")


def _open_files(paths: list[pathlib.Path]) -> dict[pathlib.Path, safetensors.safe_open]:
    files = {}
    for path in paths:
        try:
            files[path] = safetensors.safe_open(path, framework="numpy")
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); download it again") from error
    return files


def _parameter_names(tensors: dict[str, Any]) -> dict[str, str]:
    """T5X's names -> Hugging Face's, for as many layers as there are tensors of."""
    blocks = [int(match[1]) for match in (re.match(r"encoder\.block\.(\d+)\.", name) for name in tensors) if match]
    shared = "shared.weight" in tensors
    names = {
        "token_embedder/embedding": "shared.weight" if shared else "encoder.embed_tokens.weight",
        "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    }
    # T5 has one position bias, in its first block; umT5 has one in every block.
    per_layer = f"encoder.block.1.{POSITION_BIAS}" in tensors
    if not per_layer:
        names["encoder/relpos_bias/rel_embedding"] = f"encoder.block.0.{POSITION_BIAS}"
    for i in range(max(blocks, default=0) + 1):
        block = f"encoder.block.{i}"
        names |= {f"encoder/layers_{i}/{ours}": f"{block}.{theirs}" for ours, theirs in LAYER_PARAMETERS.items()}
        if per_layer:
            names[f"encoder/layers_{i}/relpos_bias/rel_embedding"] = f"{block}.{POSITION_BIAS}"
    return names


def _is_stored_as_is(name: str) -> bool:
    return name.endswith(("/scale", "token_embedder/embedding"))


def _stored_array(file: safetensors.safe_open, tensor: str, *, transpose: bool) -> StoredArray:
    part = file.get_slice(tensor)
    shape = tuple(part.get_shape())
    if not transpose:
        return StoredArray(shape, lambda index: part[index])
    return StoredArray(shape[::-1], lambda index: np.ascontiguousarray(part[index[::-1]].T))
