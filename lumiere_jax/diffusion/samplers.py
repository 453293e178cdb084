"""DDPM, DDIM and DPM-Solver++(2M): from noise to a clip, along a decreasing grid of times.

A sampler knows only an x0 denoiser `(x_t, t) -> x0` with a scalar t (`prediction.x0_denoiser` makes one); guidance,
windows, conditioning and thresholds are inside it. DDPM with learned variance needs a second number from it, how much
noise to add (`prediction.x0_and_variance_denoiser`). Each step is a linear combination

    x_s = a x_t + b x0(x_t, t) (+ c noise or + c x0 of the step before),    t > s

whose coefficients are computed for all steps beforehand, so the compiled loop holds one call of the denoiser. The last
step, to t = 0, returns the x0 prediction at the last positive time. Sampler and number of steps are not from the paper.

To start from a partly noised clip (SDEdit), pass the tail of a time grid, and as x_T the clip noised at its first time.

DeepFloyd IF samples with "ddpm", spacing "leading" and variance "learned_range"; its pipelines take 100 steps at stage
I and 50 at stage II.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lumiere_jax.diffusion.noise_schedule import NoiseSchedule
from lumiere_jax.diffusion.prediction import Denoiser, VarianceDenoiser

Sampler = Literal["ddim", "ddpm", "dpm_solver_pp_2m"]
Spacing = Literal["uniform", "log_snr", "leading"]
Variance = Literal["posterior", "learned_range"]
Keys = Key[Array, ""] | Key[Array, " batch"]  # one for all clips, or one for each

# Last positive time of the log-SNR grid under a continuous schedule (DPM-Solver's usual choice; not from the paper).
MIN_TIME = 1e-3


def sample(
    denoise_x0: Denoiser | VarianceDenoiser,
    x_T: Float[Array, "batch frames height width channels"],
    *,
    schedule: NoiseSchedule,
    steps: int,
    sampler: str = "ddim",
    key: Keys | None = None,
    eta: float = 0.0,
    spacing: str = "uniform",
    variance: str = "posterior",
) -> Float[Array, "batch frames height width channels"]:
    """Generates clips from noise: the one entry to the samplers. Jit the caller: every call compiles its loop anew.

    Args:
      denoise_x0: `(x_t, t scalar) -> x0`, or with variance "learned_range" `-> (x0, variance fraction)`.
      x_T: standard normal noise, the state at the grid's first time.
      schedule: relates t to alpha and sigma; the denoiser's own.
      steps: number of denoiser calls, at least 1.
      sampler: "ddim", "ddpm" or "dpm_solver_pp_2m".
      key: needed by "ddpm", and by "ddim" with eta > 0. One for all clips; or one for each, whose noise then does not
        depend on what else is in the batch.
      eta: in [0, 1], "ddim" only: 0 is deterministic, 1 is DDPM.
      spacing: of the times, "uniform", "log_snr" or "leading": see `time_grid`.
      variance: "ddpm" only: "posterior", which is fixed, or "learned_range", the network's: see `ddpm_learned_range`.

    Returns:
      clips as the denoiser predicts them (it may threshold), float32 or wider.

    Raises:
      ValueError: if an argument is out of its range, unknown, or missing.
    """
    if eta != 0.0 and sampler != "ddim":
        raise ValueError(f'eta={eta} has a meaning only for sampler="ddim", not for {sampler!r}')
    if variance not in get_args(Variance):
        raise ValueError(f"unknown variance {variance!r}: use one of {get_args(Variance)}")
    times = time_grid(steps, schedule, spacing)
    match sampler, variance:
        case "ddim", "posterior":
            return ddim(denoise_x0, x_T, key, schedule, times, eta)
        case "ddpm", "posterior":
            return ddpm(denoise_x0, x_T, key, schedule, times)
        case "ddpm", "learned_range":
            return ddpm_learned_range(denoise_x0, x_T, key, schedule, times)
        case "dpm_solver_pp_2m", "posterior":
            return dpm_solver_pp_2m(denoise_x0, x_T, schedule, times)
        case "ddim" | "dpm_solver_pp_2m", _:
            raise ValueError(f'variance={variance!r} has a meaning only for sampler="ddpm", not for {sampler!r}')
        case _:
            raise ValueError(f"unknown sampler {sampler!r}: use one of {get_args(Sampler)}")


def time_grid(steps: int, schedule: NoiseSchedule, spacing: str = "uniform") -> Float[np.ndarray, " {steps+1}"]:
    """Times from 1 (but "leading": somewhat below) down to 0, strictly decreasing, on a discrete schedule's grid.

    "uniform" spaces all of them evenly in t. "log_snr" spaces the positive ones evenly in log-SNR, from t = 1 to the
    first noise level of a discrete schedule or to MIN_TIME of a continuous one; where that asks a discrete schedule for
    one level twice, as it does among IF's noisiest, the next free level is taken. "leading" is DeepFloyd IF's spacing
    of a discrete schedule: the levels 0, k, 2k, ... with k = levels // steps, so 100 of 1000 begin at level 990, where
    the clip is taken to be noise alone.

    Raises:
      ValueError: if steps < 1 or exceeds the schedule's noise levels, if spacing is unknown, or if it is "leading"
        and the schedule continuous.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if schedule.levels is not None and steps > schedule.levels:
        raise ValueError(f"steps={steps} exceeds the schedule's {schedule.levels} noise levels")
    match spacing:
        case "uniform":
            times = np.linspace(1.0, 0.0, steps + 1)[:-1]
        case "log_snr":
            times = _times_even_in_log_snr(steps, schedule)
        case "leading" if schedule.levels is None:
            raise ValueError('spacing "leading" counts the levels of a discrete schedule; this one is continuous')
        case "leading":
            times = (schedule.levels // steps * np.arange(steps)[::-1] + 1) / schedule.levels
        case _:
            raise ValueError(f"unknown spacing {spacing!r}: use one of {get_args(Spacing)}")
    if schedule.levels is not None:
        times = _distinct_levels(times, schedule.levels) / schedule.levels
    return np.append(times, 0.0)


def _times_even_in_log_snr(steps: int, schedule: NoiseSchedule) -> np.ndarray:
    last = MIN_TIME if schedule.levels is None else 1.0 / schedule.levels
    with jax.ensure_compile_time_eval():  # the grid is a constant, also inside the caller's jit
        first_log_snr, last_log_snr = schedule.log_snr(jnp.array([1.0, last]))
        times = schedule.time_at_log_snr(jnp.linspace(first_log_snr, last_log_snr, steps))
    times = np.array(times, np.float64)
    times[-1], times[0] = last, 1.0  # exactly; a single step starts at 1
    return times


def _distinct_levels(times: np.ndarray, levels: int) -> np.ndarray:
    """The levels 1 .. `levels` nearest to decreasing times, moved apart where two would coincide."""
    order = np.arange(len(times))
    level = np.clip(np.rint(times * levels), 1, levels).astype(int)
    level = np.minimum.accumulate(level + order) - order  # each at least 1 below the one before
    return np.maximum(level, len(times) - order)  # and enough left for those behind


def ddpm(
    denoise_x0: Denoiser,
    x_T: Float[Array, "*shape"],
    key: Keys | None,
    schedule: NoiseSchedule,
    times: Float[np.ndarray, " times"],
) -> Float[Array, "*shape"]:
    """Ancestral sampling with the posterior variance of q(x_s | x_t, x0) (Ho et al. 2020, eq. 6-7): DDIM with eta = 1.

    Arguments and errors as for `ddim`.
    """
    return ddim(denoise_x0, x_T, key, schedule, times, eta=1.0)


def ddpm_learned_range(
    denoise: VarianceDenoiser,
    x_T: Float[Array, "*shape"],
    key: Keys | None,
    schedule: NoiseSchedule,
    times: Float[np.ndarray, " times"],
) -> Float[Array, "*shape"]:
    """Ancestral sampling with the variance that the network asks for (Nichol & Dhariwal 2021, eq. 15; DeepFloyd IF).

    Args:
      denoise: `(x_t, t scalar) -> (x0, variance fraction)`, such as `prediction.x0_and_variance_denoiser`.
      x_T, key, schedule, times: as for `ddim`. Between two times of the grid, beta is 1 - alpha_t^2 / alpha_s^2.

    Raises:
      ValueError: if times is out of range, or if key is None.
    """
    _check_times(times)
    _check_key(key)

    def step(x, inputs):
        index, t, coefficients = inputs
        x0, fraction = denoise(x, t)
        noise = _step_noise(key, index, x)
        return learned_range_step(x, x0.astype(x.dtype), fraction.astype(x.dtype), noise, coefficients), None

    x = x_T.astype(jnp.promote_types(x_T.dtype, jnp.float32))
    coefficients = tuple(a.astype(x.dtype) for a in learned_range_coefficients(schedule, times))
    return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), jnp.asarray(times[:-1]), coefficients))[0]


