"""DDPM, DDIM, DPM-Solver++(2M) with and without noise, and Heun: from noise to a clip, along a falling grid of times.

A sampler knows only an x0 denoiser `(x_t, t) -> x0` with a scalar t (`prediction.x0_denoiser` makes one); guidance,
windows, conditioning and thresholds are inside it. DDPM with learned variance needs a second number from it, how much
noise to add (`prediction.x0_and_variance_denoiser`). Each step is a linear combination

    x_s = a x_t + b x0(x_t, t) (+ c noise) (+ d x0 of the call before),    t > s

whose coefficients, a sampler's `Plan`, are computed for all steps beforehand, so the compiled loop holds one call of
the denoiser. Heun's method calls it twice a step: its second call is a row of the plan, too. `advance` takes the step
pixel by pixel: of a clip that is larger than a device's memory it is taken frame by frame (`streaming.py`). The last
step, to t = 0, returns the x0 prediction at the last positive time. Sampler and number of steps are not from the paper.

To start from a partly noised clip (SDEdit), plan along the `tail` of a time grid, and follow the plan from the clip
noised at its first time.

DeepFloyd IF samples with "ddpm", spacing "leading" and variance "learned_range"; its pipelines take 100 steps at stage
I and 50 at stage II.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lumiere_jax.diffusion.noise_schedule import NoiseSchedule
from lumiere_jax.diffusion.prediction import Denoiser, VarianceDenoiser

Sampler = Literal["ddim", "ddpm", "dpm_solver_pp_2m", "dpm_solver_pp_2m_sde", "heun"]
Spacing = Literal["uniform", "log_snr", "karras", "leading"]
Variance = Literal["posterior", "learned_range"]
Keys = Key[Array, ""] | Key[Array, " batch"]  # one for all clips, or one for each

# Last positive time of the log-SNR grid under a continuous schedule (DPM-Solver's usual choice; not from the paper).
MIN_TIME = 1e-3
# Of the Karras grid (Karras et al. 2022, table 1): sigma / alpha at its ends, and the exponent.
_KARRAS_RANGE, _KARRAS_RHO = (80.0, 0.002), 7.0


class Plan(NamedTuple):
    """The calls of a sampler's denoiser: of each the time, and the coefficients of `advance`.

    One of the last three is None where the sampler has no use for it: it then needs no noise, no prediction of the call
    before, or no learned variance.
    """

    t: Float[Array, " calls"]
    x: Float[Array, " calls"]
    x0: Float[Array, " calls"]
    noise: Float[Array, " calls"] | None = None
    spread: Float[Array, " calls"] | None = None  # of the learned variance: noise is scaled by e^(spread fraction)
    previous: Float[Array, " calls"] | None = None  # of the x0 prediction of the call before

    @property
    def calls(self) -> int:
        """How often the denoiser is called: once a step, with "heun" once less than twice."""
        return len(self.t)

    def step(self, index: int | Array) -> "Plan":
        """One step of it: all fields without their axis."""
        return jax.tree.map(lambda coefficients: coefficients[index], self)


def plan(
    sampler: str,
    schedule: NoiseSchedule,
    times: Float[np.ndarray, " times"],
    *,
    eta: float = 0.0,
    variance: str = "posterior",
) -> Plan:
    """The steps of a sampler along a grid of times.

    Args:
      sampler: "ddim" (Song et al. 2021, eq. 12); "ddpm", ancestral sampling with the posterior variance of
        q(x_s | x_t, x0) (Ho et al. 2020, eq. 6-7), which is "ddim" with eta = 1; "dpm_solver_pp_2m", second order and
        deterministic (Lu et al. 2022, algorithm 2) but for its first step, without history, and the last, to 0;
        "dpm_solver_pp_2m_sde", the same for the diffusion SDE, which adds noise (its version 3, appendix D); or "heun",
        second order and deterministic, two calls a step (Karras et al. 2022, algorithm 1, on sigma / alpha).
      schedule: relates t to alpha and sigma; the denoiser's own.
      times: strictly decreasing from at most 1 to exactly 0, such as `time_grid`.
      eta: in [0, 1], "ddim" only: 0 is deterministic, 1 is DDPM.
      variance: "ddpm" only: "posterior", which is fixed; or "learned_range", the network's (Nichol & Dhariwal 2021,
        eq. 15; DeepFloyd IF). Between two times of the grid, beta is 1 - alpha_t^2 / alpha_s^2.

    Raises:
      ValueError: an argument is out of its range, or unknown, or two do not go together.
    """
    if len(times) < 2 or times[0] > 1.0 or times[-1] != 0.0 or not np.all(np.diff(times) < 0.0):
        raise ValueError(f"times must fall strictly from at most 1 to exactly 0, as time_grid's do; got {times}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if eta != 0.0 and sampler != "ddim":
        raise ValueError(f'eta={eta} has a meaning only for sampler="ddim", not for {sampler!r}')
    if variance not in get_args(Variance):
        raise ValueError(f"unknown variance {variance!r}: use one of {get_args(Variance)}")
    if variance == "learned_range" and sampler != "ddpm":
        raise ValueError(f'variance={variance!r} has a meaning only for sampler="ddpm", not for {sampler!r}')
    t = jnp.asarray(times[:-1])
    match sampler:
        case "ddim" | "ddpm":
            eta = 1.0 if sampler == "ddpm" else eta
            x, x0, noise = ddim_coefficients(schedule, times, eta)
            spread = _learned_range(schedule, times) if variance == "learned_range" else None
            return Plan(t, x, x0, noise if eta else None, spread)
        case "dpm_solver_pp_2m":
            x, x0, previous = _dpm_solver_coefficients(schedule, times)
            return Plan(t, x, x0, previous=previous)
        case "dpm_solver_pp_2m_sde":
            x, x0, previous, noise = _sde_dpm_solver_coefficients(schedule, times)
            return Plan(t, x, x0, noise, previous=previous)
        case "heun":
            return _heun(schedule, times)
        case _:
            raise ValueError(f"unknown sampler {sampler!r}: use one of {get_args(Sampler)}")


def resampled(steps: Plan, schedule: NoiseSchedule, times: Float[np.ndarray, " times"], repeats: int) -> Plan:
    """A plan that goes back after each step but the last, and takes it again (RePaint: Lugmayr et al. 2022, alg. 1).

    Where a part of the clip is replaced at every step, the rest, made before it was, agrees with it no better than the
    denoiser foresaw. Noised again, x_t = alpha_t / alpha_s x_s + ... noise, it is made anew beside what is given. Going
    back is linear, too: step and way back are one row, whose two noises add up to one.

    Args:
      steps: of "ddim" or "ddpm" with fixed variance, along `times`.
      schedule, times: as for `plan`.
      repeats: how often each step is taken; 1 is the plan itself.

    Raises:
      ValueError: `repeats` is below 1, or the plan is of another sampler.
    """
    if repeats < 1:
        raise ValueError(f"resample={repeats}: take each step at least once")
    if repeats == 1:
        return steps
    if steps.previous is not None or steps.spread is not None:
        raise ValueError(
            f"resample={repeats}: steps that remember the one before, or have a learned variance, cannot be taken "
            "again: use the samplers ddim, or ddpm with variance='posterior'"
        )
    alpha, sigma = schedule.alpha_sigma(jnp.asarray(times[:-1]))
    ratio = alpha[:-1] / alpha[1:]
    noise = jnp.zeros_like(steps.x) if steps.noise is None else steps.noise
    added = jnp.square(sigma[:-1]) - jnp.square(ratio * sigma[1:])  # at least 0, but for rounding
    back = Plan(
        steps.t[:-1],
        ratio * steps.x[:-1],
        ratio * steps.x0[:-1],
        jnp.sqrt(jnp.square(ratio * noise[:-1]) + jnp.maximum(added, 0.0)),
    )
    forth = Plan(steps.t, steps.x, steps.x0, noise)

    def interleaved(back: Array, forth: Array) -> Array:
        rows = [jnp.repeat(back[:, None], repeats - 1, axis=1), forth[:-1, None]]
        return jnp.append(jnp.concatenate(rows, axis=1).ravel(), forth[-1])

    return jax.tree.map(interleaved, back, forth)


def advance(
    step: Plan,
    x: Float[Array, "*shape"],
    x0: Float[Array, "*shape"],
    *,
    noise: Float[Array, "*shape"] | None = None,
    fraction: Float[Array, "*shape"] | None = None,
    previous: Float[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """The state at the next time; pixel by pixel, so of any part of a clip.

    Args:
      step: from `Plan.step`.
      x: the state at `step.t`.
      x0: predicted from it.
      noise: standard normal, where the plan has `noise`.
      fraction: where it has `spread`: of the log-variance's way from the posterior's, 0, to that of beta, 1. The
        standard deviation of the noise runs evenly in the logarithm.
      previous: where it has `previous`: the x0 prediction of the step before; whatever at the first step.
    """
    step = jax.tree.map(lambda coefficient: coefficient.astype(x.dtype), step)
    x_next = step.x * x + step.x0 * x0
    if step.previous is not None:
        x_next += step.previous * previous
    if step.noise is not None:
        scale = step.noise if step.spread is None else step.noise * jnp.exp(step.spread * fraction)
        x_next += scale * noise
    return x_next


def follow(
    steps: Plan,
    denoise: Denoiser | VarianceDenoiser,
    x_T: Float[Array, "*shape"],
    key: Keys | None = None,
) -> Float[Array, "*shape"]:
    """All steps of a plan, in one compiled loop: `follow_and_watch`, which see, without a watch."""
    return follow_and_watch(steps, denoise, x_T, key)[0]


def follow_and_watch(
    steps: Plan,
    denoise: Denoiser | VarianceDenoiser,
    x_T: Float[Array, "*shape"],
    key: Keys | None = None,
    watch: Callable[[Array], Any] = lambda x0: None,
    memory: Any = None,
) -> tuple[Float[Array, "*shape"], Any]:
    """All steps of a plan, in one compiled loop. Jit the caller: every call compiles its loop anew.

    Args:
      steps: from `plan`.
      denoise: `(x_t, t scalar) -> x0`, or for a learned variance `-> (x0, variance fraction)`. With `memory`:
        `(x_t, t, number of the call, memory) -> (one of these, memory)`.
      x_T: the state at the first time: standard normal noise where that is 1.
      key: where the plan has noise: step k's comes from `fold_in(key, k)`. One for all clips; or one for each, whose
        noise then does not depend on what else is in the batch.
      watch: what to keep of each x0 prediction; by default nothing.
      memory: arrays that the denoiser hands on from call to call, as the first one gets them.

    Returns:
      clips as the denoiser predicts them (it may threshold), float32 or wider; and what was kept, stacked along a new
      first axis, [calls, ...].

    Raises:
      ValueError: the plan has noise, and key is None.
    """
    if steps.noise is not None and key is None:
        raise ValueError(
            "a stochastic sampler (ddpm, dpm_solver_pp_2m_sde, or ddim with eta > 0) needs a random key: pass key="
        )

    def body(carry: tuple[Array, Array | None, Any], inputs: tuple[Array, Plan]) -> tuple[tuple[Array, Any, Any], Any]:
        (x, previous, memory), (index, step) = carry, inputs
        predicted, memory = denoise(x, step.t, index, memory) if memory is not None else (denoise(x, step.t), None)
        x0, fraction = predicted if steps.spread is not None else (predicted, None)
        x0 = x0.astype(x.dtype)
        noise = None if steps.noise is None else _step_noise(key, index, x)
        fraction = None if fraction is None else fraction.astype(x.dtype)
        x_next = advance(step, x, x0, noise=noise, fraction=fraction, previous=previous)
        return (x_next, None if previous is None else x0, memory), watch(x0)

    x = x_T.astype(jnp.promote_types(x_T.dtype, jnp.float32))
    previous = None if steps.previous is None else jnp.zeros_like(x)
    (x, _, _), watched = jax.lax.scan(body, (x, previous, memory), (jnp.arange(steps.calls), steps))
    return x, watched


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
    """Generates clips from noise, the state at the grid's first time: `time_grid`, `plan` and `follow`, which see."""
    times = time_grid(steps, schedule, spacing)
    return follow(plan(sampler, schedule, times, eta=eta, variance=variance), denoise_x0, x_T, key)


