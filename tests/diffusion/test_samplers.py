"""The samplers on Gaussian data, where the best denoiser and the exact solutions are known in closed form."""

import functools
import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.sampler_convergence import mixture_x0
from lumiere_jax.diffusion.noise_schedule import CosineSchedule, DiscreteCosineSchedule
from lumiere_jax.diffusion.samplers import (
    MIN_TIME,
    Sampler,
    advance,
    ddim_coefficients,
    follow,
    follow_and_watch,
    plan,
    resampled,
    sample,
    time_grid,
)

MEAN, STD = 0.4, 0.3  # of every element of the data
SCHEDULES = [CosineSchedule(), DiscreteCosineSchedule()]


def gaussian_x0(x_t, alpha, sigma):
    """E[x0 | x_t] for x0 ~ N(MEAN, STD^2)."""
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * MEAN)


def gaussian_denoiser(schedule):
    return lambda x_t, t: gaussian_x0(x_t, *schedule.alpha_sigma(t))


@functools.partial(jax.jit, static_argnums=0)
def alpha_sigma(schedule, times):
    """One program for all times: eagerly every operation would be compiled by itself."""
    return schedule.alpha_sigma(jnp.asarray(times))


def exact_final_x0(x, schedule, times):
    """What a sampler without discretisation error returns: the x0 prediction at the last positive time.

    The probability flow ODE maps one marginal, N(alpha m, alpha^2 s^2 + sigma^2), affinely onto the other.
    """
    alpha, sigma = np.float64(alpha_sigma(schedule, times))
    spread = np.sqrt(alpha**2 * STD**2 + sigma**2)
    x_last = alpha[-2] * MEAN + spread[-2] / spread[0] * (np.asarray(x) - alpha[0] * MEAN)
    return gaussian_x0(x_last, alpha[-2], sigma[-2])


ORDERS = {"ddim": 1, "dpm_solver_pp_2m": 2, "heun": 2}


def solve(name, x, schedule, times):
    return jax.jit(lambda x: follow(plan(name, schedule, times), gaussian_denoiser(schedule), x))(x)


def converging_grid(steps, schedule, spacing):
    """A grid that ends at the same last positive time whatever the number of steps."""
    if spacing == "time":
        return np.append(np.linspace(1.0, 0.05, steps), 0.0)
    return time_grid(steps, schedule, "log_snr")


@pytest.mark.parametrize("spacing", ["time", "log_snr"])
@pytest.mark.parametrize("name", ORDERS)
def test_error_falls_at_the_solvers_order(name, spacing):
    # The range of log-SNR is gentler than the default's, so that few steps are already in the asymptotic regime.
    schedule = CosineSchedule(log_snr_min=-8.0, log_snr_max=8.0)
    errors = []
    with jax.enable_x64(True):
        x = jnp.linspace(-2.0, 2.0, 9)
        for steps in (40, 80, 160):
            times = converging_grid(steps, schedule, spacing)
            result = solve(name, x, schedule, times)
            assert result.dtype == jnp.float64
            errors.append(np.abs(result - exact_final_x0(x, schedule, times)).max())
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, ORDERS[name], atol=0.25)
    assert errors[-1] < {1: 1e-2, 2: 3e-4}[ORDERS[name]]


@pytest.mark.parametrize("name", ORDERS)
def test_order_on_a_mixture(name):
    """Where the flow is not linear: against ten times as many steps."""
    schedule = CosineSchedule(log_snr_min=-8.0, log_snr_max=8.0)

    def solved(name, steps):
        times = converging_grid(steps, schedule, "log_snr")
        steps = plan(name, schedule, times)

        def denoise(x_t, t):
            return mixture_x0(x_t, *schedule.alpha_sigma(t), (-0.6, 0.5), 0.2)

        return np.asarray(jax.jit(lambda x: follow(steps, denoise, x))(x))

    with jax.enable_x64(True):
        x = jnp.linspace(-2.0, 2.0, 9)
        exact = solved("heun", 3200)
        errors = [np.abs(solved(name, steps) - exact).max() for steps in (80, 160, 320)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, ORDERS[name], atol=0.25)