def learned_range_step(
    x_t: Float[Array, "*shape"],
    x0: Float[Array, "*shape"],
    fraction: Float[Array, "*shape"],
    noise: Float[Array, "*shape"],
    coefficients: tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""]],
) -> Float[Array, "*shape"]:
    """One step of `ddpm_learned_range`, x_s = a x_t + b x0 + c e^(d fraction) noise, with (a, b, c, d) of this step.

    The standard deviation c e^(d fraction) runs from the posterior's, fraction 0, to sqrt(beta), fraction 1, evenly in
    the logarithm.
    """
    a, b, c, d = coefficients
    return a * x_t + b * x0 + c * jnp.exp(d * fraction) * noise


def learned_range_coefficients(
    schedule: NoiseSchedule, times: Float[np.ndarray, " times"]
) -> tuple[Float[Array, " steps"], Float[Array, " steps"], Float[Array, " steps"], Float[Array, " steps"]]:
    """(a, b, c, d) of each `learned_range_step`; the last step, to t = 0, is x0 without noise.

    The posterior's variance is beta sigma_s^2 / sigma_t^2 (Ho et al. 2020, eq. 7): d = log(sigma_t / sigma_s) leads
    from its root to that of beta.
    """
    _, sigma = schedule.alpha_sigma(jnp.asarray(times[:-1]))
    return *ddim_coefficients(schedule, times, eta=1.0), jnp.append(-jnp.diff(jnp.log(sigma)), 0.0)


