"""The spatial U-Net and the T5 encoder against what diffusers and transformers compute (see `make_goldens.py`).

Every case starts where a user does: config.json and safetensors with their names, read by the importers.
"""

import functools
import json
import pathlib

import golden_inputs
import jax
import jax.numpy as jnp
import make_tiny_if
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from configs import deepfloyd_if as variants
from lumiere_jax.checkpoints import deepfloyd_if
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.text.load_t5 import load_t5_encoder
from lumiere_jax.text.tokenizer import Tokenizer

DIRECTORY = pathlib.Path(__file__).parent
# Largest differences (found: 4e-6, 3e-6 and 2e-7). In a float64 model diffusers' softmax over the pooled text is still
# float32, and so are its sinusoids, which are exact at time 0 alone: there a constant that is off by 1e-5 shows.
FLOAT32, FLOAT64, FLOAT64_AT_TIME_0 = 3e-5, 2e-5, 1e-6


@functools.cache
def golden(name):
    """The arrays and the metadata of a golden."""
    with safe_open(DIRECTORY / f"{name}.safetensors", framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        return arrays, {key: json.loads(value) for key, value in file.metadata().items()}


def weights(name):
    """The weights of a golden model under their names in PyTorch."""
    return {tensor: golden_inputs.weight(tensor, tuple(shape)) for tensor, shape in golden(name)[1]["shapes"].items()}


def read_unet(directory, dtype=jnp.float32):
    """The U-Net of a directory in diffusers' format."""
    config = deepfloyd_if.unet_config(directory / "config.json")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0))))
    flat = dict(nnx.to_flat_state(state))
    arrays = deepfloyd_if.read_unet_parameters(directory / "diffusion_pytorch_model.safetensors")
    deepfloyd_if.check_parameters(arrays, {path: leaf.get_value() for path, leaf in flat.items()})
    for path, leaf in flat.items():
        leaf.set_value(jnp.asarray(arrays[path], dtype))
    return nnx.merge(graphdef, state)


@pytest.fixture
def load_unet(tmp_path):
    def load(name, dtype=jnp.float32):
        (tmp_path / "config.json").write_text(json.dumps(golden(f"unet_{name}")[1]["config.json"]))
        save_file(weights(f"unet_{name}"), tmp_path / "diffusion_pytorch_model.safetensors")
        return read_unet(tmp_path, dtype)

    return load


@jax.jit
def apply(unet, video, time, text, mask, noise_level):
    return unet(video, time, text, text_mask=mask, noise_level=noise_level)


def run(unet, mask=None, dtype=jnp.float32, tokens=golden_inputs.TOKENS):
    """The U-Net's output on the goldens' inputs."""
    sample, text = golden_inputs.inputs(unet.config.in_channels, unet.config.text_dim, tokens)
    return run_on(unet, sample, golden_inputs.TIMESTEP, text, mask, golden_inputs.NOISE_LEVEL, dtype)


def run_on(unet, sample, timestep, text, mask, noise_level, dtype):
    """The U-Net's output on diffusers' inputs, in diffusers' layout `[batch, channels, height, width]`."""
    out = apply(
        unet,
        jnp.asarray(sample, dtype).transpose(0, 2, 3, 1)[:, None],
        jnp.broadcast_to(jnp.asarray(timestep, dtype), len(sample)),
        jnp.asarray(text, dtype),
        mask,
        jnp.asarray(noise_level, dtype) if unet.config.noise_level_embedding else None,
    )
    return np.asarray(out[:, 0].transpose(0, 3, 1, 2))


ALL_SEEN = np.ones((golden_inputs.BATCH, golden_inputs.TOKENS), np.int64)


@pytest.mark.parametrize("name", golden_inputs.UNETS)
def test_unet_equals_diffusers(load_unet, name):
    """Without a mask (one that hides nothing serves both, in one program) and with one."""
    unet, (expected, _) = load_unet(name), golden(f"unet_{name}")
    assert np.abs(expected["out"] - expected["out_masked"]).max() > 1e-3
    for mask, key in ((ALL_SEEN, "out"), (golden_inputs.mask(), "out_masked")):
        np.testing.assert_allclose(run(unet, mask), expected[key], atol=FLOAT32, rtol=0, err_msg=key)


@pytest.mark.parametrize("name", golden_inputs.UNETS)
def test_unet_equals_diffusers_in_float64(load_unet, name):
    expected, _ = golden(f"unet_{name}")
    with jax.enable_x64(True):
        unet = load_unet(name, jnp.float64)
        for mask, key in ((ALL_SEEN, "out_f64"), (golden_inputs.mask(), "out_masked_f64")):
            error = np.abs(run(unet, mask, jnp.float64) - expected[key])
            assert error[0].max() < FLOAT64_AT_TIME_0, key
            assert error[1].max() < FLOAT64, key