def test_heun_is_algorithm_1_on_uneven_steps():
    """Karras et al. 2022, algorithm 1, step by step, on u = x / alpha with noise s = sigma / alpha."""
    schedule = CosineSchedule()
    times = np.array([0.9, 0.6, 0.55, 0.2, 0.15, 0.02, 0.0])
    with jax.enable_x64(True):
        x = np.linspace(-2.0, 2.0, 9)
        result = solve("heun", x, schedule, times)
        alpha, sigma = np.asarray(alpha_sigma(schedule, times[:-1]))
    s = sigma / alpha
    u = x / alpha[0]
    for i in range(len(s) - 1):
        slope = (u - gaussian_x0(u * alpha[i], alpha[i], sigma[i])) / s[i]
        euler = u + (s[i + 1] - s[i]) * slope
        there = (euler - gaussian_x0(euler * alpha[i + 1], alpha[i + 1], sigma[i + 1])) / s[i + 1]
        u = u + (s[i + 1] - s[i]) * 0.5 * (slope + there)
    np.testing.assert_allclose(result, gaussian_x0(u * alpha[-1], alpha[-1], sigma[-1]), rtol=1e-9)


def moments(steps, schedule):
    """Mean and variance of what a plan makes of noise: the denoiser is linear, so they can be followed exactly."""
    mean, covariance = np.zeros(2), np.diag([1.0, 0.0])  # of the state, and of the x0 prediction of the call before
    for t, a, b, noise, previous in zip(*(np.float64(c) for c in (steps[:4] + steps[5:])), strict=True):
        alpha, sigma = np.float64(alpha_sigma(schedule, np.float64(t)))
        gain, offset = gaussian_x0(1.0, alpha, sigma) - gaussian_x0(0.0, alpha, sigma), gaussian_x0(0.0, alpha, sigma)
        step = np.array([[a + b * gain, previous], [gain, 0.0]])
        mean = step @ mean + offset * np.array([b, 1.0])
        covariance = step @ covariance @ step.T + np.diag([noise**2, 0.0])
    return mean[0], covariance[0, 0]


def test_sde_solver_has_the_right_moments():
    """Its mean and variance approach the exact ones, and what it samples has them."""
    schedule = CosineSchedule(log_snr_min=-8.0, log_snr_max=8.0)
    errors = []
    with jax.enable_x64(True):
        for count in (40, 80, 160):
            times = converging_grid(count, schedule, "time")
            alpha, sigma = np.float64(alpha_sigma(schedule, times[-2]))
            gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
            exact = MEAN, gain * alpha * STD**2  # of the x0 prediction at the last positive time
            errors.append(np.abs(np.subtract(moments(plan("dpm_solver_pp_2m_sde", schedule, times), schedule), exact)))
    mean, variance = np.transpose(errors)
    assert np.all(mean < 2e-5)  # the little signal that is left at the first time, which noise has not
    np.testing.assert_allclose(np.log2(variance[:-1] / variance[1:]), 2, atol=0.25)
    assert variance[-1] < 2e-4

    size, times = 20_000, time_grid(12, schedule)
    steps = jax.jit(lambda: plan("dpm_solver_pp_2m_sde", schedule, times))()
    mean, variance = moments(steps, schedule)
    run = jax.jit(lambda x: follow(steps, gaussian_denoiser(schedule), x, jax.random.key(1)))
    result = run(jax.random.normal(jax.random.key(0), (size,)))
    np.testing.assert_allclose(result.mean(), mean, atol=5 * np.sqrt(variance / size))
    np.testing.assert_allclose(result.var(), variance, atol=5 * variance * np.sqrt(2 / size))


def test_sde_solver_keeps_the_variance():
    """Known x0 = 0: then x_t ~ N(0, sigma_t^2), and the noise that is added replaces what is taken away."""
    schedule = CosineSchedule()
    times = time_grid(8, schedule)
    sigma = np.asarray(alpha_sigma(schedule, times)[1])
    steps = jax.jit(lambda: plan("dpm_solver_pp_2m_sde", schedule, times))()
    np.testing.assert_allclose((steps.x * sigma[:-1])[:-1] ** 2 + steps.noise[:-1] ** 2, sigma[1:-1] ** 2, rtol=1e-4)


def test_watched_predictions():
    schedule = CosineSchedule()
    x = jnp.linspace(-2.0, 2.0, 12).reshape(1, 1, 2, 2, 3)
    steps = plan("heun", schedule, time_grid(3, schedule, "karras"))
    denoise = gaussian_denoiser(schedule)
    result, watched = jax.jit(lambda x: follow_and_watch(steps, denoise, x, watch=lambda x0: x0[:, 0]))(x)
    assert watched.shape == (5, 1, 2, 2, 3)
    np.testing.assert_allclose(watched[0], jax.jit(denoise)(x, steps.t[0])[:, 0], rtol=1e-6)
    np.testing.assert_allclose(watched[-1], result[:, 0], rtol=1e-6)


