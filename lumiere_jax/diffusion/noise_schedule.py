"""Noise schedules: how much signal and how much noise a clip holds at diffusion time t.

Time runs from 0 (clean) to 1 (noise) and all schedules are variance preserving:

    x_t = alpha(t) x_0 + sigma(t) epsilon,    alpha(t)^2 + sigma(t)^2 = 1
    log_snr(t) = log(alpha(t)^2 / sigma(t)^2),  decreasing in t

The paper names no schedule: every value here is not from the paper.
"""

import dataclasses
import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# A time closer to a grid point than this share of the grid's spacing lies on it: float32 cannot tell them apart.
_GRID_TOLERANCE = 0.01


@runtime_checkable
class NoiseSchedule(Protocol):
    """What the loss, the samplers and the network's wrapper need of a schedule."""

    @property
    def levels(self) -> int | None:
        """Number of noise levels of a discrete schedule; None where time is continuous."""

    def alpha_sigma(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """Scale of the signal and of the noise at time t in [0, 1]."""

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Logarithm (base e) of the signal-to-noise ratio alpha^2 / sigma^2 at time t in [0, 1]."""

    def time_at_log_snr(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The inverse of log_snr, in [0, 1]."""

    def network_time(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The number that the U-Net's time embedding receives at time t."""


@dataclasses.dataclass(frozen=True)
class CosineSchedule:
    """Continuous cosine schedule with bounded log-SNR (Nichol & Dhariwal 2021; Hoogeboom et al. 2023, eq. 3-4).

    `log_snr(t) = -2 log tan(a + (b - a) t) + log_snr_shift`, with a and b such that without the shift it runs from
    log_snr_max at t = 0 to log_snr_min at t = 1. The shift adapts a schedule tuned at 64 pixels to d pixels:
    `2 log(64 / d)` (Hoogeboom et al. 2023, "simple diffusion", section 2.1).

    Attributes:
      log_snr_min: log-SNR at t = 1 before the shift (not from the paper).
      log_snr_max: log-SNR at t = 0 before the shift (not from the paper).
      log_snr_shift: added to the log-SNR at every time (not from the paper).
    """

    log_snr_min: float = -15.0
    log_snr_max: float = 15.0
    log_snr_shift: float = 0.0

    def __post_init__(self):
        if not all(map(math.isfinite, dataclasses.astuple(self))):
            raise ValueError(f"every field of CosineSchedule must be finite, got {self}")
        if not self.log_snr_min < self.log_snr_max:
            raise ValueError(f"log_snr_min must be below log_snr_max, got {self}")

    @property
    def levels(self) -> None:
        """None: time is continuous."""
        return None

    @property
    def _angle_at_0(self) -> float:
        return math.atan(math.exp(-0.5 * self.log_snr_max))

    @property
    def _complement_at_1(self) -> float:
        """Pi / 2 minus the angle at t = 1."""
        return math.atan(math.exp(0.5 * self.log_snr_min))

    @property
    def _angle_range(self) -> float:
        return 0.5 * math.pi - self._complement_at_1 - self._angle_at_0

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Logarithm of alpha^2 / sigma^2 at time t in [0, 1]."""
        # tan(angle) = sin(angle) / sin(pi/2 - angle), each sine from a sum of positive terms: near t = 1 the cosine of
        # an angle close to pi/2 would lose half of float32's digits.
        angle = self._angle_at_0 + self._angle_range * t
        complement = self._complement_at_1 + self._angle_range * (1.0 - t)
        return 2.0 * (jnp.log(jnp.sin(complement)) - jnp.log(jnp.sin(angle))) + self.log_snr_shift

    def alpha_sigma(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """Scale of the signal and of the noise at time t in [0, 1]; neither is ever exactly 0."""
        log_snr = self.log_snr(t)
        # The square root of a sigmoid, taken in the exponent: alpha^2 itself may be below float32's small numbers.
        return jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr)), jnp.exp(0.5 * jax.nn.log_sigmoid(-log_snr))

    def time_at_log_snr(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The time in [0, 1] at which the log-SNR has this value; values out of reach give 0 or 1."""
        angle = jnp.arctan(jnp.exp(-0.5 * (log_snr - self.log_snr_shift)))
        return jnp.clip((angle - self._angle_at_0) / self._angle_range, 0.0, 1.0)

    def network_time(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """1000 t: the range that sinusoidal time embeddings were tuned for (not from the paper)."""
        return 1000.0 * t


@dataclasses.dataclass(frozen=True)
class DiscreteCosineSchedule:
    """DeepFloyd IF's schedule: `squaredcos_cap_v2`, noise levels i = 0 .. steps-1 (Nichol & Dhariwal 2021, eq. 17).

    Level i lies at t = (i + 1) / steps; t = 0 is exactly clean (alpha = 1, sigma = 0, log-SNR infinite). A time between
    two levels is rounded up to the noisier one, so that t uniform in (0, 1] draws every level equally often and no
    positive t is clean. t must be float32 or wider.

    Attributes:
      steps: number of noise levels; IF has 1000 (not from the paper).
    """

    steps: int = 1000

    def __post_init__(self):
        # Above 10,000 levels float32 times could miss the grid's tolerance.
        if not 1 <= self.steps <= 10_000:
            raise ValueError(f"steps must be between 1 and 10000, got {self.steps}")

    @property
    def levels(self) -> int:
        """Number of noise levels."""
        return self.steps

    def _level_plus_1(self, t: Float[Array, "*shape"]) -> Array:
        """0 where clean, else i + 1."""
        rounded_up = jnp.ceil(t * self.steps - _GRID_TOLERANCE).astype(jnp.int32)
        return jnp.where(t > 0, jnp.clip(rounded_up, 1, self.steps), 0)

    def alpha_sigma(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """Scale of the signal and of the noise at time t in [0, 1]; exactly 1 and 0 at t = 0."""
        _, alpha_squared, sigma_squared = _discrete_cosine_table(self.steps)
        level = self._level_plus_1(t)
        return jnp.asarray(np.sqrt(alpha_squared), t.dtype)[level], jnp.asarray(np.sqrt(sigma_squared), t.dtype)[level]

    def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Logarithm of alpha^2 / sigma^2 at time t in [0, 1]; infinite at t = 0."""
        return jnp.asarray(_discrete_log_snr(self.steps), t.dtype)[self._level_plus_1(t)]

    def time_at_log_snr(self, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The time in [1 / steps, 1] of this log-SNR, interpolated between the levels; beyond them the nearest end."""
        increasing = jnp.asarray(_discrete_log_snr(self.steps)[:0:-1], log_snr.dtype)
        times = jnp.asarray(np.arange(self.steps, 0, -1) / self.steps, log_snr.dtype)
        return jnp.interp(log_snr, increasing, times)

    def network_time(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The level's index i as a float; -1 at t = 0, where there is nothing to predict."""
        return (self._level_plus_1(t) - 1).astype(t.dtype)


@functools.cache
def _discrete_cosine_table(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(betas [steps], alpha^2 [steps + 1], sigma^2 [steps + 1]) in float64; the squares begin with the clean clip."""
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    alpha_squared = np.concatenate([[1.0], np.cumprod(1 - betas)])
    return betas, alpha_squared, 1 - alpha_squared


@functools.cache
def _discrete_log_snr(steps: int) -> np.ndarray:
    """Log-SNR in float64, [steps + 1]; entry 0 is infinite."""
    _, alpha_squared, sigma_squared = _discrete_cosine_table(steps)
    return np.concatenate([[np.inf], np.log(alpha_squared[1:]) - np.log(sigma_squared[1:])])


def from_config(name: str, log_snr_shift: float = 0.0, **fields: float | int) -> NoiseSchedule:
    """The schedule that a config names: "cosine" or "discrete_cosine", with that class's fields.

    Raises:
      ValueError: for an unknown name or a value out of range.
    """
    match name:
        case "cosine":
            return CosineSchedule(log_snr_shift=log_snr_shift, **fields)
        case "discrete_cosine":
            if log_snr_shift:
                raise ValueError(f"log_snr_shift={log_snr_shift}: the discrete_cosine schedule has none, set it to 0")
            return DiscreteCosineSchedule(**fields)
        case _:
            raise ValueError(f'unknown noise schedule {name!r}: use "cosine" or "discrete_cosine"')
