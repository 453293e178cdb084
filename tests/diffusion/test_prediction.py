import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.guidance import static_threshold
from lumiere_jax.diffusion.noise_schedule import CosineSchedule, DiscreteCosineSchedule
from lumiere_jax.diffusion.prediction import target, to_epsilon, to_x0, x0_denoiser

OBJECTIVES = ["epsilon", "x0", "v"]
SHAPE = (3, 2, 4, 5, 3)


@pytest.fixture
def noised():
    x0, epsilon = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    alpha = np.float32([0.99, 0.6, 0.1])
    sigma = np.sqrt(1 - alpha**2)
    x_t = alpha[:, None, None, None, None] * x0 + sigma[:, None, None, None, None] * epsilon
    return [jnp.asarray(a) for a in (x0, epsilon, alpha, sigma, x_t)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_round_trip(noised, objective):
    x0, epsilon, alpha, sigma, x_t = noised
    prediction = target(x0, epsilon, alpha, sigma, objective)
    np.testing.assert_allclose(to_x0(prediction, x_t, alpha, sigma, objective), x0, atol=1e-5)
    np.testing.assert_allclose(to_epsilon(prediction, x_t, alpha, sigma, objective), epsilon, atol=1e-5)


def test_v_is_salimans_and_hos(noised):
    x0, epsilon, alpha, sigma, _ = noised
    expected = [alpha[i] * np.asarray(epsilon[i]) - sigma[i] * np.asarray(x0[i]) for i in range(3)]
    np.testing.assert_allclose(target(x0, epsilon, alpha, sigma, "v"), expected, rtol=1e-5, atol=1e-6)


def test_scalar_coefficients_mean_the_same_for_all(noised):
    _, epsilon, alpha, sigma, x_t = noised
    for objective in OBJECTIVES:
        scalar = to_x0(epsilon, x_t, alpha[1], sigma[1], objective)
        repeated = to_x0(epsilon, x_t, jnp.repeat(alpha[1], 3), jnp.repeat(sigma[1], 3), objective)
        np.testing.assert_array_equal(scalar, repeated)


def test_no_division_by_nothing(noised):
    x0, epsilon, _, _, _ = noised
    zero, one = jnp.array(0.0), jnp.array(1.0)
    np.testing.assert_array_equal(to_x0(epsilon, epsilon, zero, one, "epsilon"), 0)
    np.testing.assert_array_equal(to_epsilon(x0, x0, one, zero, "x0"), 0)
    gradient = jax.grad(lambda p: to_epsilon(p, x0, one, zero, "x0").sum())(x0)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("schedule", [CosineSchedule(), DiscreteCosineSchedule()], ids=repr)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_x0_denoiser_of_a_perfect_network(noised, schedule, objective):
    x0, epsilon, _, _, _ = noised
    for t, tolerance in [(0.001, 1e-6), (0.5, 1e-5), (0.97, 1e-4), (1.0, 1e-2)]:
        t = jnp.array(t)
        alpha, sigma = schedule.alpha_sigma(t)
        denoise = x0_denoiser(lambda x, t, a=alpha, s=sigma: target(x0, epsilon, a, s, objective), schedule, objective)
        np.testing.assert_allclose(denoise(alpha * x0 + sigma * epsilon, t), x0, atol=tolerance)


def test_x0_denoiser_thresholds_last(noised):
    x0, _, _, _, x_t = noised
    denoise = x0_denoiser(lambda x, t: x0, CosineSchedule(), "x0", static_threshold)
    np.testing.assert_array_equal(denoise(x_t, jnp.array(0.5)), np.clip(x0, -1, 1))
    assert np.abs(x0).max() > 1


def test_errors(noised):
    x0, epsilon, alpha, sigma, x_t = noised
    for function in (target, to_x0, to_epsilon):
        with pytest.raises(ValueError, match="unknown objective 'eps': use one of"):
            function(x0, epsilon, alpha, sigma, "eps")
    with pytest.raises(ValueError, match="unknown objective 'noise'"):
        x0_denoiser(lambda x, t: x, CosineSchedule(), "noise")
    learned_variance = x0_denoiser(lambda x, t: jnp.tile(x, 2), CosineSchedule(), "epsilon")
    with pytest.raises(ValueError, match="first half of the channels"):
        learned_variance(x_t, jnp.array(0.5))
