import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumiere_jax.diffusion.noise_schedule import (
    CosineSchedule,
    DiscreteCosineSchedule,
    NoiseSchedule,
    _discrete_cosine_table,
    from_config,
)

SCHEDULES = [CosineSchedule(), CosineSchedule(log_snr_shift=-1.386), DiscreteCosineSchedule()]


def cosine_log_snr_float64(t, shift=0.0):
    """The textbook form, safe in float64 only."""
    start, end = np.arctan(np.exp(-7.5)), np.arctan(np.exp(7.5))
    return -2 * np.log(np.tan(start + (end - start) * t)) + shift


def if_alphas_cumprod(steps=1000):
    """DeepFloyd IF's schedule, one level at a time."""
    products, product = [], 1.0
    for i in range(steps):
        now, later = (np.cos((u / steps + 0.008) / 1.008 * np.pi / 2) ** 2 for u in (i, i + 1))
        product *= 1 - min(1 - later / now, 0.999)
        products.append(product)
    return np.array(products)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_variance_is_preserved_and_log_snr_matches(schedule):
    t = jnp.linspace(0.0, 1.0, 101)
    alpha, sigma = (np.float64(a) for a in jax.jit(schedule.alpha_sigma)(t))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=3e-7)
    log_snr = np.asarray(jax.jit(schedule.log_snr)(t))
    assert np.all(np.diff(log_snr) < 0)
    np.testing.assert_allclose(2 * np.log(alpha[1:] / sigma[1:]), log_snr[1:], atol=3e-6)
    assert isinstance(schedule, NoiseSchedule)


@pytest.mark.parametrize("shift", [0.0, -1.386])
def test_cosine_float32_agrees_with_float64_up_to_the_ends(shift):
    t = np.float32([0, 1e-6, 1e-4, 0.01, 0.3, 0.5, 0.9, 0.999, 0.9999, 1])
    expected = cosine_log_snr_float64(np.float64(t), shift)
    schedule = CosineSchedule(log_snr_shift=shift)
    # float32's own spacing near 15 is 1e-6; the textbook form in float32 is off by 3e-4 at t = 1.
    np.testing.assert_allclose(jax.jit(schedule.log_snr)(jnp.asarray(t)), expected, atol=4e-6)
    alpha, sigma = jax.jit(schedule.alpha_sigma)(jnp.asarray(t))
    np.testing.assert_allclose(alpha, np.sqrt(1 / (1 + np.exp(-expected))), rtol=3e-6)
    np.testing.assert_allclose(sigma, np.sqrt(1 / (1 + np.exp(expected))), rtol=3e-6)


def test_cosine_reaches_its_bounds_and_centre():
    schedule = CosineSchedule(log_snr_min=-12.0, log_snr_max=9.0, log_snr_shift=0.5)
    np.testing.assert_allclose(jax.jit(schedule.log_snr)(jnp.array([0.0, 1.0])), [9.5, -11.5], rtol=1e-6)
    alpha, sigma = jax.jit(CosineSchedule().alpha_sigma)(jnp.array(0.5))
    np.testing.assert_allclose([alpha, sigma], np.sqrt(0.5), rtol=1e-6)


def test_time_at_log_snr_inverts():
    t = jnp.array([[0.001, 0.25], [0.5, 0.999]])
    for schedule in SCHEDULES:
        np.testing.assert_allclose(jax.jit(schedule.time_at_log_snr)(jax.jit(schedule.log_snr)(t)), t, atol=1e-6)
    assert jax.jit(CosineSchedule().time_at_log_snr)(jnp.array(99.0)) == 0
    np.testing.assert_allclose(jax.jit(DiscreteCosineSchedule().time_at_log_snr)(jnp.array([99.0, -99.0])), [0.001, 1])


