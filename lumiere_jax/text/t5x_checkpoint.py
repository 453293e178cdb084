"""T5X checkpoints, read and written without T5X: a msgpack index and one zarr directory per array.

    checkpoint_<step>/checkpoint                                  msgpack: the tree, small arrays, references
    checkpoint_<step>/target.encoder.encoder_norm.scale/.zarray   shape, type, compression of one array
    checkpoint_<step>/target.encoder.encoder_norm.scale/0         its chunks

The hidden `.zarray` files are the truth about an array; copying a checkpoint with `*` loses them.
"""

import concurrent.futures
import dataclasses
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_dtypes
import msgpack
import numpy as np
import tensorstore as ts
from flax import serialization, traverse_util
from jaxtyping import DTypeLike

from lumiere_jax.text.storage import (
    PARALLEL_READS,
    Index,
    Sharding,
    StoredArray,
    directory_spec,
    is_remote,
    load_arrays,
    open_directory,
)

INDEX = "checkpoint"
VERSION = 3
# Below this version bfloat16 arrays were stored as the uint16 numbers that have the same bits.
FIRST_VERSION_WITH_BFLOAT16 = 3
PLACEHOLDER = "PLACEHOLDER://"
ENCODER = ("token_embedder", "encoder")  # the branches of `target` that a text encoder needs


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """Where a checkpoint lies and which version of the format it has."""

    path: str
    version: int


def read_t5x_encoder(
    path: str | os.PathLike[str], *, dtype: DTypeLike | None = None, sharding: Sharding = None
) -> dict[str, Any]:
    """Reads the encoder, and nothing else, of a T5X checkpoint.

    Args:
      path: as for `open_t5x_encoder`.
      dtype: to cast the parameters to; None leaves them as stored.
      sharding: one for all parameters, or a function of the parameter's path
        ("encoder/layers_0/mlp/wo/kernel"). Each process then reads only the shards of its own devices, and
        the result holds jax arrays. None: numpy arrays on the host.

    Returns:
      `{"token_embedder": ..., "encoder": {"layers_0": ...}}`.

    Raises:
      FileNotFoundError, ValueError: as `open_t5x_encoder`.
    """
    return load_arrays(open_t5x_encoder(path), dtype=dtype, sharding=sharding)


def open_t5x_encoder(path: str | os.PathLike[str]) -> dict[str, StoredArray]:
    """The encoder's arrays by path ("encoder/layers_0/mlp/wo/kernel"), not read yet.

    Scanned layers are unstacked to `layers_<i>`.

    Args:
      path: the `checkpoint_<step>` directory, or its parent (then the latest step); local or `gs://`.

    Raises:
      FileNotFoundError: no checkpoint at `path`, or an array of it is missing.
      ValueError: not a T5X checkpoint (TensorFlow, Orbax, Flax), one without an encoder, or the first T5.
    """
    checkpoint, index = _read_index(_find_checkpoint(os.fspath(path).rstrip("/")))
    target = index["target"]
    missing = set(ENCODER) - target.keys()
    if missing:
        raise ValueError(f"{checkpoint.path} has no {sorted(missing)} under target, only {sorted(target)}")
    leaves = _flat_leaves({name: target[name] for name in ENCODER})
    if any(name[-3:] == ("mlp", "wi", "kernel") for name in leaves):
        raise ValueError(
            f"{checkpoint.path} is the first T5 (mlp/wi in place of mlp/wi_0 and wi_1), which is not supported: use T5 "
            "1.1 (t5_1_1_*) or flan-T5 (flan_t5_*)"
        )
    with concurrent.futures.ThreadPoolExecutor(PARALLEL_READS) as pool:
        arrays = pool.map(lambda leaf: _open_leaf(checkpoint, *leaf), leaves.items())
        stored = _unstack_layers(dict(zip(leaves, arrays, strict=True)))
    return {"/".join(name): array for name, array in stored.items()}


