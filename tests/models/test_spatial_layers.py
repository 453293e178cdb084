"""What the U-Net's activations and normalisations compute, beside independent definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.models.layers import GroupNorm, Moments, moments
from lumiere_jax.models.spatial_layers import activation

OF_JAX = {"silu": jax.nn.silu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}


@pytest.mark.parametrize("name", OF_JAX)
def test_gradients_of_activations(name):
    """As JAX differentiates them, and finite where their exponentials are not."""
    x, gradient = jnp.linspace(-9.0, 9.0, 145), jnp.linspace(0.5, 2.0, 145)
    ours, pull = jax.vjp(lambda x: activation(name, x), x)
    expected, expected_pull = jax.vjp(OF_JAX[name], x)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_allclose(pull(gradient)[0], expected_pull(gradient)[0], rtol=2e-6, atol=1e-6)
    far = jnp.asarray([-200.0, 200.0])
    np.testing.assert_array_equal(jax.vjp(lambda x: activation(name, x), far)[1](jnp.ones(2))[0], [0.0, 1.0])


@pytest.mark.parametrize("name", OF_JAX)
def test_an_activation_keeps_its_input_alone(name):
    x = jnp.ones((3, 5))
    kept = jax.tree.leaves(jax.vjp(lambda x: activation(name, x), x)[1])
    assert [each.shape for each in kept] == [x.shape]


def test_moments_have_jaxs_gradient_and_keep_their_input_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(1.0, 2.0, (2, 3, 4, 5, 6)), jnp.float32)
    toward = jnp.cos(jnp.arange(36.0)).reshape(2, 3, 6), jnp.sin(jnp.arange(36.0)).reshape(2, 3, 6)
    ours, pull = jax.vjp(lambda x: moments(x, 2), x)
    expected, expected_pull = jax.vjp(lambda x: Moments(x.mean((2, 3)), jnp.square(x).mean((2, 3))), x)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    np.testing.assert_allclose(pull(Moments(*toward))[0], expected_pull(Moments(*toward))[0], rtol=1e-5, atol=1e-6)
    half = x.astype(jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(lambda x: moments(x, 2), half)[1])
    assert [(each.shape, each.dtype) for each in kept] == [(half.shape, half.dtype)]


def test_group_normalisation_in_float64():
    """Six channels of three groups, per frame, with a modulation."""
    random = np.random.default_rng(0)
    x = random.normal(3.0, 2.0, (2, 4, 5, 7, 6)).astype(np.float32)
    norm, (gain, shift) = GroupNorm(6, 3), random.normal(size=(2, 2, 1, 6)).astype(np.float32)
    norm.scale.set_value(jnp.arange(1.0, 7.0))
    norm.bias.set_value(jnp.arange(6.0))
    wide = x.astype(np.float64).reshape(2, 4, 5 * 7, 3, 2)
    centred = wide - wide.mean((2, 4), keepdims=True)
    normal = (centred / np.sqrt(wide.var((2, 4), keepdims=True) + 1e-5)).reshape(x.shape)
    of_pixels = (slice(None), slice(None), None, None)
    expected = (normal * np.arange(1.0, 7.0) + np.arange(6.0)) * (1.0 + gain[of_pixels]) + shift[of_pixels]
    found = norm(jnp.asarray(x), (jnp.asarray(gain), jnp.asarray(shift)))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