def test_discrete_is_deepfloyd_ifs():
    alphas_cumprod = if_alphas_cumprod()
    np.testing.assert_allclose(alphas_cumprod[[0, 999]], [0.99995869, 2.43e-9], rtol=1e-3, atol=1e-12)
    schedule = DiscreteCosineSchedule()
    t = (jnp.arange(1000) + 1) / 1000
    alpha, sigma = jax.jit(schedule.alpha_sigma)(t)
    np.testing.assert_allclose(alpha, np.sqrt(alphas_cumprod), rtol=2e-7)
    np.testing.assert_allclose(sigma, np.sqrt(1 - alphas_cumprod), rtol=2e-7)
    np.testing.assert_array_equal(jax.jit(schedule.network_time)(t), np.arange(1000))


def test_discrete_against_diffusers(fixtures):
    reference = np.load(fixtures / "if_sampling" / "sampling.npz")
    betas, alpha_squared, _ = _discrete_cosine_table(1000)
    np.testing.assert_allclose(betas, reference["betas"], rtol=1e-6)
    # The reference multiplies a thousand float32 factors.
    np.testing.assert_allclose(alpha_squared[1:], reference["alphas_cumprod"], rtol=3e-5)
    np.testing.assert_allclose(alpha_squared[1:900], reference["alphas_cumprod"][:899], rtol=2e-6)


def test_discrete_is_exactly_clean_at_0_and_only_there():
    schedule = DiscreteCosineSchedule()
    alpha, sigma = jax.jit(schedule.alpha_sigma)(jnp.zeros(2))
    np.testing.assert_array_equal(alpha, 1)
    np.testing.assert_array_equal(sigma, 0)
    assert jax.jit(schedule.log_snr)(jnp.array(0.0)) == np.inf
    assert jax.jit(schedule.network_time)(jnp.array(0.0)) == -1
    assert jax.jit(schedule.network_time)(jnp.array(1e-7)) == 0


def test_discrete_rounds_up_to_the_grid():
    schedule = DiscreteCosineSchedule(steps=10)
    t = jnp.array([0.05, 0.1, 0.1001, 0.12, 0.2, 0.95, 1.0])
    np.testing.assert_array_equal(jax.jit(schedule.network_time)(t), [0, 0, 0, 1, 1, 9, 9])
    # so uniform times draw every level equally often
    levels = jax.jit(schedule.network_time)(1.0 - jnp.arange(1000) / 1000)
    np.testing.assert_allclose(np.bincount(np.asarray(levels, int)), 100, atol=1)


def test_shapes_dtypes_and_network_time():
    t = jnp.full((2, 1, 3), 0.25)
    for schedule in SCHEDULES:
        for value in (
            *jax.jit(schedule.alpha_sigma)(t),
            jax.jit(schedule.log_snr)(t),
            jax.jit(schedule.network_time)(t),
        ):
            assert value.shape == t.shape
            assert value.dtype == t.dtype
    np.testing.assert_allclose(jax.jit(CosineSchedule().network_time)(t), 250)
    with jax.enable_x64(True):
        t = jnp.array([0.1, 0.7, 1.0])
        assert t.dtype == jnp.float64
        np.testing.assert_allclose(
            jax.jit(CosineSchedule().log_snr)(t), cosine_log_snr_float64(np.asarray(t)), rtol=1e-11
        )
        alpha, _ = jax.jit(DiscreteCosineSchedule().alpha_sigma)(t)
        np.testing.assert_allclose(alpha, np.sqrt(if_alphas_cumprod()[[99, 699, 999]]), rtol=1e-10)


def test_from_config():
    assert from_config("cosine", log_snr_shift=-2.0) == CosineSchedule(log_snr_shift=-2.0)
    assert from_config("discrete_cosine", steps=10) == DiscreteCosineSchedule(steps=10)
    with pytest.raises(ValueError, match="unknown noise schedule 'linear': use \"cosine\""):
        from_config("linear")
    with pytest.raises(ValueError, match="steps must be between 1 and 10000, got 0"):
        from_config("discrete_cosine", steps=0)
    with pytest.raises(ValueError, match="log_snr_min must be below log_snr_max"):
        from_config("cosine", log_snr_min=3.0, log_snr_max=3.0)
    with pytest.raises(ValueError, match="must be finite"):
        from_config("cosine", log_snr_max=float("inf"))
