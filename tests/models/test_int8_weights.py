"""Kernels as 8-bit integers: rounding in NumPy, and a network that computes with what was rounded."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from random_unets import randomised, smallest_stunet

from lumiere_jax.models.int8_weights import Int8, to_int8
from lumiere_jax.models.layers import Linear


def test_weights_are_rounded_channel_by_channel():
    kernel = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32) * [1e-4, 1.0, 30.0, 1.0, 0.0]
    layer = Linear(16, 5, rngs=nnx.Rngs(0))
    layer.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    values, scale = to_int8(layer).kernel.get_value()
    assert values.dtype == np.int8
    largest = np.abs(kernel).max(0)
    np.testing.assert_array_equal(np.abs(values).max(0), [127, 127, 127, 127, 0])
    error = np.abs(values * np.asarray(scale) - kernel)
    assert (error <= largest / 254 * (1 + 1e-5)).all()
    assert (error.max(0) > largest / 254 * 0.5)[:4].all()
    np.testing.assert_allclose(layer(jnp.eye(16)), values * np.asarray(scale), rtol=1e-6)


def test_a_network_computes_with_the_rounded_weights():
    """As one whose float kernels were rounded by hand; and the integers, not floats made of them, are its state."""
    unet = randomised(smallest_stunet())
    exact = nnx.to_pure_dict(nnx.state(unet))
    graphdef, state = nnx.split(to_int8(unet))
    integers = nnx.to_pure_dict(state)
    paths = nnx.traversals.flatten_mapping(exact)
    kernels = {path for path in paths if path[-1] == "kernel"}
    assert all(isinstance(nnx.traversals.flatten_mapping(integers)[path], Int8) for path in kernels)

    def by_hand(path, leaf):
        if path not in kernels:
            return leaf
        scale = np.abs(leaf).max(tuple(range(leaf.ndim - 1))) / 127
        return np.round(leaf / np.where(scale, scale, 1)) * scale

    rounded = nnx.traversals.unflatten_mapping({path: by_hand(path, np.asarray(leaf)) for path, leaf in paths.items()})
    x, time, text = jax.random.normal(jax.random.key(0), (1, 2, 8, 8, 3)), jnp.array([500.0]), jnp.ones((1, 4, 8))
    call = jax.jit(lambda state: nnx.merge(graphdef, state)(x, time, text))
    result = call(integers)
    np.testing.assert_allclose(result, call(rounded), rtol=1e-4, atol=1e-4)
    assert np.abs(result - call(exact)).max() > 1e-3
