"""How T5X checkpoints are read from disk and bucket: each shard once and no more than is needed, `gs://` as a path."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
import urllib.parse

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from t5x_files import assert_same, random_tree, write_by_hand

from lumiere_jax.text.t5x_checkpoint import read_t5x_encoder, write_t5x_checkpoint


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
