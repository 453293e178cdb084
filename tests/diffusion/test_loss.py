import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.loss import diffusion_loss, loss_weight, stratified_times
from lumiere_jax.diffusion.noise_schedule import CosineSchedule, DiscreteCosineSchedule

SHAPE = (4, 2, 3, 5, 3)
OBJECTIVES = ["epsilon", "x0", "v"]


def denoiser(x_t, t):
    """Some function of both arguments."""
    return 0.3 * x_t + t.reshape(-1, 1, 1, 1, 1)


def brute_force(x0, epsilon, t, schedule, objective, weighting):
    """One clip at a time in float64, the weight by its definition: min-SNR weighs the error of x0."""
    losses = []
    for clip, noise, time in zip(np.float64(x0), np.float64(epsilon), t, strict=True):
        alpha, sigma = (float(c) for c in jax.jit(schedule.alpha_sigma)(jnp.asarray(time)))
        x_t = alpha * clip + sigma * noise
        prediction = 0.3 * x_t + float(time)
        truth = {"epsilon": noise, "x0": clip, "v": alpha * noise - sigma * clip}[objective]
        if weighting == "uniform":
            losses.append(np.mean((prediction - truth) ** 2))
            continue
        x0_prediction = {
            "epsilon": (x_t - sigma * prediction) / alpha,
            "x0": prediction,
            "v": alpha * x_t - sigma * prediction,
        }[objective]
        losses.append(min(alpha**2 / sigma**2, 5.0) * np.mean((x0_prediction - clip) ** 2))
    return np.array(losses)


@pytest.mark.parametrize("schedule", [CosineSchedule(), DiscreteCosineSchedule()], ids=repr)
@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_against_brute_force(schedule, weighting, objective):
    x0, epsilon = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)
    t = np.float32([0.02, 0.3, 0.6, 0.95])
    score = functools.partial(diffusion_loss, denoiser, schedule=schedule, objective=objective, weighting=weighting)
    loss, per_clip = jax.jit(score)(x0, t, epsilon)
    # Near a clean clip the definition's 1 / sigma^2 and our form differ by float32's rounding of alpha.
    np.testing.assert_allclose(per_clip, brute_force(x0, epsilon, t, schedule, objective, weighting), rtol=1e-4)
    np.testing.assert_allclose(loss, np.mean(per_clip), rtol=1e-6)


def test_times_are_stratified_and_uniform():
    batch = 8
    keys = jax.random.split(jax.random.key(0), 2000)
    times = np.asarray(jax.vmap(lambda key: stratified_times(key, batch))(keys))
    assert times.min() > 0
    assert times.max() <= 1
    # one time in each eighth; the rounding to (0, 1] may put one exactly on a border
    strata = np.sort(np.ceil(times * batch - 1e-5), axis=1)
    assert np.mean(strata == np.arange(1, batch + 1)) > 0.999
    # every position by itself is uniform: mean 1/2, variance 1/12, within 5 standard errors of 2000 draws
    np.testing.assert_allclose(times.mean(0), 0.5, atol=5 * np.sqrt(1 / 12 / 2000))
    np.testing.assert_allclose(times.var(0), 1 / 12, atol=5 * np.sqrt(1 / 180 / 2000))


def test_perfect_network_has_no_loss():
    x0 = jnp.full(SHAPE, 0.25)
    t, epsilon = jnp.linspace(0.1, 1.0, len(x0)), jax.random.normal(jax.random.key(0), SHAPE)
    loss, _ = diffusion_loss(lambda x, t: x0, x0, t, epsilon, schedule=CosineSchedule(), objective="x0")
    assert loss == 0


def test_bfloat16_clips_are_noised_and_scored_in_float32():
    x0, epsilon = jnp.asarray(np.random.default_rng(2).normal(size=(2, *SHAPE)), jnp.bfloat16)
    t = jnp.array([0.1, 0.3, 0.6, 0.9])
    score = jax.jit(functools.partial(diffusion_loss, denoiser, schedule=CosineSchedule(), objective="v"))
    narrow, _ = score(x0, t, epsilon)
    wide, _ = score(x0.astype(jnp.float32), t, epsilon.astype(jnp.float32))
    assert narrow.dtype == jnp.float32
    assert narrow == wide


def test_weights_are_finite_at_the_ends_of_time():
    log_snr = jnp.array([jnp.inf, 100.0, -100.0])
    expected = {"epsilon": [0, 0, 1], "x0": [5, 5, 0], "v": [0, 0, 0]}
    for objective in OBJECTIVES:
        np.testing.assert_allclose(loss_weight(log_snr, objective, "min_snr"), expected[objective], atol=1e-30)


def test_truncated_weights_are_of_the_clean_clips_error():
    """Whatever is predicted, the loss is clip(SNR, 1, 5) times the mean squared error of the clean clip."""
    schedule = CosineSchedule()
    x0, epsilon = jnp.asarray(np.random.default_rng(4).normal(size=(2, *SHAPE)), jnp.float32)
    t = jnp.array([0.1, 0.3, 0.6, 0.9])
    alpha, sigma = (np.asarray(c)[:, None, None, None, None] for c in schedule.alpha_sigma(t))
    wrong_x0 = x0 + 0.1
    wrong_v = (alpha * (alpha * x0 + sigma * epsilon) - wrong_x0) / sigma
    snr = (alpha / sigma).ravel() ** 2
    assert snr[0] > 5 > snr[1] > 1 > snr[2]
    for objective, prediction in (("x0", wrong_x0), ("v", wrong_v)):
        weighted = functools.partial(diffusion_loss, schedule=schedule, objective=objective)
        _, per_clip = weighted(lambda x, t, p=prediction: p, x0, t, epsilon, weighting="truncated_snr")
        np.testing.assert_allclose(per_clip, np.clip(snr, 1, 5) * 0.01, rtol=1e-3)
    with pytest.raises(ValueError, match="not for epsilon"):
        loss_weight(jnp.zeros(1), "epsilon", "truncated_snr")


def test_errors():
    x0, t = jnp.zeros(SHAPE), jnp.full(4, 0.5)
    with pytest.raises(ValueError, match="weighting='snr', objective='v'"):
        diffusion_loss(denoiser, x0, t, x0, schedule=CosineSchedule(), objective="v", weighting="snr")
    with pytest.raises(ValueError, match="objective='score'"):
        diffusion_loss(denoiser, x0, t, x0, schedule=CosineSchedule(), objective="score")
    with pytest.raises(ValueError, match="first half of the channels"):
        diffusion_loss(lambda x, t: jnp.tile(x, 2), x0, t, x0, schedule=CosineSchedule())
