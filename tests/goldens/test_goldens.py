"""The spatial U-Net and the T5 encoder against what diffusers and transformers compute (see `make_goldens.py`).

Every case starts where a user does: config.json and safetensors with their names, read by the importers.
"""

import functools
import json
import pathlib

import golden_inputs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from lumiere_jax.checkpoints import deepfloyd_if
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.text.load_t5 import load_t5_encoder

DIRECTORY = pathlib.Path(__file__).parent
# Largest differences. float32: of DeepFloyd IF's stages I and II. float64: of a picture at time 0, where what is
# left of float32 is diffusers' softmax over the pooled text; elsewhere its sinusoids are float32 too.
FLOAT32 = {"stage_2": 2e-4}
FLOAT64_AT_TIME_0, FLOAT64 = 1e-6, 2e-5


@functools.cache
def golden(name):
    """The arrays and the metadata of a golden."""
    with safe_open(DIRECTORY / f"{name}.safetensors", framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        return arrays, {key: json.loads(value) for key, value in file.metadata().items()}


def weights(name):
    """The weights of a golden model under their names in PyTorch."""
    return {tensor: golden_inputs.weight(tensor, tuple(shape)) for tensor, shape in golden(name)[1]["shapes"].items()}


@pytest.fixture
def load_unet(tmp_path):
    def load(name, dtype=jnp.float32):
        (tmp_path / "config.json").write_text(json.dumps(golden(f"unet_{name}")[1]["config.json"]))
        save_file(weights(f"unet_{name}"), tmp_path / "diffusion_pytorch_model.safetensors")
        config = deepfloyd_if.unet_config(tmp_path / "config.json")
        graphdef, state = nnx.split(nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0))))
        flat = dict(nnx.to_flat_state(state))
        arrays = deepfloyd_if.read_unet_parameters(tmp_path / "diffusion_pytorch_model.safetensors")
        deepfloyd_if.check_parameters(arrays, {path: leaf.get_value() for path, leaf in flat.items()})
        for path, leaf in flat.items():
            leaf.set_value(jnp.asarray(arrays[path], dtype))
        return nnx.merge(graphdef, state)

    return load


@jax.jit
def apply(unet, video, time, text, mask, noise_level):
    return unet(video, time, text, text_mask=mask, noise_level=noise_level)


def run(unet, mask=None, dtype=jnp.float32, tokens=golden_inputs.TOKENS):
    """The U-Net's output on the goldens' inputs, in diffusers' layout."""
    sample, text = golden_inputs.inputs(unet.config.in_channels, unet.config.text_dim, tokens)
    out = apply(
        unet,
        jnp.asarray(sample, dtype).transpose(0, 2, 3, 1)[:, None],
        jnp.asarray(golden_inputs.TIMESTEP, dtype),
        jnp.asarray(text, dtype),
        mask,
        jnp.asarray(golden_inputs.NOISE_LEVEL, dtype) if unet.config.noise_level_embedding else None,
    )
    return np.asarray(out[:, 0].transpose(0, 3, 1, 2))


ALL_SEEN = np.ones((golden_inputs.BATCH, golden_inputs.TOKENS), np.int64)


@pytest.mark.parametrize("name", golden_inputs.UNETS)
def test_unet_equals_diffusers(load_unet, name):
    """Without a mask (one that hides nothing serves both, in one program) and with one."""
    unet, (expected, _) = load_unet(name), golden(f"unet_{name}")
    assert np.abs(expected["out"] - expected["out_masked"]).max() > 1e-3
    for mask, key in ((ALL_SEEN, "out"), (golden_inputs.mask(), "out_masked")):
        np.testing.assert_allclose(run(unet, mask), expected[key], atol=FLOAT32.get(name, 3e-5), rtol=0, err_msg=key)


@pytest.mark.parametrize("name", golden_inputs.UNETS)
def test_unet_equals_diffusers_in_float64(load_unet, name):
    expected, _ = golden(f"unet_{name}")
    with jax.enable_x64(True):
        unet = load_unet(name, jnp.float64)
        for mask, key in ((ALL_SEEN, "out_f64"), (golden_inputs.mask(), "out_masked_f64")):
            error = np.abs(run(unet, mask, jnp.float64) - expected[key])
            assert error[0].max() < FLOAT64_AT_TIME_0, key
            assert error[1].max() < FLOAT64, key


def test_no_mask_is_a_mask_that_hides_nothing(load_unet):
    unet = load_unet("stage_1")
    np.testing.assert_allclose(run(unet), golden("unet_stage_1")[0]["out"], atol=3e-5, rtol=0)


def test_as_many_tokens_as_pixels(load_unet):
    """Where diffusers itself crashes; the golden is of diffusers with its mask repaired."""
    tokens = golden_inputs.PIXELS_OF_THE_COARSEST_LEVEL
    out = run(load_unet("stage_1"), golden_inputs.mask(tokens), tokens=tokens)
    expected = golden("unet_stage_1")[0]["out_masked_as_many_tokens_as_pixels"]
    np.testing.assert_allclose(out, expected, atol=3e-5, rtol=0)


def test_older_config_has_few_keys():
    given = golden("unet_older")[1]["config.json"]
    assert {"encoder_hid_dim_type", "time_embedding_dim", "act_fn", "norm_num_groups"}.isdisjoint(given)


def test_t5_equals_transformers(tmp_path):
    save_file(weights("t5"), tmp_path / "model.safetensors")
    encoder = load_t5_encoder(tmp_path)
    tokens, mask = golden_inputs.t5_tokens()
    expected = golden("t5")[0]["last_hidden_state"]
    output = np.asarray(jax.jit(lambda tokens: encoder(tokens))(tokens))
    valid = mask == 1
    np.testing.assert_allclose(output[valid], expected[valid], atol=1e-5, rtol=0)
    # Rows of padding mean nothing: T5X, whose definition is ours, hides all keys from them, Hugging Face does not.
    assert np.abs(output - expected)[~valid].max() > 0.1


def test_goldens_say_what_made_them():
    for path in DIRECTORY.glob("*.safetensors"):
        assert "torch" in golden(path.stem)[1]["versions"]
