"""Files and arrays on a local disk or in Google Cloud Storage, read whole or shard by shard.

Everything goes through TensorStore, which comes with Orbax: it reads `gs://` without TensorFlow.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from jaxtyping import DTypeLike

Index = tuple[slice, ...]
Sharding = jax.sharding.Sharding | Callable[[str], jax.sharding.Sharding] | None


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
      read: reads one rectangular part, given one slice per axis.
    """

    shape: tuple[int, ...]
    read: Callable[[Index], np.ndarray]

    @classmethod
    def in_memory(cls, array: np.ndarray) -> "StoredArray":
        """An array that is already here."""
        return cls(array.shape, lambda index: np.asarray(array[index]))

    def load(self, dtype: DTypeLike | None, sharding: jax.sharding.Sharding | None) -> np.ndarray | jax.Array:
        """Reads the array, cast to `dtype` (None: as stored).

        Without a sharding the result is a numpy array on the host. With one, each process reads only the
        shards of its own devices, each distinct shard once, so that the host never holds a whole array that
        is spread over several devices.
        """

        def read(index: Index) -> np.ndarray:
            part = self.read(index)
            return part if dtype is None else part.astype(dtype, copy=False)

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
