"""T5X's checkpoint format: every spelling, written here by hand, and what T5X itself wrote."""

import gzip
import http.server
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.parse

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util

from lumiere_jax.text.t5x_checkpoint import read_t5x_encoder, write_t5x_checkpoint

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


SHARDED_READ = """
import jax, numpy as np, sys
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lumiere_jax.text.storage import StoredArray
from lumiere_jax.text.t5x_checkpoint import read_t5x_encoder

mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
spec = lambda path: P(None, "model") if path.endswith("kernel") else P("model") if "embedding" in path else P()
whole = read_t5x_encoder(sys.argv[1])
spread = read_t5x_encoder(sys.argv[1], sharding=lambda path: NamedSharding(mesh, spec(path)))
jax.tree.map(np.testing.assert_array_equal, whole, spread)
kernel = spread["encoder"]["layers_0"]["attention"]["query"]["kernel"]
assert kernel.sharding.spec == P(None, "model") and kernel.addressable_shards[0].data.shape == (4, 3), kernel.sharding

read = []
array = np.arange(24).reshape(4, 6)
stored = StoredArray(array.shape, array.dtype, lambda index: (read.append(array[index].shape), array[index])[1])
result = stored.load(np.float32, NamedSharding(mesh, P(None, "model")))
np.testing.assert_array_equal(result, array)
assert result.dtype == np.float32 and read == [(4, 3), (4, 3)], read
print("sharded")
"""


def test_sharded_read(tmp_path):
    """On four devices: the shards asked for, and each distinct shard is read once, never the whole array."""
    path = write_by_hand(tmp_path / "checkpoint_7", random_tree(), "file")
    result = subprocess.run([sys.executable, "-c", SHARDED_READ, path], capture_output=True, text=True, timeout=120)
    assert result.stdout == "sharded\n", result.stderr


class StorageServer(http.server.BaseHTTPRequestHandler):
    """The three requests of Google Cloud Storage's JSON API that TensorStore makes here."""

    objects: dict[str, bytes] = {}
    reads: list[str] = []

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = urllib.parse.parse_qs(url.query)
        if url.path.endswith("/o"):
            low, high = query.get("startOffset", [""])[0], query.get("endOffset", ["\uffff"])[0]
            names = [name for name in sorted(self.objects) if low <= name < high]
            self.answer(200, json.dumps({"items": [{"name": name, "size": "1"} for name in names]}).encode())
        else:
            name = urllib.parse.unquote(url.path.partition("/o/")[2])
            self.reads.append(name)
            self.answer(200 if name in self.objects else 404, self.objects.get(name, b""))

    def do_POST(self):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        name = query["name"][0]
        self.objects[name] = self.rfile.read(int(self.headers["content-length"]))
        self.answer(200, json.dumps({"name": name, "generation": "1"}).encode())

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_google_cloud_storage(monkeypatch):
    """Writes to and reads from `gs://`, against a small server in this process."""
    server = http.server.ThreadingHTTPServer(("localhost", 0), StorageServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{server.server_port}")
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        tree = random_tree(ml_dtypes.bfloat16)
        for step in (5, 10):
            path = write_t5x_checkpoint("gs://bucket/run/text", step, jax.tree.map(lambda x, s=step: x * s, tree))
            assert path == f"gs://bucket/run/text/checkpoint_{step}"
            # Without its index a checkpoint does not exist: it comes last.
            assert list(StorageServer.objects)[-1] == f"run/text/checkpoint_{step}/checkpoint"
        assert_same(read_t5x_encoder("gs://bucket/run/text/checkpoint_5/"), jax.tree.map(lambda x: x * 5, tree))
        StorageServer.reads.clear()
        assert_same(read_t5x_encoder("gs://bucket/run/text"), jax.tree.map(lambda x: x * 10, tree))
        assert any(name.startswith("run/text/checkpoint_10/target.") for name in StorageServer.reads)
        assert not any("checkpoint_5/target" in name for name in StorageServer.reads)
        with pytest.raises(FileExistsError, match="checkpoint_10 exists"):
            write_t5x_checkpoint("gs://bucket/run/text", 10, tree)
        with pytest.raises(FileNotFoundError, match="no T5X checkpoint at gs://bucket/other"):
            read_t5x_encoder("gs://bucket/other")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
