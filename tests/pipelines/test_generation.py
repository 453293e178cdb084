"""Guidance around a network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_runs import random_run

from lumiere_jax.diffusion.noise_schedule import CosineSchedule
from lumiere_jax.pipelines.generation import Settings, guided_denoiser, sampling_settings

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 2, 2, 3)), jnp.float32)
TEXTS = jnp.full((2, 4, 5), 0.5), jnp.full((2, 4, 5), -0.25)


def predict(x, time, text, *, noise_level, seen=None):
    """Tells prompts, times and clips apart; both halves of a guided batch have the clip's time."""
    if seen is not None:
        jax.debug.callback(lambda time: seen.append(np.asarray(time)), time)
    return x * text.mean((1, 2))[:, None, None, None, None] + time[:, None, None, None, None]


def settings(**fields):
    return Settings(CosineSchedule(), "v", "ddim", 2, 3.0, "none", **fields)


@pytest.mark.parametrize(("t", "is_guided"), [(0.29, False), (0.3, True), (0.5, True), (0.6, True), (0.61, False)])
def test_clips_are_guided_in_an_interval_alone(t, is_guided):
    """Outside of it the network sees a batch that is not doubled."""
    seen = []
    inside = settings(guidance_interval=(0.3, 0.6))
    denoise = jax.jit(guided_denoiser(functools.partial(predict, seen=seen), inside))
    result = denoise(X, jnp.float32(t), TEXTS, None)
    jax.effects_barrier()
    weight = -0.25 + 3 * 0.75 if is_guided else 0.5
    np.testing.assert_allclose(result, X * weight + 1000 * t, rtol=1e-5)
    assert [times.shape for times in seen] == [(4,) if is_guided else (2,)]


def test_an_interval_may_be_given_as_a_list():
    """As JSON has it; what a program is specialised to must be hashable all the same."""
    made = [sampling_settings(random_run().config, guidance_interval=interval) for interval in ([0.3, 0.6], (0.3, 0.6))]
    assert len(set(made)) == 1


def test_each_clip_may_have_a_time_of_its_own():
    """As in distillation, where a teacher is asked at several times."""
    t = jnp.array([0.2, 0.9])
    result = jax.jit(guided_denoiser(predict, settings()))(X, t, TEXTS, None)
    np.testing.assert_allclose(result, X * 2.0 + 1000 * t[:, None, None, None, None], rtol=1e-5)