@pytest.mark.parametrize(("stage", "tolerance"), [("if_stage1", 3e-5), ("if_stage2", 2e-4)])
def test_unet_equals_the_fixtures(fixtures, stage, tolerance):
    """Larger models of the same kind, float32 and float64; outside the repository."""
    io = np.load(fixtures / stage / "io.npz")
    for dtype, suffix, bar in ((jnp.float32, "", tolerance), (jnp.float64, "_f64", 2e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            unet = read_unet(fixtures / stage, dtype)
            mask = io["encoder_attention_mask"]
            for seen, key in ((np.ones_like(mask), f"out{suffix}"), (mask, f"out_masked{suffix}")):
                inputs = (io["sample"], io["timestep"], io["encoder_hidden_states"], seen, io.get("class_labels"))
                np.testing.assert_allclose(run_on(unet, *inputs, dtype), io[key], atol=bar, rtol=0, err_msg=key)


def test_no_mask_is_a_mask_that_hides_nothing(load_unet):
    unet = load_unet("stage_1")
    np.testing.assert_allclose(run(unet), golden("unet_stage_1")[0]["out"], atol=FLOAT32, rtol=0)


def test_as_many_tokens_as_pixels(load_unet):
    """Where diffusers itself crashes; the golden is of diffusers with its mask repaired."""
    tokens = golden_inputs.PIXELS_OF_THE_COARSEST_LEVEL
    out = run(load_unet("stage_1"), golden_inputs.mask(tokens), tokens=tokens)
    expected = golden("unet_stage_1")[0]["out_masked_as_many_tokens_as_pixels"]
    np.testing.assert_allclose(out, expected, atol=FLOAT32, rtol=0)


def test_older_config_has_few_keys():
    given = golden("unet_older")[1]["config.json"]
    assert {"encoder_hid_dim_type", "time_embedding_dim", "act_fn", "norm_num_groups"}.isdisjoint(given)


def test_t5_equals_transformers(tmp_path):
    """At padding too, which DeepFloyd IF attends to."""
    save_file(weights("t5"), tmp_path / "model.safetensors")
    encoder = load_t5_encoder(tmp_path)
    tokens, mask = golden_inputs.t5_tokens()
    output = np.asarray(jax.jit(lambda tokens: encoder(tokens, padding_sees_tokens=True))(tokens))
    assert not mask.all()
    np.testing.assert_allclose(output, golden("t5")[0]["last_hidden_state"], atol=1e-5, rtol=0)


def test_goldens_say_what_made_them():
    for path in DIRECTORY.glob("*.safetensors"):
        assert "torch" in golden(path.stem)[1]["versions"]


@pytest.mark.parametrize("name", golden_inputs.UNETS)
def test_the_tiny_models_names_are_diffusers(tmp_path, name):
    """`make_tiny_if.py` writes the names of diffusers, and a config that reads the same."""
    metadata = golden(f"unet_{name}")[1]
    (tmp_path / "config.json").write_text(json.dumps(metadata["config.json"]))
    config = deepfloyd_if.unet_config(tmp_path / "config.json")
    unet = nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
    names = {make_tiny_if.diffusers_name(path) for path, _ in nnx.to_flat_state(nnx.state(unet))}
    assert names == metadata["shapes"].keys()
    (tmp_path / "config.json").write_text(json.dumps(deepfloyd_if.diffusers_config(config)))
    assert deepfloyd_if.unet_config(tmp_path / "config.json") == config


def test_make_tiny_if(tmp_path):
    """The files are read by the importers as what `configs/deepfloyd_if.py` says."""
    output = tmp_path / "tiny"
    make_tiny_if.make(output)
    for stage, variant in (("if_i", "if_tiny"), ("if_ii", "if_ii_tiny")):
        config = deepfloyd_if.unet_config(output / stage / "unet" / "config.json")
        assert config == UNet2DConfig(**variants.unet(variant))
        arrays = deepfloyd_if.read_unet_parameters(output / stage / "unet" / "diffusion_pytorch_model.safetensors")
        expected = nnx.state(nnx.eval_shape(lambda config=config: UNet2D(config, rngs=nnx.Rngs(0))))
        deepfloyd_if.check_parameters(arrays, {p: leaf.get_value() for p, leaf in nnx.to_flat_state(expected)})
    encoder = load_t5_encoder(output / "t5")
    assert Tokenizer.load(output / "t5" / "spiece.model").vocab_size <= encoder.config.vocab_size
    with pytest.raises(FileExistsError, match="is there already"):
        make_tiny_if.make(output)
