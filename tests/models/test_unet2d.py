"""The spatial U-Net against diffusers' outputs, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumiere_jax.checkpoints import deepfloyd_if
from lumiere_jax.models.unet2d import UNet2D


def load(directory, dtype=jnp.float32):
    config = deepfloyd_if.unet_config(directory / "config.json")
    unet = nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(unet)
    flat = dict(nnx.to_flat_state(state))
    arrays = deepfloyd_if.read_unet_parameters(directory / "diffusion_pytorch_model.safetensors")
    deepfloyd_if.check_parameters(arrays, {path: leaf.get_value() for path, leaf in flat.items()})
    for path, leaf in flat.items():
        leaf.set_value(jnp.asarray(arrays[path], dtype))
    return nnx.merge(graphdef, state)


def to_video(nchw, dtype):
    return jnp.asarray(nchw, dtype).transpose(0, 2, 3, 1)[:, None]


def run(unet, io, dtype, mask):
    noise_level = jnp.asarray(io["class_labels"], dtype) if "class_labels" in io else None
    out = jax.jit(lambda *args: unet(*args, text_mask=mask, noise_level=noise_level))(
        to_video(io["sample"], dtype),
        jnp.asarray(io["timestep"], dtype).reshape(-1) * jnp.ones(len(io["sample"]), dtype),
        jnp.asarray(io["encoder_hidden_states"], dtype),
    )
    return np.asarray(out[:, 0].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("stage", "tolerance"), [("if_stage1", 3e-5), ("if_stage2", 2e-4)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_diffusers(fixtures, stage, tolerance, masked):
    io = np.load(fixtures / stage / "io.npz")
    mask = jnp.asarray(io["encoder_attention_mask"]) if masked else None
    out = run(load(fixtures / stage), io, jnp.float32, mask)
    np.testing.assert_allclose(out, io["out_masked" if masked else "out"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("stage", ["if_stage1", "if_stage2"])
def test_equals_diffusers_in_float64(fixtures, stage):
    io = np.load(fixtures / stage / "io.npz")
    with jax.enable_x64(True):
        out = run(load(fixtures / stage, jnp.float64), io, jnp.float64, None)
    np.testing.assert_allclose(out, io["out_f64"], atol=2e-5, rtol=0)
