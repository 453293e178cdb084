"""Safetensors of any size: arrays that are read when they are wanted, and files that are written one array at a time.

The format: eight bytes with the length of a JSON header, the header (types, shapes, places, and free text under
`__metadata__`), then the arrays' bytes. Hugging Face's library reads it; it can only write what is whole in memory, so
the writer is here.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors

from lumiere_jax.text.storage import Index, StoredArray

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LFS_POINTER = b"version https://git-lfs"
# The one model of a directory. Variants such as `model.fp16.safetensors` are taken only where alone.
_MAIN_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "*.safetensors.index*.json",
    "*.safetensors",
)


def holds_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a `.safetensors` file, a `.json` index, or a local directory that holds either."""
    path = pathlib.Path(path)
    if path.is_dir():
        return any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index*.json"))
    return path.suffix in (".safetensors", ".json")


def find_files(
    path: str | os.PathLike[str], is_needed: Callable[[str], bool] = lambda tensor: True
) -> list[pathlib.Path]:
    """The safetensors files that `path` stands for.

    Args:
      path: a `.safetensors` file, the `.index.json` of a sharded one, or a directory with one of either.
      is_needed: of a tensor's name. A shard may be absent if nothing in it is needed.

    Raises:
      FileNotFoundError: nothing at `path`, or a needed shard is missing.
      ValueError: `path` is a directory with several models, or a file that is neither safetensors nor an index.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = _main_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix != ".json":
        return [path]
    content = path.read_bytes()
    if content.startswith(_LFS_POINTER):
        raise _pointer_error(path)
    try:
        index = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): download it again") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not weight_map:
        raise ValueError(f"{path} has no weight_map: it is not the index of a sharded safetensors file")
    needed = {file for tensor, file in weight_map.items() if is_needed(tensor)}
    missing = sorted(file for file in needed if not (path.parent / file).is_file())
    if missing:
        raise FileNotFoundError(f"{path} names shards that are not beside it: {missing}; download them too")
    return [path.parent / file for file in sorted(set(weight_map.values())) if (path.parent / file).is_file()]


def _pointer_error(path: pathlib.Path) -> ValueError:
    return ValueError(f"{path} is a Git LFS pointer, the file itself was not downloaded: run `git lfs pull`")


def _main_file(directory: pathlib.Path) -> pathlib.Path:
    for pattern in _MAIN_FILES:
        found = sorted(directory.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{directory} holds several models, give one: {[file.name for file in found]}")
    inside = sorted(child.name for child in directory.iterdir() if child.is_dir() and holds_safetensors(child))
    if inside:
        hint = f"; its directories {inside} do: give one of them"
    elif any(directory.glob("*.bin")):
        hint = ": PyTorch's .bin files are not read, download the safetensors of the same model"
    else:
        hint = ""
    raise FileNotFoundError(f"{directory} has neither *.safetensors nor *.index.json{hint}")


def open_arrays(
    path: str | os.PathLike[str], is_needed: Callable[[str], bool] = lambda tensor: True
) -> dict[str, StoredArray]:
    """The tensors of `find_files(path, is_needed)` by name, not read yet: only the headers are.

    Raises:
      FileNotFoundError, ValueError: as `find_files`; also for a file that is damaged, cut short or not there yet (a
        Git LFS pointer), and for a tensor that is in two files.
    """
    arrays: dict[str, StoredArray] = {}
    for file in find_files(path, is_needed):
        found = _open_file(file)
        twice = sorted(arrays.keys() & found.keys())
        if twice:
            raise ValueError(f"{file} holds tensors that another shard holds too: {twice[:8]}; download both again")
        arrays |= found
    return arrays


def _open_file(path: pathlib.Path) -> dict[str, StoredArray]:
    with _opened(path) as file:
        return {name: _stored_array(path, name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[safetensors.safe_open]:
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise _pointer_error(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); download or copy it again") from error


def _stored_array(path: pathlib.Path, name: str, part: object) -> StoredArray:
    stored_type, shape = part.get_dtype(), tuple(part.get_shape())
    if stored_type not in _DTYPES:
        raise ValueError(f"{path}: tensor {name} is stored as {stored_type}, use a file in fp16, bf16 or fp32")

    def read(index: Index) -> np.ndarray:
        # Opened for each read: while a file is open, all that was read of it counts as this process's memory.
        with _opened(path) as file:
            if math.prod(shape) < 2:  # the library cannot slice what has no extent
                return np.asarray(file.get_tensor(name)[index])
            return file.get_slice(name)[index]

    return StoredArray(shape, _DTYPES[stored_type], read, name)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The free text of a file's header.

    Raises:
      FileNotFoundError, ValueError: there is no such file, or it is damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with _opened(path) as file:
        return dict(file.metadata() or {})


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, StoredArray], metadata: Mapping[str, str] | None = None
) -> str:
    """Writes a safetensors file, one array at a time; it appears whole (from `<name>.partial`) or not at all.

    The bytes follow from names, types, values and metadata alone, whatever the order of `arrays`.

    Returns:
      the SHA-256 (hex) of the file, as `sha256sum` prints it.

    Raises:
      ValueError: an array of a type that safetensors does not have.
      FileExistsError: `path` exists.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: remove it, or choose another name")
    unknown = [f"{name} ({array.dtype})" for name, array in arrays.items() if array.dtype not in _NAMES]
    if unknown:
        raise ValueError(f"{path}: safetensors cannot hold {unknown[:8]}")
    # Wide types first, as Hugging Face's writer does: so every array is aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    partial = path.with_name(f"{path.name}.partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for block in _blocks(arrays, names, metadata or {}):
                digest.update(block)
                file.write(block)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return digest.hexdigest()


def _blocks(
    arrays: Mapping[str, StoredArray], names: list[str], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The bytes of a file: the header, then each array."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + arrays[name].size * arrays[name].dtype.itemsize
        header[name] = {
            "dtype": _NAMES[arrays[name].dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for name in names:
        array = arrays[name].load()
        if array.dtype != arrays[name].dtype or array.shape != arrays[name].shape:
            raise ValueError(f"{name} was read as {array.dtype}{list(array.shape)}, not as it was announced")
        # Little-endian, as every platform that JAX runs on. Flat bytes, since bfloat16 has no buffer of its own.
        yield memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) of a local file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