def shapes_beside_encoder(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...] | None]:
    """What a T5X checkpoint holds that is not the encoder: the shapes of the decoder's and the optimiser's arrays.

    None where the index does not say the shape. No array is read.
    """
    _, index = _read_index(_find_checkpoint(os.fspath(path).rstrip("/")))
    target = {name: branch for name, branch in index["target"].items() if name not in ENCODER}
    others = _flat_leaves({"target": target, "state": index.get("state", {})})
    return {"/".join(name): _shape_in_index(leaf) for name, leaf in others.items()}


def _shape_in_index(leaf: Any) -> tuple[int, ...] | None:
    if isinstance(leaf, dict):
        leaf = leaf.get("metadata", {}).get("shape")
        return None if leaf is None else tuple(leaf)
    return getattr(leaf, "shape", None)


def write_t5x_checkpoint(directory: str | os.PathLike[str], step: int, parameters: Mapping[str, Any]) -> str:
    """Writes parameters in T5X's format, version 3: `<directory>/checkpoint_<step>`.

    The checkpoint appears whole or not at all: a local one is written aside and renamed; on `gs://` the index,
    without which there is no checkpoint, is written last.

    Args:
      directory: local or `gs://`; created if need be.
      step: training step, which names the checkpoint.
      parameters: nested dict of arrays, `{"token_embedder": ..., "encoder": ...}`. Arrays that are spread
        over several processes must be gathered first. A `StoredArray` is read when its turn comes.

    Returns:
      The checkpoint's path.

    Raises:
      FileExistsError: there already is a checkpoint of this step.
      ValueError: `step` is negative, `parameters` is empty, or an array is not wholly on this process.
    """
    leaves = traverse_util.flatten_dict(parameters, sep=".")
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise ValueError(f"parameter {name} is spread over several processes: gather it before writing")
    if step < 0 or not leaves:
        raise ValueError(f"step={step} must be at least 0, and parameters (now {len(leaves)}) not empty")
    path = f"{os.fspath(directory).rstrip('/')}/checkpoint_{step}"
    if open_directory(path).read(INDEX).result().state == "value" or os.path.exists(path):
        raise FileExistsError(f"{path} exists: remove it, or write another step")
    if is_remote(path):
        _write(path, step, leaves)
        return path
    scratch = f"{path}.tmp-{uuid.uuid4().hex}"
    try:
        _write(scratch, step, leaves)
        os.rename(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _find_checkpoint(path: str) -> str:
    """`path` itself where it has an index, else the latest step inside it."""
    if not is_remote(path) and os.path.isfile(path):
        raise ValueError(
            f"{path} is a file, perhaps a checkpoint of flax.training; a T5X checkpoint is a directory with a file "
            f"named {INDEX}: give that directory"
        )
    directory = open_directory(path)
    if directory.read(INDEX).result().state == "value":
        return path
    # The character after "_" is "`": only names that begin with "checkpoint_" are listed.
    keys = directory.list(ts.KvStore.KeyRange("checkpoint_", "checkpoint`")).result()
    matches = [re.fullmatch(rf"checkpoint_(\d+)/{INDEX}", key.decode()) for key in keys]
    steps = [int(match[1]) for match in matches if match]
    if not steps:
        _refuse_orbax(path)
        raise FileNotFoundError(
            f"no T5X checkpoint at {path}: neither {path}/{INDEX} nor {path}/checkpoint_<step>/{INDEX} exists"
        )
    return f"{path}/checkpoint_{max(steps)}"


def _refuse_orbax(path: str) -> None:
    """Raises a ValueError where an Orbax checkpoint lies at `path`."""
    # `state` is where T5X puts what it writes through Orbax.
    orbax = ("manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA")
    files = [f"{inside}{file}" for inside in ("", "state/") for file in orbax]
    found = [file for file in files if open_directory(path).read(file).result().state == "value"]
    if found:
        raise ValueError(
            f"{path} is an Orbax checkpoint (it has {found[0]}): restore it with orbax.checkpoint and write its "
            "parameters with lumiere_jax.text.t5x_checkpoint.write_t5x_checkpoint"
        )


def _read_index(path: str) -> tuple[_Checkpoint, dict[str, Any]]:
    """The parameters (`target`) and the training state (`state`), in which large arrays are references still."""
    index = bytes(open_directory(path).read(INDEX).result().value)
    if index.startswith(b"model_checkpoint_path"):
        raise ValueError(
            f"{path}/{INDEX} is a TensorFlow checkpoint; convert it with t5x.scripts.convert_tf_checkpoint, or use "
            "the T5X checkpoints in gs://t5-data/pretrained_models/t5x"
        )
    try:
        tree = serialization.msgpack_restore(index)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"{path}/{INDEX} is not the msgpack index of a T5X checkpoint: {error}") from error
    # Version 0 has neither a version number nor the wrapper.
    version = tree.get("version", 0) if isinstance(tree, dict) else None
    if version not in range(VERSION + 1):
        raise ValueError(f"{path}/{INDEX} is not a T5X checkpoint of version 0 to {VERSION}: version {version}")
    # Where T5X wrote through Orbax, the wrapper has an underscore.
    optimizer = tree.get("optimizer", tree.get("_optimizer", tree))
    target = optimizer.get("target") if isinstance(optimizer, dict) else None
    if not isinstance(target, dict):
        raise ValueError(f"{path}/{INDEX} has no parameter tree `target`, only {sorted(map(str, tree))}")
    return _Checkpoint(path, int(version)), optimizer


