"""Attention to several sources at once, frame by frame, and by the kernel, which is interpreted here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_unets import randomised

from lumiere_jax.models import attention as attention_module
from lumiere_jax.models import spatial_layers
from lumiere_jax.models.attention import Attended, attention, in_kernel, splash, whole_blocks
from lumiere_jax.models.rematerialization import Rematerialization
from lumiere_jax.models.spatial_layers import SpatialAttention, TextContext
from lumiere_jax.models.unet2d_config import UNet2DConfig


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.usefixtures("float64")
def test_attention_to_two_sources_is_that_to_their_concatenation():
    query = normal(2, 5, 3, 4) * 4
    key, value = normal(2, 9, 3, 4, seed=1) * 4, normal(2, 9, 3, 4, seed=2)
    bias = jnp.where(normal(2, 1, 1, 6, seed=3) > 0, 0.0, -1e4)
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / 2.0
    logits[..., :6] += bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)
    first, second = Attended(key[:, :6], value[:, :6], bias), Attended(key[:, 6:], value[:, 6:])
    np.testing.assert_allclose(attention(query, first, second), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(attention(query, second, first), expected, rtol=0, atol=1e-13)


def test_no_logit_is_too_large():
    query, key = jnp.full((1, 1, 1, 4), 300.0), jnp.full((1, 2, 1, 4), 300.0)
    far = Attended(-key, jnp.zeros_like(key))
    np.testing.assert_array_equal(attention(query, far, Attended(key, jnp.ones_like(key))), jnp.ones((1, 1, 1, 4)))


@pytest.mark.parametrize("policy", ["frame_by_frame", "kernel"])
def test_no_policy_changes_anything(monkeypatch, policy):
    config = UNet2DConfig(attention_head_dim=4, norm_num_groups=2, cross_attention_dim=32)
    module = randomised(SpatialAttention(8, config, rngs=nnx.Rngs(0)))
    graphdef, parameters = nnx.split(module)
    x, context = normal(2, 3, 4, 4, 8).astype(jnp.float32), TextContext(normal(2, 5, 32).astype(jnp.float32), None)
    monkeypatch.setattr(spatial_layers, "_MANY_PIXELS", 16)

    def gradients(policy):
        def loss(parameters, x):
            module = nnx.merge(graphdef, parameters)
            module.remat = dataclasses.replace(Rematerialization(), attention=policy)
            return jnp.square(module(x, context)).sum()

        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        loops = str(jax.make_jaxpr(program)(parameters, x)).count(" scan[")
        return program(parameters, x), loops

    (expected, none), (actual, loops) = gradients("whole"), gradients(policy)
    assert none == 0
    assert loops >= 2  # forward and backward
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), actual, expected)


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize(
    ("pixels", "largest", "block"),
    [
        (200, 4224, (384, 384)),  # less than a block of queries, too
        (1100, 4224, (1280, 1280)),  # several blocks of queries, the last not full; several pieces of keys
        (600, 512, (384, 768)),
    ],
)
def test_the_kernel_is_attention(monkeypatch, pixels, largest, block, in_parts):
    monkeypatch.setattr(attention_module, "FORWARD", attention_module._Blocks(512, largest, 1408))
    if in_parts:
        monkeypatch.setattr(attention_module, "_GRADIENT", attention_module._Blocks(512, 256, 256))
    assert whole_blocks(pixels + 77, largest) == block
    query = normal(1, 2, pixels, 2, 8).astype(jnp.float32) * 3
    sources = [
        Attended(*(normal(1, 2, keys, 2, 8, seed=seed).astype(jnp.float32) * 2 for seed in (keys, keys + 1)))
        for keys in (77, pixels)
    ]
    toward = normal(*query.shape, seed=9).astype(jnp.float32)

    def with_gradients(attend):
        out, pull_back = jax.vjp(attend, query, *sources)
        return out, pull_back(toward)

    expected, actual = with_gradients(attention), with_gradients(functools.partial(splash, interpret=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-5), actual, expected)


def test_the_kernel_hides_no_text():
    x = normal(1, 1, 128, 1, 8)
    with pytest.raises(ValueError, match="has no bias, and so no text_mask: use 'frame_by_frame'"):
        jax.eval_shape(in_kernel, x, Attended(x, x, jnp.zeros((1, 1, 1, 1, 128))))


def test_unknown_attention():
    with pytest.raises(ValueError, match=r"remat.attention='flash': use one of whole, frame_by_frame, kernel"):
        Rematerialization(attention="flash")