def test_dpm_solver_is_algorithm_2_on_uneven_steps():
    """Lu et al. 2022, algorithm 2, step by step. The order alone would not show an inverted ratio of steps: its errors
    telescope."""
    schedule = CosineSchedule()
    times = np.array([1.0, 0.9, 0.6, 0.55, 0.2, 0.15, 0.02, 0.0])
    with jax.enable_x64(True):
        x = expected = np.linspace(-2.0, 2.0, 9)
        result = solve("dpm_solver_pp_2m", x, schedule, times)
        alpha, sigma = np.asarray(alpha_sigma(schedule, times))
    half_log_snr = np.log(alpha / sigma)
    history = []
    for i in range(1, len(times)):
        history.append(gaussian_x0(expected, alpha[i - 1], sigma[i - 1]))
        if i == len(times) - 1:
            break
        h = half_log_snr[i] - half_log_snr[i - 1]
        d = history[-1]
        if i >= 2:
            r = (half_log_snr[i - 1] - half_log_snr[i - 2]) / h
            d = (1 + 1 / (2 * r)) * history[-1] - 1 / (2 * r) * history[-2]
        expected = sigma[i] / sigma[i - 1] * expected - alpha[i] * (np.exp(-h) - 1) * d
    np.testing.assert_allclose(result, history[-1], rtol=1e-9)


@pytest.mark.parametrize("name", ORDERS)
def test_many_float32_steps_on_ifs_schedule_reach_the_exact_solution(name):
    schedule = DiscreteCosineSchedule()
    x = jnp.linspace(-2.0, 2.0, 9)
    times = time_grid(1000, schedule)
    result = solve(name, x, schedule, times)
    tolerance = {1: 5e-3, 2: 5e-4}[ORDERS[name]]
    np.testing.assert_allclose(result, exact_final_x0(x, schedule, times), atol=tolerance)


def ddpm_moments(schedule, times):
    """Mean and variance of textbook DDPM on Gaussian data, by recursion in float64 (Ho et al. 2020, eq. 7)."""
    mean, variance = 0.0, 1.0
    coefficients = zip(*np.float64(alpha_sigma(schedule, times[:-1])), strict=True)
    for (alpha_t, sigma_t), (alpha_s, sigma_s) in itertools.pairwise(coefficients):
        beta = 1 - alpha_t**2 / alpha_s**2
        from_x0 = alpha_s * beta / sigma_t**2
        from_x = alpha_t / alpha_s * sigma_s**2 / sigma_t**2
        gain = alpha_t * STD**2 / (alpha_t**2 * STD**2 + sigma_t**2)
        mean = from_x * mean + from_x0 * gaussian_x0(mean, alpha_t, sigma_t)
        variance = (from_x + from_x0 * gain) ** 2 * variance + beta * sigma_s**2 / sigma_t**2
    gain = alpha_s * STD**2 / (alpha_s**2 * STD**2 + sigma_s**2)
    return gaussian_x0(mean, alpha_s, sigma_s), gain**2 * variance


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [4, 250])
def test_ddpm_has_the_right_moments(schedule, steps):
    size = 20_000
    noise_key, key = jax.random.split(jax.random.key(0))
    times = time_grid(steps, schedule)
    run = jax.jit(lambda x: follow(plan("ddpm", schedule, times), gaussian_denoiser(schedule), x, key))
    result = run(jax.random.normal(noise_key, (size,)))
    mean, variance = ddpm_moments(schedule, times)
    tolerances = 5 * np.sqrt(variance / size), 5 * variance * np.sqrt(2 / size)  # 5 standard errors
    np.testing.assert_allclose(result.mean(), mean, atol=tolerances[0])
    np.testing.assert_allclose(result.var(), variance, atol=tolerances[1])
    # Many steps approach the data's own moments; the posterior variance is known to leave the samples' too small.
    error = np.abs(np.divide([mean, variance], [MEAN, STD**2]) - 1).max()
    assert error < 0.06 if steps == 250 else error > 0.3


def test_ddim_with_eta_keeps_the_variance():
    """Known x0 = 0: then x_t ~ N(0, sigma_t^2), and every eta must lead to N(0, sigma_s^2)."""
    schedule = CosineSchedule()
    times = time_grid(8, schedule)
    sigma = np.asarray(alpha_sigma(schedule, times)[1])
    for eta in (0.0, 0.3, 1.0):
        a, _, c = jax.jit(lambda eta=eta: ddim_coefficients(schedule, times, eta))()
        np.testing.assert_allclose((a * sigma[:-1])[:-1] ** 2 + c[:-1] ** 2, sigma[1:-1] ** 2, rtol=1e-4)


