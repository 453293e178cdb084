"""Import of DeepFloyd IF's U-Nets and of T5 encoders: what comes out, what is reported, and what is refused."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import published_files as published
import pytest
import safetensors.numpy
from flax import serialization, traverse_util

from lumiere_jax.checkpoints import deepfloyd_if
from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.imported_unet import load_imported_unet, open_imported_unet
from lumiere_jax.import_weights import import_deepfloyd_if, import_t5
from lumiere_jax.text.load_t5 import load_t5_encoder
from lumiere_jax.text.t5x_checkpoint import read_t5x_encoder, write_t5x_checkpoint
from lumiere_jax.text.tokenizer import Tokenizer, train_tokenizer

ROOT = pathlib.Path(__file__).parent.parent.parent
UNET = published.unet_parameters()


def assert_same(found: dict, expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), array, err_msg=name, strict=True)


@pytest.fixture
def source(tmp_path):
    return published.write_unet(tmp_path / "unet", published.as_diffusers(UNET))


def test_a_unet_comes_out_under_our_names(tmp_path, source):
    report = import_deepfloyd_if(source, tmp_path / "out")
    imported = open_imported_unet(tmp_path / "out")
    assert imported.config == published.UNET
    assert imported.diffusion == {"schedule": "discrete_cosine", "prediction": "epsilon"}
    assert not imported.is_super_resolution
    assert_same(published.by_path(load_imported_unet(imported)), UNET)
    assert_same(safetensors.numpy.load_file(tmp_path / "out" / "unet.safetensors"), UNET)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["parameters"] == report.parameters == sum(array.size for array in UNET.values())
    assert written["mapped"]["down/0/resize/resnet/conv1/kernel"] == {
        "from": "down_blocks.0.downsamplers.0.conv1.weight",
        "shape": [3, 3, 8, 8],
        "stored_as": "float32",
    }
    assert (written["missing"], written["unused"], written["newly_initialised"]) == ({}, {}, {})
    assert {path.name for path in tmp_path.iterdir()} == {"unet", "out"}


@pytest.mark.parametrize("stage", ["if_stage1", "if_stage2"])
def test_fixtures(fixtures, tmp_path, stage):
    import_deepfloyd_if(fixtures / stage / "diffusion_pytorch_model.safetensors", tmp_path / "out")
    imported = open_imported_unet(tmp_path / "out")
    assert imported.config == deepfloyd_if.unet_config(fixtures / stage / "config.json")
    assert imported.is_super_resolution == (stage == "if_stage2")
    expected = deepfloyd_if.read_unet_parameters(fixtures / stage / "diffusion_pytorch_model.safetensors")
    found = published.by_path(load_imported_unet(imported))
    assert_same(found, {"/".join(map(str, path)): array for path, array in expected.items()})


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("dtype", ["as_stored", "bfloat16", "float32"])
def test_types(tmp_path, stored, dtype):
    tensors = {name: array.astype(stored) for name, array in published.as_diffusers(UNET).items()}
    import_deepfloyd_if(published.write_unet(tmp_path / "unet", tensors), tmp_path / "out", dtype=dtype)
    wanted = {"as_stored": stored, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[dtype]
    found = safetensors.numpy.load_file(tmp_path / "out" / "unet.safetensors")
    assert_same(found, {name: array.astype(stored).astype(wanted) for name, array in UNET.items()})


def test_shards_give_the_same_file(tmp_path, source):
    sharded = published.write_unet(tmp_path / "sharded", published.as_diffusers(UNET), shards=3)
    import_deepfloyd_if(source, tmp_path / "one")
    import_deepfloyd_if(sharded, tmp_path / "three")
    assert open_imported_unet(tmp_path / "one").sha256 == open_imported_unet(tmp_path / "three").sha256
    facts = json.loads((tmp_path / "three" / "config.json").read_text())
    assert len(facts["source"]["weights"]) == 3


def test_a_missing_parameter_that_is_allowed_starts_anew(tmp_path):
    tensors = published.as_diffusers(UNET)
    del tensors["conv_out.weight"], tensors["conv_norm_out.weight"]
    tensors["extra.bias"] = np.zeros(3, np.float32)
    source = published.write_unet(tmp_path / "unet", tensors)
    with pytest.raises(ValueError, match=r"(?s)missing in the file: 2.*conv_norm_out/scale  \[8\].*extra\.bias  \[3\]"):
        import_deepfloyd_if(source, tmp_path / "out")
    with pytest.raises(ValueError, match=r"missing in the file: 1\n.*conv_out/kernel"):
        import_deepfloyd_if(source, tmp_path / "out", allow_missing=["conv_norm_out/scale"])
    with pytest.raises(ValueError, match="allow_missing=conv_in/kernel: not among the missing ones"):
        import_deepfloyd_if(source, tmp_path / "out", allow_missing=["conv_in/kernel"])
    assert not (tmp_path / "out").exists()
    report = import_deepfloyd_if(source, tmp_path / "out", allow_missing=["conv_norm_out/scale", "conv_out/kernel"])
    assert report.new == {"conv_norm_out/scale": (8,), "conv_out/kernel": (3, 3, 8, 6)}
    assert report.unused == {"extra.bias": (3,)}
    found = published.by_path(load_imported_unet(open_imported_unet(tmp_path / "out")))
    np.testing.assert_array_equal(found["conv_norm_out/scale"], np.ones(8))
    assert 0 < np.abs(found["conv_out/kernel"]).max() < 1
    new = {name: found[name] for name in report.new}
    assert_same(found, UNET | new)


def edited(edit) -> dict:
    config = json.loads(json.dumps(published.DIFFUSERS_CONFIG))
    edit(config)
    return config


LATENT_DIFFUSION = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 4,
    "out_channels": 4,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LATENT_DIFFUSION, r"addition_embed_type=None.*a U-Net of another family"),
        (edited(lambda c: c.update(block_out_channels=[8, 24])), r"(?s)of another shape.*in the file.*in the model"),
        (
            edited(lambda c: c.update(encoder_hid_dim=32)),
            r"encoder_hid_proj/kernel  \[16, 32\] in the file, \[32, 32\] in",
        ),
        (edited(lambda c: c.update(layers_per_block=2)), r"missing in the file: \d+"),
    ],
)
def test_config_of_another_model(tmp_path, config, message):
    source = published.write_unet(tmp_path / "unet", published.as_diffusers(UNET), config)
    with pytest.raises(ValueError, match=message):
        import_deepfloyd_if(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_model(tmp_path, source):
    """Latent diffusion's names under DeepFloyd IF's config, and weights in eight bits."""
    tensors = published.as_diffusers(UNET)
    other = {name.replace("resnets", "attentions.0.transformer_blocks"): array for name, array in tensors.items()}
    with pytest.raises(ValueError, match=r"(?s)not those of this model:.*missing in the file.*in the file but unknown"):
        import_deepfloyd_if(published.write_unet(tmp_path / "other", other), tmp_path / "out")
    tensors["conv_in.weight"] = tensors["conv_in.weight"].astype(np.int8)
    with pytest.raises(ValueError, match=r"not stored as float32, float16, bfloat16: 1\n +conv_in/kernel \(int8\)"):
        import_deepfloyd_if(published.write_unet(tmp_path / "int8", tensors), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_whole(tmp_path, source):
    weights = source / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="damaged or cut short"):
        import_deepfloyd_if(source, tmp_path / "out")
    weights.write_bytes(whole)
    (source / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist: say with --config=FILE"):
        import_deepfloyd_if(source, tmp_path / "out")
    sharded = published.write_unet(tmp_path / "sharded", published.as_diffusers(UNET), shards=2)
    next(sharded.glob("*-00002-*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"not beside it: \['diffusion_pytorch_model-00002-of-00002"):
        import_deepfloyd_if(sharded, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match=r"output=.*out exists"):
        import_deepfloyd_if(source, tmp_path / "out")


def test_imported_weights_that_were_changed(tmp_path, source):
    import_deepfloyd_if(source, tmp_path / "out")
    file = tmp_path / "out" / "unet.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    imported = open_imported_unet(tmp_path / "out")
    with pytest.raises(CheckpointError, match=rf"its sha256 is [0-9a-f]+, its config\.json says {imported.sha256}"):
        load_imported_unet(imported)
    file.unlink()
    for path in (tmp_path / "out", source, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="is no imported U-Net"):
            open_imported_unet(path)


PEAK_MEMORY = """
import re, sys
from lumiere_jax.import_weights import import_deepfloyd_if

