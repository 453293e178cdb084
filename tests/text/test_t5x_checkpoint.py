"""T5X's checkpoint format: every spelling, written here by hand, and what T5X itself wrote."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util
from t5x_files import assert_same, random_tree, write_by_hand

from lumiere_jax.text.storage import StoredArray
from lumiere_jax.text.t5x_checkpoint import _one_layer, read_t5x_encoder, write_t5x_checkpoint

SPELLINGS = ["inline", "chunked", "file", "gfile", "gcs", "old", "placeholder"]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling(tmp_path, spelling, dtype):
    tree = random_tree(dtype)
    path = write_by_hand(tmp_path / "checkpoint_7", tree, spelling)
    assert_same(read_t5x_encoder(path), tree)
    assert_same(
        read_t5x_encoder(f"{path}/", dtype=np.float16), jax.tree.map(lambda leaf: leaf.astype(np.float16), tree)
    )


def test_written_through_orbax(tmp_path):
    """T5X's older Orbax layout: no version, another wrapper, and names in place of specifications."""
    tree = random_tree()
    path = write_by_hand(tmp_path / "checkpoint_7", tree, "placeholder", version=None)
    body = serialization.msgpack_restore((path / "checkpoint").read_bytes())
    index = {"_optimizer": body, "flax_mutables": None, "params_axes": None}
    (path / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    assert_same(read_t5x_encoder(path), tree)


def test_spellings_mixed_and_a_scalar(tmp_path):
    """As in the public checkpoints: small arrays in the index, large ones in directories."""
    tree = random_tree()
    path = write_by_hand(tmp_path / "checkpoint_7", tree, "file")
    index = serialization.msgpack_restore((path / "checkpoint").read_bytes())
    encoder = index["optimizer"]["target"]["encoder"]
    encoder["encoder_norm"]["scale"] = tree["encoder"]["encoder_norm"]["scale"]
    encoder["a_scalar"] = tree["encoder"]["a_scalar"] = np.float32(2.5)
    (path / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    shutil.rmtree(path / "target.encoder.encoder_norm.scale")
    assert_same(read_t5x_encoder(path), tree)


@pytest.mark.parametrize("version", [None, 0, 1, 2])
@pytest.mark.parametrize("spelling", ["inline", "chunked", "file"])
def test_bfloat16_as_uint16_below_version_3(tmp_path, spelling, version):
    tree = random_tree(ml_dtypes.bfloat16)
    tree["encoder"]["encoder_norm"]["scale"] = np.arange(4, dtype=np.float32)
    stored = jax.tree.map(lambda leaf: leaf.view(np.uint16) if leaf.dtype == ml_dtypes.bfloat16 else leaf, tree)
    assert_same(read_t5x_encoder(write_by_hand(tmp_path / "checkpoint_7", stored, spelling, version)), tree)


def test_uint16_of_version_3_is_uint16(tmp_path):
    stored = jax.tree.map(lambda leaf: leaf.view(np.uint16), random_tree(ml_dtypes.bfloat16))
    assert_same(read_t5x_encoder(write_by_hand(tmp_path / "checkpoint_7", stored, "file", 3)), stored)


@pytest.mark.parametrize("spelling", ["inline", "file"])
def test_scanned_layers_are_unstacked(tmp_path, spelling):
    """Layers on axis 1 of every leaf, heads and head_dim apart in attention kernels (T5X's scalable_t5)."""
    rng = np.random.default_rng(0)
    emb, heads, head_dim, layers = 5, 2, 3, 4
    shapes = {
        "attention/key/kernel": (emb, layers, heads, head_dim),
        "attention/out/kernel": (heads, layers, head_dim, emb),
        "mlp/wi_0/kernel": (emb, layers, 7),
        "pre_mlp_layer_norm/scale": (emb, layers),
        "relpos_bias/rel_embedding": (heads, layers, 8),
    }
    stacked = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    whole = {"token_embedder/embedding": np.ones((3, emb), "f"), "encoder/encoder_norm/scale": np.ones(emb, "f")}
    scanned = traverse_util.unflatten_dict(whole | {f"encoder/encoder/{k}": v for k, v in stacked.items()}, sep="/")
    expected = dict(whole)
    for i in range(layers):
        for name, array in stacked.items():
            layer = array[:, i]
            if name == "attention/key/kernel":
                layer = np.concatenate([layer[:, head] for head in range(heads)], axis=1)
            if name == "attention/out/kernel":
                layer = np.concatenate(list(layer), axis=0)
            expected[f"encoder/layers_{i}/{name}"] = layer
    path = write_by_hand(tmp_path / "checkpoint_7", scanned, spelling)
    assert_same(read_t5x_encoder(path), traverse_util.unflatten_dict(expected, sep="/"))


@pytest.mark.parametrize("part", [slice(0, 12), slice(4, 8), slice(3, 9), slice(5, 7), slice(11, 12), slice(None)])
def test_parts_of_a_scanned_layer(part):
    """Any slice of heads * head_dim (here 3 * 4), also one that begins or ends within a head."""
    rng = np.random.default_rng(0)
    key, out = rng.normal(size=(5, 2, 3, 4)), rng.normal(size=(3, 2, 4, 5))
    some = slice(1, 3)
    layer = _one_layer(StoredArray.in_memory(key), 1, is_out=False)
    assert layer.shape == (5, 12)
    np.testing.assert_array_equal(layer.read((some, part)), key[:, 1].reshape(5, 12)[some, part])
    layer = _one_layer(StoredArray.in_memory(out), 1, is_out=True)
    assert layer.shape == (12, 5)
    np.testing.assert_array_equal(layer.read((part, some)), out[:, 1].reshape(12, 5)[part, some])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_written_and_read_bit_by_bit(tmp_path, dtype):
    tree = random_tree(dtype)
    tree["token_embedder"]["embedding"][:3, 0] = np.array([np.nan, np.inf, -0.0])
    tree["encoder"]["relpos_bias"]["rel_embedding"][:] = 0
    path = write_t5x_checkpoint(tmp_path / "new" / "directory", 12, jax.tree.map(jax.numpy.asarray, tree))
    assert path == f"{tmp_path}/new/directory/checkpoint_12"
    assert_same(read_t5x_encoder(path), tree)
    assert_same(read_t5x_encoder(tmp_path / "new" / "directory"), tree)


def test_written_as_t5x_writes(fixtures, tmp_path):
    """The index and the metadata of T5X's own file come out again, byte for byte."""
    original = fixtures / "t5x_checkpoint" / "ckpt" / "checkpoint_1000000"
    written = pathlib.Path(write_t5x_checkpoint(tmp_path, 1000000, read_t5x_encoder(original)))
    theirs, ours = (msgpack.unpackb((path / "checkpoint").read_bytes()) for path in (original, written))
    assert ours["version"] == theirs["version"]
    assert ours["optimizer"]["state"]["step"] == theirs["optimizer"]["state"]["step"]
    for branch in ("token_embedder", "encoder"):
        assert ours["optimizer"]["target"][branch] == theirs["optimizer"]["target"][branch]
    names = [directory.name for directory in written.iterdir() if directory.is_dir()]
    assert len(names) == 21
    for name in names:
        assert json.loads((written / name / ".zarray").read_text()) == json.loads(
            (original / name / ".zarray").read_text()
        )


def test_the_latest_complete_step_is_read(tmp_path):
    trees = {step: jax.tree.map(lambda leaf, step=step: leaf + step, random_tree()) for step in (9, 100, 20)}
    for step, tree in trees.items():
        write_t5x_checkpoint(tmp_path, step, tree)
    (tmp_path / "checkpoint_300").mkdir()
    (tmp_path / "checkpoint_200.tmp-1").mkdir()
    (tmp_path / "checkpoint_200.tmp-1" / "checkpoint").write_bytes(b"unfinished")
    assert_same(read_t5x_encoder(tmp_path), trees[100])
    assert_same(read_t5x_encoder(tmp_path / "checkpoint_9"), trees[9])


def test_a_failed_write_leaves_nothing(tmp_path):
    tree = random_tree()
    tree["encoder"]["zz"] = np.array(["text is not a parameter"])
    with pytest.raises(ValueError, match="dtype"):
        write_t5x_checkpoint(tmp_path, 1, tree)
    assert list(tmp_path.iterdir()) == []


def test_bad_writes(tmp_path):
    write_t5x_checkpoint(tmp_path, 1, random_tree())
    with pytest.raises(FileExistsError, match="checkpoint_1 exists"):
        write_t5x_checkpoint(tmp_path, 1, random_tree())
    with pytest.raises(ValueError, match="step=-1"):
        write_t5x_checkpoint(tmp_path, -1, random_tree())
    with pytest.raises(ValueError, match="parameters"):
        write_t5x_checkpoint(tmp_path, 2, {})
    with pytest.raises(ValueError, match=r"s3://bucket.*only local paths and gs://"):
        write_t5x_checkpoint("s3://bucket", 2, random_tree())


def test_incomplete_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no T5X checkpoint at"):
        read_t5x_encoder(tmp_path / "nothing")
    path = write_by_hand(tmp_path / "checkpoint_7", random_tree(), "file")
    lost = path / "target.encoder.relpos_bias.rel_embedding"
    (lost / "1.0").unlink(missing_ok=False)
    with pytest.raises(ValueError, match=r"rel_embedding cannot be read: .*1\.0.* is missing"):
        read_t5x_encoder(path)
    (lost / ".zarray").unlink()
    with pytest.raises(FileNotFoundError, match=r"rel_embedding/\.zarray does not exist.*hidden files"):
        read_t5x_encoder(path)
    shutil.rmtree(lost)
    with pytest.raises(FileNotFoundError, match=r"directory target\.encoder\.relpos_bias\.rel_embedding is missing"):
        read_t5x_encoder(path)


def test_the_first_t5(tmp_path):
    tree = random_tree()
    tree["encoder"]["layers_0"]["mlp"] = {"wi": {"kernel": np.ones((4, 5), np.float32)}}
    path = write_by_hand(tmp_path / "checkpoint_7", tree, "file")
    shutil.rmtree(path / "target.token_embedder.embedding")  # refused before any array is opened
    with pytest.raises(ValueError, match=r"checkpoint_7 is the first T5 .*not supported: use T5 1\.1"):
        read_t5x_encoder(path)


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "manifest.ocdbt", "state/_METADATA"])
def test_orbax_checkpoints(tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=rf"is an Orbax checkpoint \(it has {file}\): restore it with"):
        read_t5x_encoder(tmp_path)