def test_noise_of_each_step_is_fresh_and_reproducible():
    schedule = CosineSchedule()
    states = []

    def recording(x, t):
        jax.debug.callback(lambda x: states.append(np.asarray(x)), x, ordered=True)
        return jnp.zeros_like(x)

    x_T, key = jnp.zeros((1, 2, 8, 8, 3)), jax.random.key(5)
    result = jax.jit(lambda x: sample(recording, x, schedule=schedule, steps=3, sampler="ddpm", key=key))(x_T)
    jax.effects_barrier()
    a, _, c = jax.jit(lambda: ddim_coefficients(schedule, time_grid(3, schedule), 1.0))()
    noise = [np.asarray(jax.random.normal(jax.random.fold_in(key, k), x_T.shape)) for k in (0, 1)]
    np.testing.assert_allclose(states[1], c[0] * noise[0], rtol=1e-5)
    np.testing.assert_allclose(states[2], a[1] * c[0] * noise[0] + c[1] * noise[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result, 0)  # the last step is the x0 prediction, without noise


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver_pp_2m", "dpm_solver_pp_2m_sde"])
def test_sample_is_finite_compiles_and_calls_once_per_step(schedule, sampler):
    times, calls = [], 0

    def denoise(x, t):
        nonlocal calls
        calls += 1
        assert t.shape == ()
        jax.debug.callback(lambda t: times.append(float(t)), t, ordered=True)
        return gaussian_x0(x, *schedule.alpha_sigma(t))

    @jax.jit
    def run(x, key):
        return sample(denoise, x, schedule=schedule, steps=7, sampler=sampler, key=key, spacing="log_snr")

    result = run(jax.random.normal(jax.random.key(1), (2, 1, 4, 4, 3)).astype(jnp.bfloat16), jax.random.key(0))
    jax.effects_barrier()
    assert result.dtype == jnp.float32
    assert np.all(np.isfinite(result))
    np.testing.assert_allclose(times, time_grid(7, schedule, "log_snr")[:-1], rtol=1e-6)
    assert calls <= 2  # traced, not unrolled


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_one_step_is_the_prediction(sampler):
    schedule, key = DiscreteCosineSchedule(), jax.random.key(0)
    x = jnp.linspace(-2.0, 2.0, 12).reshape(1, 1, 2, 2, 3)
    denoise = gaussian_denoiser(schedule)
    result = jax.jit(lambda x: sample(denoise, x, schedule=schedule, steps=1, sampler=sampler, key=key))(x)
    np.testing.assert_allclose(result, jax.jit(denoise)(x, jnp.array(1.0)), rtol=1e-6)


def test_tail_of_the_grid_starts_from_a_noised_clip():
    """SDEdit: the exact flow from the middle of the grid."""
    schedule = CosineSchedule()
    x = jnp.linspace(-1.0, 1.0, 5)
    times = time_grid(200, schedule, "log_snr")[100:]
    assert 0.6 < times[0] < 0.8
    result = solve("dpm_solver_pp_2m", x, schedule, times)
    np.testing.assert_allclose(result, exact_final_x0(x, schedule, times), atol=2e-4)


def test_time_grid():
    np.testing.assert_allclose(time_grid(4, CosineSchedule()), [1, 0.75, 0.5, 0.25, 0])
    schedule = CosineSchedule()
    times = time_grid(6, schedule, "log_snr")
    assert (times[0], times[-2], times[-1]) == (1, MIN_TIME, 0)
    gaps = np.diff(jax.jit(schedule.log_snr)(jnp.asarray(times[:-1])))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_karras_times(schedule):
    times = time_grid(5, schedule, "karras")
    alpha, sigma = np.asarray(alpha_sigma(schedule, times[:-1]))
    first, last = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = np.array([(first + i / 4 * (last - first)) ** 7 for i in range(5)])
    # IF's levels are 1000, the last one of .0064; a level at the noisy end is half a thousandth wide.
    rtol = 1e-3 if schedule.levels is None else 0.2
    np.testing.assert_allclose((sigma / alpha)[:4], expected[:4], rtol=rtol)
    assert times[4] == pytest.approx(MIN_TIME)  # .002 lies a little behind it; for IF it is the last level
    assert times[-1] == 0
    np.testing.assert_allclose(time_grid(1, schedule, "karras")[0], times[0], rtol=1e-6)


@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("steps", [1, 16, 1000])
def test_time_grid_keeps_to_distinct_levels(spacing, steps):
    schedule = DiscreteCosineSchedule()
    times = time_grid(steps, schedule, spacing)
    assert times.shape == (steps + 1,)
    assert (times[0], times[-1]) == (1, 0)
    levels = times[:-1] * 1000 - 1
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-9)
    np.testing.assert_array_equal(jax.jit(schedule.network_time)(jnp.asarray(times[:-1])), np.rint(levels))
    assert np.all(np.diff(np.rint(levels)) <= -1)
    assert levels[-1] >= 0


