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
import safetensors.numpy
from flax import serialization, traverse_util

from lumiere_jax.text.storage import StoredArray
from lumiere_jax.text.t5x_checkpoint import _one_layer, read_t5x_encoder, write_t5x_checkpoint

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


def test_only_the_encoder_is_read(fixtures, tmp_path):
    """T5X's own checkpoint, with every array of the decoder and of the optimiser gone or overwritten."""
    original = fixtures / "t5x_checkpoint" / "ckpt" / "checkpoint_1000000"
    copy = tmp_path / "checkpoint_1000000"
    shutil.copytree(original, copy)
    others = [
        path for path in copy.iterdir() if path.is_dir() and not path.name.startswith(("target.enc", "target.tok"))
    ]
    assert len(others) > 40
    for number, directory in enumerate(others):
        if number % 2:
            shutil.rmtree(directory)
        else:
            (directory / ".zarray").write_text("no metadata")
    assert_same(read_t5x_encoder(copy), read_t5x_encoder(original))


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
import collections, dataclasses, re, sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lumiere_jax.checkpoints import safetensors_files
from lumiere_jax.text import hugging_face_t5, t5x_checkpoint

mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
regions = collections.defaultdict(list)  # the shape of every part that is read, by array in the file

def logging(name, stored):
    def read(index):
        part = stored.read(index)
        regions[name].append(part.shape)
        return part
    return dataclasses.replace(stored, read=read)

open_zarr, stored_array = t5x_checkpoint._open_zarr, safetensors_files._stored_array
t5x_checkpoint._open_zarr = lambda path, location: logging(location.rstrip("/"), open_zarr(path, location))
safetensors_files._stored_array = lambda path, name, part: logging(name, stored_array(path, name, part))

def spec(axis, path):
    if path.endswith("kernel"):
        return P(None, "model") if axis else P("model")
    return P("model") if "embedding" in path and "relpos" not in path else P()

readers = (t5x_checkpoint.read_t5x_encoder,) * 2 + (hugging_face_t5.read_hugging_face_t5,)
for axis in (0, 1):
    for read, path in zip(readers, sys.argv[1:]):
        whole = read(path)
        regions.clear()
        spread = read(path, sharding=lambda name: NamedSharding(mesh, spec(axis, name)))
        jax.tree.map(np.testing.assert_array_equal, whole, spread)
        kernels = 0
        for name, leaf in jax.tree.leaves_with_path(spread):
            name = "/".join(key.key for key in name)
            assert leaf.sharding.spec == spec(axis, name), name
            kernels += name.endswith("kernel")
        # Every array in the file is read once in all, kernels in quarters (and layer by layer) and never whole.
        total = sum(np.prod(shape) for shapes in regions.values() for shape in shapes)
        assert total == sum(leaf.size for leaf in jax.tree.leaves(spread)), (path, axis, total, dict(regions))
        is_kernel = re.compile(r"kernel|(\\.[qkvo]|wi_.|wo)\\.weight$").search
        quarters = sum(len(shapes) for name, shapes in regions.items() if is_kernel(name))
        assert kernels and quarters == 4 * kernels, (path, axis, quarters, kernels, dict(regions))
print("sharded")
"""


def test_sharded_read(tmp_path):
    """On eight devices, in every layout: each distinct shard is read once and no kernel is ever read whole."""
    rng = np.random.default_rng(0)

    def normal(**shapes):
        flat = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        return traverse_util.unflatten_dict(flat, sep="/")

    whole = {"token_embedder/embedding": (8, 4), "encoder/encoder_norm/scale": (4,)}
    layer = {"attention/query/kernel": (4, 8), "attention/out/kernel": (8, 4), "mlp/wi_0/kernel": (4, 12)}
    tree = normal(**whole, **{f"encoder/layers_{i}/{name}": shape for i in range(2) for name, shape in layer.items()})
    stacked = {"query": (4, 3, 4, 2), "out": (4, 3, 2, 4)}  # a head a device
    scanned = normal(
        **whole,
        **{f"encoder/encoder/attention/{name}/kernel": shape for name, shape in stacked.items()},
        **{"encoder/encoder/mlp/wi_0/kernel": (4, 3, 12), "encoder/encoder/pre_mlp_layer_norm/scale": (4, 3)},
    )
    block = "encoder.block.0.layer"
    tensors = {"shared.weight": (8, 4), f"{block}.0.SelfAttention.relative_attention_bias.weight": (8, 2)}
    tensors |= {"encoder.final_layer_norm.weight": (4,), f"{block}.0.layer_norm.weight": (4,)}
    tensors |= {f"{block}.0.SelfAttention.{name}.weight": (8, 4) for name in "qkv"}
    tensors |= {f"{block}.0.SelfAttention.o.weight": (4, 8), f"{block}.1.layer_norm.weight": (4,)}
    tensors |= {f"{block}.1.DenseReluDense.wi_{i}.weight": (12, 4) for i in range(2)}
    tensors |= {f"{block}.1.DenseReluDense.wo.weight": (4, 12)}
    hugging_face = {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    safetensors.numpy.save_file(hugging_face, tmp_path / "model.safetensors")
    paths = [
        write_by_hand(tmp_path / "plain" / "checkpoint_7", tree, "file"),
        write_by_hand(tmp_path / "scanned" / "checkpoint_7", scanned, "file"),
        tmp_path / "model.safetensors",
    ]
    result = subprocess.run([sys.executable, "-c", SHARDED_READ, *paths], capture_output=True, text=True, timeout=120)
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
        decoder = {"decoder": {"x": {"kernel": np.ones((2, 2), np.float32)}}}
        write_t5x_checkpoint("gs://bucket/run/text", 11, tree | decoder)
        StorageServer.reads.clear()
        assert_same(read_t5x_encoder("gs://bucket/run/text/checkpoint_11"), tree)
        assert any("target.decoder" in name for name in StorageServer.objects)
        assert not any("target.decoder" in name for name in StorageServer.reads)
        with pytest.raises(FileExistsError, match="checkpoint_10 exists"):
            write_t5x_checkpoint("gs://bucket/run/text", 10, tree)
        with pytest.raises(FileNotFoundError, match="no T5X checkpoint at gs://bucket/other"):
            read_t5x_encoder("gs://bucket/other")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