def test_a_file_of_flax(tmp_path):
    (tmp_path / "checkpoint_7").write_bytes(serialization.msgpack_serialize(random_tree()))
    with pytest.raises(ValueError, match=r"checkpoint_7 is a file, perhaps a checkpoint of flax\.training"):
        read_t5x_encoder(tmp_path / "checkpoint_7")
    with pytest.raises(FileNotFoundError, match="no T5X checkpoint at"):
        read_t5x_encoder(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b'model_checkpoint_path: "model.ckpt-1000"', "TensorFlow checkpoint"),
        (b"not msgpack", "not the msgpack index"),
        (serialization.msgpack_serialize({"version": 3, "optimizer": {}})[:-2], "not the msgpack index"),
        (serialization.msgpack_serialize([1, 2]), "version None"),
        (serialization.msgpack_serialize({"version": 4}), "version 0 to 3: version 4"),
        (serialization.msgpack_serialize({"version": 3, "optimizer": {"x": 1}}), "no parameter tree `target`"),
        (serialization.msgpack_serialize({"params": {}}), r"no parameter tree `target`, only \['params'\]"),
        (
            serialization.msgpack_serialize({"version": 3, "optimizer": {"target": {"decoder": {}}}}),
            r"no \['encoder', 'token_embedder'\] under target, only \['decoder'\]",
        ),
        (
            serialization.msgpack_serialize({"target": {"encoder": {"x": "text"}, "token_embedder": {}}}),
            "encoder/x is neither an array nor a reference: 'text'",
        ),
        (
            serialization.msgpack_serialize({"target": {"encoder": {"x": {"driver": "zarr"}}, "token_embedder": {}}}),
            "encoder/x refers to an array without a path",
        ),
    ],
)
def test_not_a_t5x_checkpoint(tmp_path, index, message):
    (tmp_path / "checkpoint").write_bytes(index)
    with pytest.raises(ValueError, match=message):
        read_t5x_encoder(tmp_path)