def peak():  # MiB; getrusage's would begin with what the parent process had
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

import_deepfloyd_if(sys.argv[1], None)  # whatever is needed once
before = peak()
import_deepfloyd_if(sys.argv[1], sys.argv[2], dtype="bfloat16")
print(peak() - before)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_for_the_largest_array_is_enough(tmp_path):
    """A file of 233 MiB, whose largest array has 23 MiB, takes less than half of its size."""
    wide = {"block_out_channels": (8, 576), "layers_per_block": (2, 2)}
    parameters = published.unet_parameters(dataclasses.replace(published.UNET, **wide))
    config = published.DIFFUSERS_CONFIG | {name: list(value) for name, value in wide.items()}
    source = published.write_unet(tmp_path / "unet", published.as_diffusers(parameters), config)
    assert (source / "diffusion_pytorch_model.safetensors").stat().st_size > 200 * 2**20
    command = [sys.executable, "-c", PEAK_MEMORY, source, tmp_path / "out"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert 1 < float(result.stdout) < 100


# ------------------------------------------------------------------------------------ text encoders


@pytest.fixture
def t5_sources(tmp_path):
    """The same encoder in both formats, each beside a decoder."""
    parameters = published.t5_parameters()
    decoder = np.zeros((3, 4), np.float32)
    tree = published.nested(parameters) | {"decoder": {"decoder_norm": {"scale": decoder}}}
    t5x = pathlib.Path(write_t5x_checkpoint(tmp_path / "t5x", 1000000, tree))
    (tmp_path / "hf").mkdir()
    tensors = published.as_hugging_face(parameters) | {"decoder.final_layer_norm.weight": decoder}
    safetensors.numpy.save_file(tensors, tmp_path / "hf" / "model.safetensors")
    return {"t5x": t5x, "hugging_face_t5": tmp_path / "hf"}


@pytest.mark.parametrize("what", ["t5x", "hugging_face_t5"])
@pytest.mark.parametrize("dtype", ["as_stored", "bfloat16"])
def test_a_text_encoder_comes_out_in_t5x_format(tmp_path, t5_sources, what, dtype):
    tokenizer = train_tokenizer(["a red circle", "a blue square"], 300)
    (tmp_path / "spiece.model").write_bytes(tokenizer.model_bytes)
    report = import_t5(what, t5_sources[what], tmp_path / "out", tokenizer=tmp_path / "spiece.model", dtype=dtype)
    expected = published.t5_parameters()
    if dtype == "bfloat16":
        expected = {name: array.astype(ml_dtypes.bfloat16) for name, array in expected.items()}
    assert_same(traverse_util.flatten_dict(read_t5x_encoder(tmp_path / "out"), sep="/"), expected)
    assert load_t5_encoder(tmp_path / "out").config == published.T5
    assert Tokenizer.load(tmp_path / "out" / "tokenizer.model").model_bytes == tokenizer.model_bytes
    assert (3, 4) in report.unused.values()
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(written["mapped"]) == len(expected)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint_0", "report.json", "tokenizer.model"}


def test_t5_fixtures(fixtures, tmp_path):
    directory = fixtures / "t5x_checkpoint"
    report = import_t5("t5x", directory / "ckpt", tmp_path / "t5x")
    assert report.unused["target/decoder/layers_0/mlp/wo/kernel"] == (64, 32)
    assert "state/param_states/encoder/encoder_norm/scale/v" in report.unused
    import_t5("hugging_face_t5", directory / "hf", tmp_path / "hf")
    trees = [read_t5x_encoder(path) for path in (directory / "ckpt", tmp_path / "t5x", tmp_path / "hf")]
    for tree in trees[1:]:
        jax.tree.map(np.testing.assert_array_equal, tree, trees[0])


def test_text_encoders_that_are_refused(tmp_path, t5_sources):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000000"')
    with pytest.raises(ValueError, match="is a TensorFlow checkpoint"):
        import_t5("t5x", tmp_path / "tensorflow", tmp_path / "out")
    big = train_tokenizer([f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwxyz"], 700)
    (tmp_path / "spiece.model").write_bytes(big.model_bytes)
    with pytest.raises(ValueError, match=rf"has {big.vocab_size} tokens, the encoder .* knows 512"):
        import_t5("t5x", t5_sources["t5x"], tmp_path / "out", tokenizer=tmp_path / "spiece.model")
    with pytest.raises(ValueError, match="lacks"):
        import_t5("hugging_face_t5", published.write_unet(tmp_path / "unet", published.as_diffusers(UNET)), None)
    norm = t5_sources["t5x"] / "target.encoder.layers_1.pre_mlp_layer_norm.scale"
    (norm / "0").unlink()  # found out only when it is read, in the middle of the writing
    with pytest.raises(ValueError, match=r"pre_mlp_layer_norm\.scale cannot be read"):
        import_t5("t5x", t5_sources["t5x"], tmp_path / "out")
    (norm / ".zarray").unlink()
    with pytest.raises(FileNotFoundError, match=r"pre_mlp_layer_norm\.scale"):
        import_t5("t5x", t5_sources["t5x"], tmp_path / "out")
    index = t5_sources["t5x"] / "checkpoint"
    tree = serialization.msgpack_restore(index.read_bytes())
    del tree["optimizer"]["target"]["encoder"]["layers_1"]["pre_mlp_layer_norm"]
    index.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(
        ValueError, match=r"missing in the file: 1\n +encoder/layers_1/pre_mlp_layer_norm/scale  \[16\]"
    ):
        import_t5("t5x", t5_sources["t5x"], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


# ------------------------------------------------------------------------------------ the command


def run_command(*arguments):
    command = [sys.executable, "-m", "lumiere_jax.import_weights", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_command(tmp_path, source):
    dry = run_command("deepfloyd_if", f"--weights={source}", "--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert "mapped: " in dry.stdout
    assert "missing: none" in dry.stdout
    assert "dry run: nothing was written" in dry.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"unet"}
    done = run_command(
        "deepfloyd_if", f"--weights={source}", f"--output={tmp_path / 'new' / 'out'}", "--dtype=bfloat16"
    )
    assert done.returncode == 0, done.stderr
    assert open_imported_unet(tmp_path / "new" / "out").config == published.UNET
    for arguments, message in (
        (["stable_diffusion", "--weights=x"], "say what to import, one of deepfloyd_if, t5x, hugging_face_t5"),
        (["t5x", f"--weights={source}", "--dry_run"], "no T5X checkpoint at"),
    ):
        failed = run_command(*arguments)
        assert failed.returncode == 1
        assert message in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr
