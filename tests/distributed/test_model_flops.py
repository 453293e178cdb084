"""FLOPs of a step, and how long the devices would need at best."""

import types

import jax
import jax.numpy as jnp
import pytest

from lumiere_jax.distributed import model_flops
from lumiere_jax.train_step import Batch

SHAPE = (2, 4, 8, 8, 3)


def devices(*kinds):
    return [types.SimpleNamespace(device_kind=kind) for kind in kinds]


def test_peak_is_that_of_all_devices_or_none():
    assert model_flops.peak_flops(devices(*["TPU v5 lite"] * 4)) == 4 * 197e12
    assert model_flops.peak_flops(devices("NVIDIA H200")) == 989.4e12
    assert model_flops.peak_flops(devices("NVIDIA H200", "cpu")) is None
    assert model_flops.peak_flops(jax.devices()) is None


def step(state, frozen, batch, seed):
    """Its work is a product of every pixel with a matrix, and of every token."""
    video = jnp.einsum("bfhwc,cd->bfhwd", batch.video, state["pixels"])
    text = jnp.einsum("btc,cd->btd", batch.text, frozen)
    return video.sum() + text.sum() + seed


def test_count_is_that_of_the_products_and_nothing_is_computed():
    left, right = jax.ShapeDtypeStruct((64, 128), jnp.bfloat16), jax.ShapeDtypeStruct((128, 32), jnp.bfloat16)
    assert model_flops.count_flops(jnp.matmul, left, right) == 2 * 64 * 128 * 32


def test_seconds_at_peak_follow_the_shape_of_the_batch(monkeypatch):
    state = {"pixels": jnp.ones((3, 1000))}
    batch = Batch(jnp.zeros(SHAPE), jnp.zeros((2, 5, 16)))
    assert model_flops.seconds_at_peak(step, state, jnp.ones((16, 5000)), batch, 0) is None  # a CPU: no peak is known
    monkeypatch.setattr(model_flops, "peak_flops", lambda devices: 1e9)
    seconds = model_flops.seconds_at_peak(step, state, jnp.ones((16, 5000)), batch, 0)
    state["pixels"].delete()  # training donates the state
    for clips, frames in ((2, 4), (6, 1)):
        pixels, tokens = clips * frames * 8 * 8 * 1000, clips * 5 * 5000
        products, sums = 2 * (3 * pixels + 16 * tokens), pixels + tokens
        assert seconds((clips, frames, 8, 8, 3)) == pytest.approx((products + sums) / 1e9, rel=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(model_flops, "count_flops", None)
        assert seconds(SHAPE) > 0  # each shape is counted once


def test_without_a_cpu_to_count_for_the_run_goes_on(monkeypatch, capsys):
    def no_cpu(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(model_flops, "peak_flops", lambda devices: 1e9)
    monkeypatch.setattr(jax, "local_devices", no_cpu)
    assert (
        model_flops.seconds_at_peak(step, {}, jnp.ones((16, 5000)), Batch(jnp.zeros(SHAPE), jnp.zeros((2, 5, 16))), 0)
        is None
    )
    assert "Add cpu to JAX_PLATFORMS" in capsys.readouterr().out
