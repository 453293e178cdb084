"""T5 1.1 encoders in Hugging Face's safetensors, read into T5X's names and shapes.

Hugging Face stores a linear layer's weight as `[outputs, inputs]`; T5X's kernels are `[inputs, outputs]`.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

from jaxtyping import DTypeLike

from lumiere_jax.checkpoints import safetensors_files
from lumiere_jax.text.storage import Sharding, StoredArray, is_remote, load_arrays

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


def is_hugging_face_t5(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is safetensors: a file, an index, or a local directory that holds either."""
    return not is_remote(os.fspath(path)) and safetensors_files.holds_safetensors(path)


def read_hugging_face_t5(
    path: str | os.PathLike[str], *, dtype: DTypeLike | None = None, sharding: Sharding = None
) -> dict[str, Any]:
    """Reads a T5 1.1 (or umT5) encoder from safetensors; a decoder in the same files is left alone.

    Args:
      path: as for `open_hugging_face_t5`.
      dtype: to cast the parameters to; None leaves them as stored.
      sharding: one for all parameters, or a function of the parameter's T5X path. The result then holds jax
        arrays, and each process reads only the shards of its own devices. None: numpy arrays on the host.

    Returns:
      The same nested dict as `read_t5x_encoder`: T5X's names and shapes.

    Raises:
      FileNotFoundError, ValueError: as `open_hugging_face_t5`.
    """
    return load_arrays(open_hugging_face_t5(path), dtype=dtype, sharding=sharding)


def open_hugging_face_t5(path: str | os.PathLike[str]) -> dict[str, StoredArray]:
    """The encoder's arrays by T5X path ("encoder/layers_0/mlp/wo/kernel"), in T5X's shapes, not read yet.

    Args:
      path: a `.safetensors` file, the `.index.json` of a sharded one, or a directory with either of them.

    Raises:
      FileNotFoundError: `path`, or a shard that holds something of the encoder, does not exist.
      ValueError: a file is damaged, or a tensor is missing.
    """
    tensors = safetensors_files.open_arrays(path, _is_of_encoder)
    names = _parameter_names(tensors)
    missing = sorted(tensor for tensor in names.values() if tensor not in tensors)
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} tensors of a T5 1.1 encoder: {missing[:8]}. "
            "(The first T5, which has DenseReluDense.wi in place of wi_0 and wi_1, is not supported.)"
        )
    return {
        name: tensors[theirs] if _is_stored_as_is(name) else tensors[theirs].transpose(1, 0)
        for name, theirs in names.items()
    }


def shapes_beside_encoder(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """What the same files hold that is not the encoder: the decoder's shapes."""
    tensors = safetensors_files.open_arrays(path, _is_of_encoder)
    used = _parameter_names(tensors).values()
    return {name: array.shape for name, array in tensors.items() if name not in used}


def _is_of_encoder(tensor: str) -> bool:
    return not tensor.startswith(("decoder.", "lm_head."))


def _parameter_names(tensors: Iterable[str]) -> dict[str, str]:
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