def _flat_leaves(tree: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(tree, is_leaf=lambda _, node: _is_reference(node))


def _is_reference(node: Any) -> bool:
    """Whether a dict of the index describes a zarr array rather than a branch of the tree."""
    return isinstance(node, dict) and node.get("driver") == "zarr"


def _open_leaf(checkpoint: _Checkpoint, name: tuple[str, ...], leaf: Any) -> StoredArray:
    """An array of the index: one that is in it, or one that it refers to in any of T5X's spellings."""
    if isinstance(leaf, str) and leaf.startswith(PLACEHOLDER):
        array = _open_zarr(checkpoint.path, leaf.removeprefix(PLACEHOLDER))
    elif isinstance(leaf, dict):
        # New: the path is in the key-value store. Old: it is beside it.
        location = leaf.get("path") or leaf.get("kvstore", {}).get("path")
        if not location:
            raise ValueError(f"{checkpoint.path}: {'/'.join(name)} refers to an array without a path: {leaf}")
        array = _open_zarr(checkpoint.path, location)
    elif isinstance(leaf, np.ndarray | np.generic):
        array = StoredArray.in_memory(np.asarray(leaf), ".".join(("target", *name)))
    else:
        raise ValueError(f"{checkpoint.path}: {'/'.join(name)} is neither an array nor a reference: {leaf!r}")
    if checkpoint.version >= FIRST_VERSION_WITH_BFLOAT16 or array.dtype != np.uint16:
        return array
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    return dataclasses.replace(array, dtype=bfloat16, read=lambda index: array.read(index).view(bfloat16))


def _open_zarr(path: str, location: str) -> StoredArray:
    """The zarr array in the subdirectory that `location` ends in; where it was written does not matter."""
    name = location.rstrip("/").rpartition("/")[2]
    directory = open_directory(path, name)
    if directory.read(".zarray").result().state != "value":
        if directory.list().result():
            reason = f"{name}/.zarray does not exist: the checkpoint was copied without its hidden files; copy them too"
        else:
            reason = f"the directory {name} is missing: the checkpoint is incomplete; copy it again"
        raise FileNotFoundError(f"{path}: {reason}")
    spec = {
        "driver": "zarr",
        "kvstore": directory_spec(path, name),
        # A lost chunk must not be read as zeros.
        "fill_missing_data_reads": False,
    }
    store = ts.open(spec, open=True, read=True).result()

    def read(index: Index) -> np.ndarray:
        try:
            return store[index].read().result()
        except ValueError as error:
            raise ValueError(f"{path}/{name} cannot be read: {error}") from error

    return StoredArray(tuple(store.shape), store.dtype.numpy_dtype, read, name)


def _unstack_layers(stored: dict[tuple[str, ...], StoredArray]) -> dict[tuple[str, ...], StoredArray]:
    """`encoder/encoder/...`, all layers stacked on axis 1, becomes `encoder/layers_<i>/...`.

    T5X's scanned model also keeps the heads of attention kernels apart: `[emb, layers, heads, head_dim]`.
    """
    unstacked = {}
    for name, array in stored.items():
        if name[:2] != ("encoder", "encoder"):
            unstacked[name] = array
            continue
        for i in range(array.shape[1]):
            unstacked["encoder", f"layers_{i}", *name[2:]] = _one_layer(array, i, is_out=name[-2] == "out")
    return unstacked


def _one_layer(stacked: StoredArray, i: int, is_out: bool) -> StoredArray:
    """Layer `i`; of an attention kernel, heads and head_dim merged into one axis."""
    shape = stacked.shape[:1] + stacked.shape[2:]
    if len(shape) < 3:

        def read_layer(index: Index) -> np.ndarray:
            return stacked.read((index[0], slice(i, i + 1), *index[1:]))[:, 0]

        return _part(stacked, i, shape, read_layer)
    if is_out:  # [heads, layers, head_dim, emb] -> [heads * head_dim, emb]
        heads, head_dim, emb = shape

        def read_out(index: Index) -> np.ndarray:
            whole, rest = _whole_heads(index[0], heads, head_dim)
            part = stacked.read((whole, slice(i, i + 1), slice(None), index[1]))
            return part.reshape(-1, part.shape[-1])[rest]

        return _part(stacked, i, (heads * head_dim, emb), read_out)
    emb, heads, head_dim = shape  # [emb, layers, heads, head_dim] -> [emb, heads * head_dim]

    def read_in(index: Index) -> np.ndarray:
        whole, rest = _whole_heads(index[1], heads, head_dim)
        part = stacked.read((index[0], slice(i, i + 1), whole, slice(None)))
        return part.reshape(part.shape[0], -1)[:, rest]

    return _part(stacked, i, (emb, heads * head_dim), read_in)


def _part(stacked: StoredArray, i: int, shape: tuple[int, ...], read: Callable[[Index], np.ndarray]) -> StoredArray:
    return dataclasses.replace(stacked, shape=shape, read=read, source=f"{stacked.source}, layer {i}")


def _whole_heads(index: slice, heads: int, head_dim: int) -> tuple[slice, slice]:
    """The heads that a slice of the merged axis touches, and where the slice lies within them."""
    start, stop, _ = index.indices(heads * head_dim)
    first = start // head_dim
    return slice(first, -(-stop // head_dim)), slice(start - first * head_dim, stop - first * head_dim)


def _write(path: str, step: int, leaves: Mapping[str, Any]) -> None:
    """Writes the arrays, one zarr directory each, and last the index. One array at a time is on the host."""
    target = {}
    for name, leaf in leaves.items():
        array = leaf.load() if isinstance(leaf, StoredArray) else np.asarray(leaf)
        # The names, so the metadata too, are what T5X itself writes.
        metadata = {"chunks": list(array.shape), "compressor": {"id": "gzip", "level": 1}, "shape": list(array.shape)}
        spec = {"driver": "zarr", "dtype": array.dtype.name, "metadata": metadata}
        store = ts.open(spec | {"kvstore": directory_spec(path, f"target.{name}")}, create=True).result()
        store.write(array).result()
        target[name] = spec | {"kvstore": {"driver": "file", "path": f"target.{name}/"}}
    tree = {
        "version": VERSION,
        "optimizer": {
            "target": traverse_util.unflatten_dict(target, sep="."),
            "state": {"step": np.asarray(step, np.int32)},
        },
    }
    open_directory(path).write(INDEX, serialization.msgpack_serialize(tree)).result()