def ddim(
    denoise_x0: Denoiser,
    x_T: Float[Array, "*shape"],
    key: Keys | None,
    schedule: NoiseSchedule,
    times: Float[np.ndarray, " times"],
    eta: float = 0.0,
) -> Float[Array, "*shape"]:
    """DDIM (Song et al. 2021, eq. 12).

    Args:
      denoise_x0: `(x_t, t scalar) -> x0`.
      x_T: the state at times[0].
      key: step k's noise comes from `fold_in(key, k)`, of all clips or of each; unused, and may be None, if eta = 0.
      schedule: relates t to alpha and sigma.
      times: strictly decreasing from at most 1 to exactly 0, such as `time_grid`.
      eta: in [0, 1]: 0 is deterministic, 1 is DDPM.

    Raises:
      ValueError: if times or eta is out of range, or if eta > 0 and key is None.
    """
    _check_times(times)
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if eta > 0.0:
        _check_key(key)

    def step(x, inputs):
        index, t, a, b, c = inputs
        x_next = a * x + b * denoise_x0(x, t).astype(x.dtype)
        if eta > 0.0:
            x_next += c * _step_noise(key, index, x)
        return x_next, None

    x = x_T.astype(jnp.promote_types(x_T.dtype, jnp.float32))
    coefficients = (a.astype(x.dtype) for a in ddim_coefficients(schedule, times, eta))
    return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), jnp.asarray(times[:-1]), *coefficients))[0]


