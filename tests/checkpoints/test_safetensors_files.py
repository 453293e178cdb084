"""Safetensors: lazily read, written one array at a time, refused by name when they are not whole."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lumiere_jax.checkpoints.safetensors_files import file_sha256, open_arrays, read_metadata, write_arrays
from lumiere_jax.text.storage import StoredArray

TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int64, np.int8, np.uint16, np.bool_)


def arrays_of_all_types() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"x/{i}": (rng.normal(size=(3, 5, 1 + i)) * 9).astype(dtype) for i, dtype in enumerate(TYPES)}


def stored(arrays: dict[str, np.ndarray]) -> dict[str, StoredArray]:
    return {name: StoredArray.in_memory(array) for name, array in arrays.items()}


def test_written_files_are_what_hugging_face_reads(tmp_path):
    arrays = arrays_of_all_types() | {"a scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    sha256 = write_arrays(tmp_path / "x.safetensors", stored(arrays), {"who": "me", "what": "\u00e9"})
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert file.metadata() == {"who": "me", "what": "\u00e9"}
    found = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    for name, array in open_arrays(tmp_path).items():
        np.testing.assert_array_equal(array.load(), arrays[name], strict=True)
    assert sha256 == file_sha256(tmp_path / "x.safetensors")
    assert read_metadata(tmp_path / "x.safetensors") == {"who": "me", "what": "\u00e9"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_read_in_parts(tmp_path):
    arrays = arrays_of_all_types()
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    part = (slice(1, 3), slice(0, 4), slice(0, 1))
    for name, array in open_arrays(tmp_path).items():
        assert (array.dtype, array.shape, array.source) == (arrays[name].dtype, arrays[name].shape, name)
        np.testing.assert_array_equal(array.load(), arrays[name])
        np.testing.assert_array_equal(array.read(part), arrays[name][part])
        moved = array.transpose(2, 0, 1)
        np.testing.assert_array_equal(
            moved.read((part[2], part[0], part[1])), arrays[name].transpose(2, 0, 1)[:1, 1:3, :4]
        )
    assert array.astype(np.int32).load().dtype == np.int32


def test_the_bytes_follow_from_the_content_alone(tmp_path):
    arrays = stored(arrays_of_all_types())
    backwards = dict(reversed(arrays.items()))
    first = write_arrays(tmp_path / "a.safetensors", arrays, {"b": "2", "a": "1"})
    assert write_arrays(tmp_path / "b.safetensors", backwards, {"a": "1", "b": "2"}) == first
    assert write_arrays(tmp_path / "c.safetensors", arrays, {"a": "2", "b": "2"}) != first


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(_):
        raise OSError("the disk is gone")

    arrays = stored(arrays_of_all_types()) | {"z": StoredArray((2,), np.dtype(np.float32), fail)}
    with pytest.raises(OSError, match="the disk is gone"):
        write_arrays(tmp_path / "x.safetensors", arrays)
    with pytest.raises(ValueError, match=r"cannot hold \['z \(complex64\)'\]"):
        write_arrays(tmp_path / "x.safetensors", stored({"z": np.zeros(2, np.complex64)}))
    assert list(tmp_path.iterdir()) == []
    write_arrays(tmp_path / "x.safetensors", {})
    with pytest.raises(FileExistsError, match=r"x\.safetensors exists"):
        write_arrays(tmp_path / "x.safetensors", {})


def save_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(tmp_path):
    ones, twos = np.ones(2, np.float32), np.full(3, 2, np.float32)
    safetensors.numpy.save_file({"a": ones}, tmp_path / "1.safetensors")
    safetensors.numpy.save_file({"b": twos}, tmp_path / "2.safetensors")
    save_index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert {name: array.shape for name, array in open_arrays(path).items()} == {"a": (2,), "b": (3,)}
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"not beside it: \['2\.safetensors'\]; download them too"):
        open_arrays(tmp_path)
    assert open_arrays(tmp_path, lambda tensor: tensor == "a").keys() == {"a"}
    safetensors.numpy.save_file({"b": twos, "a": ones}, tmp_path / "2.safetensors")
    with pytest.raises(ValueError, match=r"2\.safetensors holds tensors that another shard holds too: \['a'\]"):
        open_arrays(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def damage(path, kind):
    safetensors.numpy.save_file({"a": np.ones(100, np.float32)}, path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-10], "header": whole[:30], "pointer": POINTER, "html": b"<!DOCTYPE html>"}[kind])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "damaged or cut short"),
        ("header", "damaged or cut short"),
        ("html", "damaged or cut short"),
        ("pointer", "Git LFS pointer.*run `git lfs pull`"),
    ],
)
def test_damaged_files(tmp_path, kind, message):
    file = tmp_path / "model.safetensors"
    damage(file, kind)
    for read in (open_arrays, read_metadata):
        with pytest.raises(ValueError, match=rf"model\.safetensors is .*{message}"):
            read(file)


def test_damaged_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for content, message in (
        (POINTER, "Git LFS pointer"),
        (b"{", "is not JSON"),
        (b"{}", "no weight_map"),
        (b"[]", "no weight_map"),
    ):
        index.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_arrays(tmp_path)


def test_directories_without_one_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither \*\.safetensors nor \*\.index\.json$"):
        open_arrays(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"PyTorch's \.bin files are not read"):
        open_arrays(tmp_path)
    (tmp_path / "unet").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        safetensors.numpy.save_file({"a": np.ones(1, np.float32)}, tmp_path / "unet" / name)
    with pytest.raises(FileNotFoundError, match=r"its directories \['unet'\] do: give one of them"):
        open_arrays(tmp_path)
    with pytest.raises(ValueError, match=r"several models, give one: \['a\.safetensors', 'b\.safetensors'\]"):
        open_arrays(tmp_path / "unet")
    assert open_arrays(tmp_path / "unet" / "b.safetensors").keys() == {"a"}
