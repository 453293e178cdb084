"""T5X checkpoints written by hand, in every spelling that T5X's index knows; and small parameter trees for them."""

import gzip
import itertools
import json
import pathlib

import ml_dtypes
import numpy as np
from flax import serialization, traverse_util

SHAPES = {
    "token_embedder/embedding": (12, 4),
    "encoder/relpos_bias/rel_embedding": (2, 8),
    "encoder/layers_0/attention/query/kernel": (4, 6),
    "encoder/layers_0/pre_mlp_layer_norm/scale": (4,),
    "encoder/encoder_norm/scale": (4,),
}


def random_tree(dtype=np.float32) -> dict:
    rng = np.random.default_rng(0)
    flat = {name: rng.normal(size=shape).astype(np.float32).astype(dtype) for name, shape in SHAPES.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def assert_same(found: dict, expected: dict) -> None:
    """The same names, types and bits."""
    found, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert np.asarray(found[name]).tobytes() == np.asarray(array).tobytes(), name


def write_zarr(directory: pathlib.Path, array: np.ndarray) -> None:
    """A zarr v2 array of several gzipped chunks, the last of which reach over the edge."""
    directory.mkdir(parents=True)
    chunk = tuple(max(1, -(-size // 2) - 1) for size in array.shape)
    dtype = "bfloat16" if array.dtype == ml_dtypes.bfloat16 else array.dtype.str
    metadata = {
        "zarr_format": 2,
        "shape": array.shape,
        "chunks": chunk,
        "dtype": dtype,
        "compressor": {"id": "gzip", "level": 1},
        "fill_value": None,
        "filters": None,
        "order": "C",
    }
    (directory / ".zarray").write_text(json.dumps(metadata))
    for place in itertools.product(*(range(-(-size // step)) for size, step in zip(array.shape, chunk, strict=True))):
        block = np.zeros(chunk, array.dtype)
        part = array[tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, chunk, strict=True))]
        block[tuple(slice(size) for size in part.shape)] = part
        (directory / ".".join(map(str, place))).write_bytes(gzip.compress(block.tobytes()))


def reference(spelling: str, name: str) -> dict | str:
    """How the index refers to the array in the subdirectory `name`."""
    metadata = {"chunks": [1], "compressor": {"id": "gzip", "level": 1}, "shape": [1]}
    new = {"driver": "zarr", "dtype": "float32", "metadata": metadata}
    far = f"some/where/checkpoint_7/{name}"
    return {
        "file": new | {"kvstore": {"driver": "file", "path": f"{name}/"}},
        "gfile": new | {"kvstore": {"driver": "gfile", "path": f"/{far}"}},
        "gcs": new | {"kvstore": {"driver": "gcs", "bucket": "bucket", "path": f"{far}/"}},
        "old": {
            "driver": "zarr",
            "kvstore": {"driver": "gfile"},
            "path": f"/{far}",
            "metadata": metadata | {"dtype": "<f4"},
        },
        "placeholder": f"PLACEHOLDER://{name}",
    }[spelling]


def chunked(array: np.ndarray) -> dict:
    """Flax's way to store arrays beyond msgpack's limit of 2 GiB."""
    flat = array.reshape(-1)
    pieces = {str(i): flat[start : start + 5] for i, start in enumerate(range(0, flat.size, 5))}
    shape = {str(i): size for i, size in enumerate(array.shape)}
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": pieces}


def write_by_hand(path: pathlib.Path, tree: dict, spelling: str, version: int | None = 3) -> pathlib.Path:
    """A checkpoint in one of T5X's spellings, beside a decoder and optimiser state that are not there."""
    path.mkdir(parents=True)
    leaves = {}
    for name, array in traverse_util.flatten_dict(tree, sep="/").items():
        if spelling == "inline":
            leaves[name] = array
        elif spelling == "chunked":
            leaves[name] = chunked(array)
        else:
            directory = "target." + name.replace("/", ".")
            write_zarr(path / directory, array)
            leaves[name] = reference(spelling, directory)
    leaves["decoder/decoder_norm/scale"] = reference("file", "target.decoder.decoder_norm.scale")
    state = {"step": np.int32(7), "param_states": {"encoder": reference("file", "state.encoder.v")}}
    body = {"target": traverse_util.unflatten_dict(leaves, sep="/"), "state": state}
    index = body if version is None else {"version": version, "optimizer": body}
    (path / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    return path