def ddim_coefficients(
    schedule: NoiseSchedule, times: Float[np.ndarray, " times"], eta: float
) -> tuple[Float[Array, " steps"], Float[Array, " steps"], Float[Array, " steps"]]:
    """(a, b, c) of each step x_s = a x_t + b x0 + c noise.

    With d = log_snr(t) - log_snr(s) < 0 the variance of q(x_s | x_t, x0) is sigma_s^2 (1 - e^d) (Kingma et al. 2021,
    eq. 33), and c^2 is eta^2 times it. What remains of sigma_s^2 is the predicted noise's share.
    """
    t = jnp.asarray(times[:-1])
    alpha, sigma = schedule.alpha_sigma(t)
    d = -jnp.diff(schedule.log_snr(t))
    # log of sqrt(1 - c^2 / sigma_s^2); expm1 and log1p because d is small when there are many steps
    log_share = 0.5 * jnp.log1p(eta**2 * jnp.expm1(d))
    a = sigma[1:] / sigma[:-1] * jnp.exp(log_share)
    b = -alpha[1:] * jnp.expm1(0.5 * d + log_share)
    c = eta * sigma[1:] * jnp.sqrt(-jnp.expm1(d))
    return jnp.append(a, 0.0), jnp.append(b, 1.0), jnp.append(c, 0.0)


def dpm_solver_pp_2m(
    denoise_x0: Denoiser,
    x_T: Float[Array, "*shape"],
    schedule: NoiseSchedule,
    times: Float[np.ndarray, " times"],
) -> Float[Array, "*shape"]:
    """DPM-Solver++(2M), second order, deterministic (Lu et al. 2022, algorithm 2).

    The first step, without history, and the last, to t = 0, are of first order.

    Arguments and errors as for `ddim`.
    """
    _check_times(times)

    def step(carry, inputs):
        x, previous_x0 = carry
        t, a, b, c = inputs
        x0 = denoise_x0(x, t).astype(x.dtype)
        return (a * x + b * x0 + c * previous_x0, x0), None

    x = x_T.astype(jnp.promote_types(x_T.dtype, jnp.float32))
    coefficients = (a.astype(x.dtype) for a in _dpm_solver_coefficients(schedule, times))
    (x, _), _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), (jnp.asarray(times[:-1]), *coefficients))
    return x


def _dpm_solver_coefficients(schedule: NoiseSchedule, times: np.ndarray) -> tuple[Array, Array, Array]:
    """(a, b, c) of each step x_s = a x_t + b x0 + c previous_x0.

    With lambda = log(alpha / sigma), half the log-SNR, h = lambda_s - lambda_t and r = h_previous / h:
    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) ((1 + 1 / 2r) x0 - 1 / 2r previous_x0).
    """
    t = jnp.asarray(times[:-1])
    alpha, sigma = schedule.alpha_sigma(t)
    h = 0.5 * jnp.diff(schedule.log_snr(t))
    gain = -alpha[1:] * jnp.expm1(-h)
    extrapolation = jnp.zeros_like(h).at[1:].set(0.5 * h[1:] / h[:-1])  # 1 / 2r; the first step has no history
    a, b, c = sigma[1:] / sigma[:-1], gain * (1.0 + extrapolation), -gain * extrapolation
    return jnp.append(a, 0.0), jnp.append(b, 1.0), jnp.append(c, 0.0)


def _step_noise(key: Keys, index: Array, x: Array) -> Array:
    if key.ndim == 0:
        return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
    return jax.vmap(lambda clip_key, clip: _step_noise(clip_key, index, clip))(key, x)


def _check_key(key: Keys | None) -> None:
    if key is None:
        raise ValueError("a stochastic sampler (ddpm, or ddim with eta > 0) needs a random key: pass key=")


def _check_times(times: np.ndarray) -> None:
    if len(times) < 2 or times[0] > 1.0 or times[-1] != 0.0 or not np.all(np.diff(times) < 0.0):
        raise ValueError(f"times must fall strictly from at most 1 to exactly 0, as time_grid's do; got {times}")
