"""Sampling with less work and another result: each is off unless it is asked for, and docs/sampling.md has its price.

- Deep features change slowly from call to call (Ma et al. 2024, "DeepCache"): between the calls of the whole network,
  only the last layers on its way up are run (`UNet2D.predict_with_deep_features`).
- Noise hides fast motion: where there is most of it, every two frames are denoised as one.

Nothing here is from the paper.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lumiere_jax.diffusion.noise_schedule import NoiseSchedule
from lumiere_jax.diffusion.prediction import Denoiser, VarianceDenoiser


@dataclasses.dataclass(frozen=True)
class Approximations:
    """What to leave out, by default nothing.

    Raises:
      ValueError: a number is out of range, or both approximations are asked for.
    """

    deep_features_every: int = 1  # of so many calls the first runs the whole network
    shallow_layers: int = 1  # that the other calls run, at the end of the network
    half_rate_from: float | None = None  # the diffusion time from which on, towards noise, frames are paired

    def __post_init__(self):
        for name in ("deep_features_every", "shallow_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a number from 1")
        if self.half_rate_from is not None and not 0.0 <= self.half_rate_from <= 1.0:
            raise ValueError(f"half_rate_from={self.half_rate_from}: give a diffusion time, 0 to 1, where 1 is noise")
        if self.half_rate_from is not None and self.deep_features_every > 1:
            raise ValueError(
                f"half_rate_from={self.half_rate_from} and deep_features_every={self.deep_features_every}: features of "
                "half the frames are of no use to all of them, give one of the two"
            )

    def check(self, frames: int, shallow_layers: int) -> None:
        """Raises a ValueError for clips or networks that these do not fit.

        Args:
          frames: of the clips.
          shallow_layers: the most that the network has, see `UNet2DConfig`.
        """
        if self.half_rate_from is not None and frames % 2:
            raise ValueError(f"half_rate_from={self.half_rate_from} pairs frames: give an even number, not {frames}")
        if self.deep_features_every > 1 and self.shallow_layers > shallow_layers:
            raise ValueError(f"shallow_layers={self.shallow_layers}: this network has {shallow_layers}")


def half_rate(
    denoise_x0: Denoiser | VarianceDenoiser, schedule: NoiseSchedule, first: float
) -> Denoiser | VarianceDenoiser:
    """A denoiser of clips that, from time `first` on towards noise, asks for half of the frames.

    The mean of two frames alpha x0 + sigma epsilon has their x0's mean and half the noise's variance, so its
    signal-to-noise ratio is twice theirs: the denoiser is asked at the time of that. What it predicts is interpolated
    linearly in time. The network sees twice the speed that it was trained on.

    Args:
      denoise_x0: `(x_t [batch, frames, ...], t scalar) -> x0`, or with its variance fraction; of an even number of
        frames.
      schedule: relates t to alpha and sigma.
      first: a diffusion time.
    """

    def of_pairs(x_t: Array, t: Array) -> Array | tuple[Array, Array]:
        alpha, sigma = schedule.alpha_sigma(t)
        pairs = 0.5 * (x_t[:, ::2] + x_t[:, 1::2]) / jnp.sqrt(alpha**2 + 0.5 * sigma**2)
        time = schedule.time_at_log_snr(schedule.log_snr(t) + math.log(2.0))
        # Half-pixel centres: a pair's value lies midway between its two frames.
        return jax.tree.map(lambda half: jax.image.resize(half, x_t.shape, "linear"), denoise_x0(pairs, time))

    return lambda x_t, t: jax.lax.cond(t >= first, of_pairs, denoise_x0, x_t, t)