def test_errors():
    x = jnp.zeros((1, 1, 2, 2, 3))
    run = functools.partial(sample, lambda x, t: x, x, schedule=CosineSchedule())
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        run(steps=0)
    with pytest.raises(ValueError, match="unknown sampler 'euler': use"):
        run(steps=2, sampler="euler")
    with pytest.raises(ValueError, match="unknown spacing 'cosine'"):
        run(steps=2, spacing="cosine")
    for stochastic in ({"sampler": "ddpm"}, {"sampler": "dpm_solver_pp_2m_sde"}, {"sampler": "ddim", "eta": 0.5}):
        with pytest.raises(ValueError, match="needs a random key"):
            run(steps=2, **stochastic)
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got 1\.5"):
        run(steps=2, eta=1.5, key=jax.random.key(0))
    with pytest.raises(ValueError, match='only for sampler="ddim"'):
        run(steps=2, sampler="dpm_solver_pp_2m", eta=0.5)
    with pytest.raises(ValueError, match="steps=1001 exceeds the schedule's 1000 noise levels"):
        sample(lambda x, t: x, x, schedule=DiscreteCosineSchedule(), steps=1001)
    for times in ([1.0], [1.0, 0.5], [0.5, 0.7, 0.0], [1.5, 0.0], [1.0, 0.5, 0.5, 0.0]):
        with pytest.raises(ValueError, match="times must fall strictly"):
            plan("dpm_solver_pp_2m", CosineSchedule(), np.array(times))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_steps_that_are_taken_again_start_from_the_same_marginal(sampler):
    """Where x0 is known, the state has alpha x0 and sigma at the time of each call, and ends as x0."""
    schedule = CosineSchedule()
    times = time_grid(5, schedule)
    steps = resampled(plan(sampler, schedule, times), schedule, times, 3)
    np.testing.assert_allclose(steps.t, [*np.repeat(times[:-2], 3), times[-2]], atol=1e-7)
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.standard_normal(200_000, np.float32))
    for index in range(steps.calls):
        step = steps.step(index)
        alpha, sigma = schedule.alpha_sigma(step.t)
        left = x - float(alpha) * MEAN
        np.testing.assert_allclose([left.mean(), left.std()], [0, sigma], atol=0.01)
        x = advance(step, x, jnp.full_like(x, MEAN), noise=jnp.asarray(draw.standard_normal(len(x), np.float32)))
    np.testing.assert_allclose(x, MEAN, atol=1e-6)


def test_taken_again_is_there_and_back():
    """A step of DDIM, and from where it ended q(x_t | x_s)."""
    schedule = CosineSchedule()
    times = np.array([0.8, 0.5, 0.2, 0.0])
    steps, once = resampled(plan("ddim", schedule, times), schedule, times, 2), plan("ddim", schedule, times)
    assert resampled(once, schedule, times, 1) is once
    x, x0 = 0.7, -0.3
    (alpha_t, alpha_s), (sigma_t, sigma_s) = np.float64(alpha_sigma(schedule, times[:2]))
    there = float(advance(once.step(0), jnp.float32(x), jnp.float32(x0)))
    variance = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    for noise in (0.0, 1.0):
        expected = alpha_t / alpha_s * there + np.sqrt(variance) * noise
        found = advance(steps.step(0), jnp.float32(x), jnp.float32(x0), noise=jnp.float32(noise))
        assert float(found) == pytest.approx(expected, abs=1e-6)
    assert float(advance(steps.step(1), jnp.float32(x), jnp.float32(x0), noise=jnp.float32(9.0))) == there


def test_steps_that_cannot_be_taken_again():
    schedule = CosineSchedule()
    times = time_grid(4, schedule)
    for sampler in ("dpm_solver_pp_2m", "heun", "dpm_solver_pp_2m_sde"):
        with pytest.raises(ValueError, match="resample=2: steps that remember the one before"):
            resampled(plan(sampler, schedule, times), schedule, times, 2)
    learned = plan("ddpm", schedule, times, variance="learned_range")
    with pytest.raises(ValueError, match=r"resample=2: .* or have a learned variance"):
        resampled(learned, schedule, times, 2)
    with pytest.raises(ValueError, match="resample=0: take each step at least once"):
        resampled(learned, schedule, times, 0)