def time_grid(steps: int, schedule: NoiseSchedule, spacing: str = "uniform") -> Float[np.ndarray, " {steps+1}"]:
    """Times from 1 ("leading" and "karras": somewhat below) to 0, strictly decreasing, on a discrete schedule's grid.

    "uniform" spaces all of them evenly in t. "log_snr" spaces the positive ones evenly in log-SNR, from t = 1 to the
    first noise level of a discrete schedule or to MIN_TIME of a continuous one; where that asks a discrete schedule for
    one level twice, as it does among IF's noisiest, the next free level is taken. "karras" spaces (sigma / alpha)^(1/7)
    evenly, from 80 to .002 or as far as the schedule goes (Karras et al. 2022, eq. 5); fit for "heun", whose calls at
    the noisiest times are not stable on wide steps. "leading" is DeepFloyd IF's spacing of a discrete schedule: the
    levels 0, k, 2k, ... with k = levels // steps, so 100 of 1000 begin at level 990, where the clip is taken to be
    noise alone.

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
        case "karras":
            times = _karras_times(steps, schedule)
        case "leading" if schedule.levels is None:
            raise ValueError('spacing "leading" counts the levels of a discrete schedule; this one is continuous')
        case "leading":
            times = (schedule.levels // steps * np.arange(steps)[::-1] + 1) / schedule.levels
        case _:
            raise ValueError(f"unknown spacing {spacing!r}: use one of {get_args(Spacing)}")
    if schedule.levels is not None:
        times = _distinct_levels(times, schedule.levels) / schedule.levels
    return np.append(times, 0.0)


def tail(times: Float[np.ndarray, " times"], start: float, schedule: NoiseSchedule) -> Float[np.ndarray, " fewer"]:
    """A time grid from `start` on: that time itself, and those of the grid below it.

    Args:
      times: from `time_grid`.
      start: above 0; 1 is the whole grid, wherever it begins. On a discrete schedule the nearest level is taken.
      schedule: of the grid.

    Raises:
      ValueError: `start` is out of range.
    """
    if not 0.0 < start <= 1.0:
        raise ValueError(f"start={start}: give a diffusion time above 0, and at most 1")
    if start == 1.0:
        return times
    if schedule.levels is not None:
        start = max(1, round(start * schedule.levels)) / schedule.levels
    # Times of the grid that are `start` but for rounding are not taken twice.
    return np.append(start, times[times < start - 1e-9])


def _times_even_in_log_snr(steps: int, schedule: NoiseSchedule) -> np.ndarray:
    last = MIN_TIME if schedule.levels is None else 1.0 / schedule.levels
    with jax.ensure_compile_time_eval():  # the grid is a constant, also inside the caller's jit
        first_log_snr, last_log_snr = schedule.log_snr(jnp.array([1.0, last]))
        times = schedule.time_at_log_snr(jnp.linspace(first_log_snr, last_log_snr, steps))
    times = np.array(times, np.float64)
    times[-1], times[0] = last, 1.0  # exactly; a single step starts at 1
    return times


def _karras_times(steps: int, schedule: NoiseSchedule) -> np.ndarray:
    first, last = (sigma ** (1 / _KARRAS_RHO) for sigma in _KARRAS_RANGE)
    sigmas = np.linspace(first, last, steps) ** _KARRAS_RHO
    lowest = MIN_TIME if schedule.levels is None else 1.0 / schedule.levels
    with jax.ensure_compile_time_eval():
        times = np.array(schedule.time_at_log_snr(jnp.asarray(-2.0 * np.log(sigmas))), np.float64)
    return np.clip(times, lowest, 1.0)


def _distinct_levels(times: np.ndarray, levels: int) -> np.ndarray:
    """The levels 1 .. `levels` nearest to decreasing times, moved apart where two would coincide."""
    order = np.arange(len(times))
    level = np.clip(np.rint(times * levels), 1, levels).astype(int)
    level = np.minimum.accumulate(level + order) - order  # each at least 1 below the one before
    return np.maximum(level, len(times) - order)  # and enough left for those behind


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


def _learned_range(schedule: NoiseSchedule, times: np.ndarray) -> Array:
    """log(sigma_t / sigma_s) of each step, which leads from the posterior's standard deviation to that of beta.

    The posterior's variance is beta sigma_s^2 / sigma_t^2 (Ho et al. 2020, eq. 7).
    """
    _, sigma = schedule.alpha_sigma(jnp.asarray(times[:-1]))
    return jnp.append(-jnp.diff(jnp.log(sigma)), 0.0)


def _dpm_solver_coefficients(schedule: NoiseSchedule, times: np.ndarray) -> tuple[Array, Array, Array]:
    """(a, b, c) of each step x_s = a x_t + b x0 + c previous_x0.

    With lambda = log(alpha / sigma), half the log-SNR, h = lambda_s - lambda_t and r = h_previous / h:
    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) ((1 + 1 / 2r) x0 - 1 / 2r previous_x0).
    """
    decay, gain, extrapolation, _, _ = _multistep(schedule, times, 1.0)
    coefficients = (decay, gain * (1.0 + extrapolation), -gain * extrapolation)
    return tuple(jnp.append(values, last) for values, last in zip(coefficients, (0.0, 1.0, 0.0), strict=True))


def _multistep(schedule: NoiseSchedule, times: np.ndarray, rate: float) -> tuple[Array, Array, Array, Array, Array]:
    """What both have: sigma_s / sigma_t, alpha_s (1 - e^(-rate h)) and 1 / 2r of all steps but the last; sigma; h."""
    t = jnp.asarray(times[:-1])
    alpha, sigma = schedule.alpha_sigma(t)
    h = 0.5 * jnp.diff(schedule.log_snr(t))
    extrapolation = jnp.zeros_like(h).at[1:].set(0.5 * h[1:] / h[:-1])  # the first step has no history
    return sigma[1:] / sigma[:-1], -alpha[1:] * jnp.expm1(-rate * h), extrapolation, sigma, h


def _sde_dpm_solver_coefficients(schedule: NoiseSchedule, times: np.ndarray) -> tuple[Array, Array, Array, Array]:
    """(a, b, c, d) of each step x_s = a x_t + b x0 + c previous_x0 + d noise, named as above:

    x_s = sigma_s / sigma_t e^-h x_t + alpha_s (1 - e^-2h) ((1 + 1 / 2r) x0 - 1 / 2r previous_x0)
          + sigma_s sqrt(1 - e^-2h) noise.
    """
    decay, gain, extrapolation, sigma, h = _multistep(schedule, times, 2.0)
    noise = sigma[1:] * jnp.sqrt(-jnp.expm1(-2.0 * h))
    coefficients = (decay * jnp.exp(-h), gain * (1.0 + extrapolation), -gain * extrapolation, noise)
    return tuple(jnp.append(values, last) for values, last in zip(coefficients, (0.0, 1.0, 0.0, 0.0), strict=True))


def _heun(schedule: NoiseSchedule, times: np.ndarray) -> Plan:
    """An Euler step, which is DDIM's, and its correction by what the denoiser says where it leads.

    In u = x / alpha and its noise s = sigma / alpha the flow is du/ds = (u - x0) / s. From s to s', Euler takes
    u' = r u + (1 - r) x0 with r = s' / s = e^-h, and the mean of the slopes at both ends is

        u' + (1 - r) / 2r (x0' - x0):

    the correction needs the Euler step's end and the two predictions, which is what a `Plan` keeps.
    """
    t = jnp.asarray(times[:-1])
    alpha, _ = schedule.alpha_sigma(t)
    half_correction = 0.5 * alpha[1:] * jnp.expm1(0.5 * jnp.diff(schedule.log_snr(t)))
    euler_x, euler_x0, _ = ddim_coefficients(schedule, times, 0.0)
    ones, zeros = jnp.ones_like(half_correction), jnp.zeros_like(half_correction)

    def alternating(euler: Array, correction: Array) -> Array:  # the last step, to 0, has no correction
        return jnp.append(jnp.stack([euler[:-1], correction], axis=1).ravel(), euler[-1])

    return Plan(
        t=alternating(t, t[1:]),
        x=alternating(euler_x, ones),
        x0=alternating(euler_x0, half_correction),
        previous=alternating(jnp.append(zeros, 0.0), -half_correction),
    )


def _step_noise(key: Keys, index: Array, x: Array) -> Array:
    if key.ndim == 0:
        return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
    return jax.vmap(lambda clip_key, clip: _step_noise(clip_key, index, clip))(key, x)
