"""Half the frames where there is most noise, against closed forms; deep features that are used again, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.approximations import Approximations, half_rate
from lumiere_jax.diffusion.noise_schedule import CosineSchedule
from lumiere_jax.pipelines.generation import Settings, generate

SCHEDULE = CosineSchedule()
SPREAD = 0.5  # of Gaussian data


def gaussian_x0(x_t, t):
    """E[x0 | x_t] of each number by itself."""
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    return alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * x_t


@pytest.mark.parametrize("t", [0.3, 0.7, 0.99])
def test_two_equal_frames_are_denoised_by_both_noises(t):
    """The best estimate of what two frames have in common, from the textbook, in float64."""
    with jax.enable_x64(True):
        x_t = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 3))
        result = half_rate(gaussian_x0, SCHEDULE, 0.3)(jnp.asarray(x_t), jnp.float64(t))
        alpha, sigma = map(float, SCHEDULE.alpha_sigma(jnp.float64(t)))
    weight = alpha / sigma**2 / (1 / SPREAD**2 + 2 * alpha**2 / sigma**2)  # of each of two observations
    expected = np.broadcast_to(weight * x_t.sum(1, keepdims=True), x_t.shape)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_pairs_are_interpolated_in_time():
    x_t = jnp.asarray([1.0, 3.0, 5.0, 7.0, -2.0, -6.0]).reshape(1, 6, 1, 1, 1)
    result = half_rate(lambda x, t: x, SCHEDULE, 0.0)(x_t, jnp.float32(0.6))
    alpha, sigma = SCHEDULE.alpha_sigma(jnp.float32(0.6))
    expected = np.array([2.0, 3.0, 5.0, 3.5, -1.5, -4.0]) / np.sqrt(alpha**2 + sigma**2 / 2)
    np.testing.assert_allclose(np.ravel(result), expected, rtol=1e-5)


def test_below_its_time_all_frames_are_denoised():
    x_t = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 2, 2, 3)), jnp.float32)[:, [0, 0, 1, 2]]
    result = half_rate(gaussian_x0, SCHEDULE, 0.5)(x_t, jnp.float32(0.49))
    np.testing.assert_array_equal(result, gaussian_x0(x_t, jnp.float32(0.49)))


def recording_network(seen):
    """Deep features that tell the clip and the time that they were made of; the prediction is made of them alone."""

    def predict(x_t, time, text, *, shallow, deep):
        seen.append((shallow, deep is None))
        deep = (
            x_t * time[:, None, None, None, None] * text.mean((1, 2))[:, None, None, None, None]
            if deep is None
            else deep
        )
        return 0.1 * x_t + 0.01 * deep, deep

    return predict


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver_pp_2m"])
def test_deep_features_are_made_at_every_so_many_th_call(sampler):
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 2, 2, 3)), jnp.float32)
    texts = jnp.full((2, 3, 4), 0.5), jnp.full((2, 3, 4), -0.25)
    seen = []
    settings = Settings(SCHEDULE, "v", sampler, 5, 3.0, "none", approximations=Approximations(2, 3))
    result, _ = jax.jit(
        lambda noise: generate(recording_network(seen), noise, texts, None, None, jax.random.key(0), settings)
    )(noise)
    assert set(seen) == {(3, True), (3, False)}
    plan, x, previous = settings.plan(), np.float64(noise), 0.0
    for index in range(5):
        t = plan.t[index]
        alpha, sigma = map(float, SCHEDULE.alpha_sigma(t))
        if index in (0, 2, 4):
            deep = [x * float(SCHEDULE.network_time(t)) * weight for weight in (0.5, -0.25)]
        conditional, unconditional = (0.1 * x + 0.01 * each for each in deep)
        v = unconditional + 3.0 * (conditional - unconditional)
        x0 = alpha * x - sigma * v
        step = plan.step(index)
        x = (
            float(step.x) * x
            + float(step.x0) * x0
            + (0.0 if plan.previous is None else float(step.previous)) * previous
        )
        previous = x0
    np.testing.assert_allclose(result, x, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"deep_features_every": 0}, "deep_features_every=0: give a number from 1"),
        ({"shallow_layers": 0}, "shallow_layers=0: give a number from 1"),
        ({"half_rate_from": 1.5}, "half_rate_from=1.5: give a diffusion time"),
        ({"half_rate_from": 0.5, "deep_features_every": 2}, "give one of the two"),
    ],
)
def test_approximations_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        Approximations(**fields)


def test_approximations_that_do_not_fit():
    with pytest.raises(ValueError, match=r"half_rate_from=0\.5 pairs frames: give an even number, not 3"):
        Approximations(half_rate_from=0.5).check(3, 2)
    with pytest.raises(ValueError, match="shallow_layers=3: this network has 2"):
        Approximations(2, 3).check(4, 2)
    with pytest.raises(ValueError, match=r"deep_features_every=2 is for clips that are .* guided at all times"):
        Settings(SCHEDULE, "v", "ddim", 2, 3.0, "none", guidance_interval=(0.3, 1.0), approximations=Approximations(2))
