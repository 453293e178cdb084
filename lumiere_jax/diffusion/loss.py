"""The training objective: mean squared error of the network's prediction at some noise level."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lumiere_jax.diffusion.noise_schedule import NoiseSchedule
from lumiere_jax.diffusion.prediction import Denoiser, check_prediction, per_example, target, to_epsilon


def diffusion_loss(
    denoiser: Denoiser,
    x0: Float[Array, "batch frames height width channels"],
    t: Float[Array, " batch"],
    epsilon: Float[Array, "batch frames height width channels"],
    *,
    schedule: NoiseSchedule,
    objective: str = "epsilon",
    weighting: str = "uniform",
    teacher: Denoiser | None = None,
) -> tuple[Float[Array, ""], Float[Array, " batch"]]:
    """Noises every clip at one level, the same for all of its frames, and scores the prediction.

    Times and noise are given, so that training draws them for a whole batch however it is divided, and validation
    always takes the same.

    Args:
      denoiser: `(x_t, t [batch]) -> prediction` of x_t's shape.
      x0: clean clips in [-1, 1].
      t: each clip's time, in (0, 1].
      epsilon: standard normal noise.
      schedule: relates t to alpha and sigma.
      objective: what the denoiser predicts: "epsilon", "x0" or "v" (not from the paper).
      weighting: "uniform", "min_snr" or "truncated_snr", see `loss_weight` (not from the paper).
      teacher: `(x_t, t [batch]) -> x0`, whose clean clip is to be predicted instead of `x0` (`distillation.py`).

    Returns:
      the loss (the mean over clips) and the loss of each clip, at least float32.

    Raises:
      ValueError: if objective or weighting is unknown, or if the prediction has not x0's shape.
    """
    dtype = jnp.promote_types(x0.dtype, jnp.float32)
    x0, epsilon = x0.astype(dtype), epsilon.astype(dtype)
    alpha, sigma = schedule.alpha_sigma(t)
    weight = loss_weight(schedule.log_snr(t), objective, weighting)
    x_t = per_example(alpha, x0) * x0 + per_example(sigma, x0) * epsilon
    prediction = denoiser(x_t, t)
    check_prediction(prediction, x_t)
    if teacher is not None:
        x0 = teacher(x_t, t).astype(dtype)
        epsilon = to_epsilon(x0, x_t, alpha, sigma, "x0")
    error = prediction.astype(dtype) - target(x0, epsilon, alpha, sigma, objective)
    per_clip = weight * jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))
    return jnp.mean(per_clip), per_clip


def stratified_times(key: PRNGKeyArray, batch: int) -> Float[Array, " {batch}"]:
    """Times in (0, 1], one in each of `batch` equal intervals, each uniform over (0, 1] when looked at alone.

    One random offset is shared by the batch (Kingma et al. 2021, "Variational diffusion models", appendix I.1): the
    loss varies less from batch to batch than with independent times.
    """
    offset = jax.random.uniform(key)
    return 1.0 - (offset + jnp.arange(batch) / batch) % 1.0


def loss_weight(
    log_snr: Float[Array, "*shape"], objective: str, weighting: str, gamma: float = 5.0
) -> Float[Array, "*shape"]:
    """The factor on a clip's mean squared error (not from the paper).

    "uniform" is 1 whatever the objective. "min_snr" weighs the error of the clean clip by min(SNR, gamma) (Hang et al.
    2023, section 3.4); said of the prediction that is min(SNR, gamma) for x0, min(1, gamma / SNR) for epsilon and
    min(SNR, gamma) / (SNR + 1) for v. "truncated_snr" weighs it by max(SNR, 1) (Salimans & Ho 2022, section 4), but by
    gamma at most: noisy clips count in full; clean ones, whose errors are small, more.

    Raises:
      ValueError: if objective or weighting is unknown, or for "truncated_snr" of epsilon: where hardly any signal is
        left, there is no bound to that weight.
    """
    match weighting, objective:
        case "uniform", "epsilon" | "x0" | "v":
            return jnp.ones_like(log_snr)
        case "min_snr", "epsilon":
            return jnp.minimum(1.0, gamma * jnp.exp(-log_snr))
        case "min_snr", "x0":
            return jnp.minimum(jnp.exp(log_snr), gamma)
        case "min_snr", "v":
            # SNR / (SNR + 1) is a sigmoid: no overflow at a clean clip's infinite log-SNR.
            return jnp.minimum(jax.nn.sigmoid(log_snr), gamma * jax.nn.sigmoid(-log_snr))
        case "truncated_snr", "x0":
            return jnp.clip(jnp.exp(log_snr), 1.0, gamma)
        case "truncated_snr", "v":
            return jnp.clip(jnp.exp(log_snr), 1.0, gamma) * jax.nn.sigmoid(-log_snr)
        case _:
            raise ValueError(
                'weighting must be "uniform", "min_snr" or (not for epsilon) "truncated_snr" and objective "epsilon", '
                f'"x0" or "v", got weighting={weighting!r}, objective={objective!r}'
            )
