"""Files and arrays on a local disk or in Google Cloud Storage, read whole or shard by shard.

Everything goes through TensorStore, which comes with Orbax: it reads `gs://` without TensorFlow.
"""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from flax import traverse_util
from jaxtyping import DTypeLike

Index = tuple[slice, ...]
Sharding = jax.sharding.Sharding | Callable[[str], jax.sharding.Sharding] | None
PARALLEL_READS = 8


def is_remote(path: str) -> bool:
    """Whether the path lies in Google Cloud Storage."""
    return path.startswith("gs://")


def directory_spec(path: str | os.PathLike[str], name: str = "") -> dict[str, Any]:
    """TensorStore's key-value store specification of the directory `path`, or of `name` inside it.

    Raises:
      ValueError: a scheme other than a local path or `gs://`.
    """
    path = os.fspath(path)
    tail = f"{name}/" if name else ""
    if is_remote(path):
        bucket, _, inside = path.removeprefix("gs://").partition("/")
        prefix = f"{inside.rstrip('/')}/" if inside.strip("/") else ""
        return {"driver": "gcs", "bucket": bucket, "path": prefix + tail}
    if "://" in path:
        raise ValueError(f"path {path!r}: only local paths and gs:// are supported; copy the files to one of them")
    return {"driver": "file", "path": f"{os.path.abspath(path)}/{tail}"}


def open_directory(path: str | os.PathLike[str], name: str = "") -> ts.KvStore:
    """The directory as a key-value store: keys are relative file names, values are bytes."""
    return ts.KvStore.open(directory_spec(path, name)).result()


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of one local or `gs://` file.

    Raises:
      FileNotFoundError: there is no such file.
    """
    directory, _, name = os.fspath(path).rpartition("/")
    result = open_directory(directory or ".").read(name).result()
    if result.state != "value":
        raise FileNotFoundError(f"{os.fspath(path)} does not exist")
    return bytes(result.value)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file that has not been read yet.

    Attributes:
      shape: the array's shape.
      dtype: of its elements.
      read: reads one rectangular part, given one slice per axis.
      source: its name in the file, for people.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]
    source: str = ""

    @classmethod
    def in_memory(cls, array: np.ndarray, source: str = "") -> "StoredArray":
        """An array that is already here."""
        return cls(array.shape, array.dtype, lambda index: np.asarray(array[index]), source)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def transpose(self, *axes: int) -> "StoredArray":
        """The array with its axes in another order, as `numpy.transpose`."""

        def read(index: Index) -> np.ndarray:
            stored_index = tuple(index[axes.index(axis)] for axis in range(len(axes)))
            return np.ascontiguousarray(self.read(stored_index).transpose(axes))

        return dataclasses.replace(self, shape=tuple(self.shape[axis] for axis in axes), read=read)

    def astype(self, dtype: DTypeLike) -> "StoredArray":
        """The array cast to `dtype` as it is read."""
        dtype = np.dtype(dtype)
        return dataclasses.replace(self, dtype=dtype, read=lambda index: self.read(index).astype(dtype, copy=False))

    def load(
        self, dtype: DTypeLike | None = None, sharding: jax.sharding.Sharding | None = None
    ) -> np.ndarray | jax.Array:
        """Reads the array, cast to `dtype` (None: as stored).

        Without a sharding the result is a numpy array on the host. With one, each process reads only the
        shards of its own devices, each distinct shard once, so that the host never holds a whole array that
        is spread over several devices.
        """

        read = self.read if dtype is None else self.astype(dtype).read
        if sharding is None:
            return np.asarray(read((slice(None),) * len(self.shape)))
        shards: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

        def read_once(index: Index) -> np.ndarray:
            key = tuple(s.indices(size) for s, size in zip(index, self.shape, strict=True))
            if key not in shards:
                shards[key] = read(index)
            return shards[key]

        return jax.make_array_from_callback(self.shape, sharding, read_once)


def sharding_at(sharding: Sharding, path: str) -> jax.sharding.Sharding | None:
    """The sharding of the parameter at `path` ("encoder/layers_0/mlp/wo/kernel")."""
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return sharding
    return sharding(path)


def load_arrays(
    arrays: Mapping[str, StoredArray], *, dtype: DTypeLike | None = None, sharding: Sharding = None
) -> dict[str, Any]:
    """Loads arrays by path into a nested dict, a few at a time, each straight to where it belongs.

    Args:
      arrays: by path ("encoder/layers_0/mlp/wo/kernel").
      dtype: to cast to; None leaves them as stored.
      sharding: one for all, or a function of the path; the result then holds jax arrays. None: numpy arrays on the
        host.
    """
    with concurrent.futures.ThreadPoolExecutor(PARALLEL_READS) as pool:
        loaded = pool.map(lambda path: arrays[path].load(dtype, sharding_at(sharding, path)), arrays)
        return traverse_util.unflatten_dict(dict(zip(arrays, loaded, strict=True)), sep="/")
