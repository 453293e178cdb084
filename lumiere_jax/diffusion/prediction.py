"""What a network predicts (epsilon, x0 or v) and the way between the three.

With x_t = alpha x0 + sigma epsilon, alpha^2 + sigma^2 = 1, and v = alpha epsilon - sigma x0 (Salimans & Ho 2022,
"Progressive distillation", appendix D). The paper does not say which one Lumiere predicts; DeepFloyd IF predicts
epsilon. In every function alpha and sigma are scalars or one number per example.

A network with learned variance (DeepFloyd IF's has 2 x 3 output channels) predicts in the first half of its channels.
The second half is v in Nichol & Dhariwal 2021, eq. 15: (v + 1) / 2 interpolates the log-variance of an ancestral step.
`x0_and_variance_denoiser` takes both halves; everything else is given the first one alone.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.diffusion.noise_schedule import NoiseSchedule

Objective = Literal["epsilon", "x0", "v"]

# (x_t [batch, frames, height, width, channels], t, scalar or [batch]) -> prediction, of x_t's shape
Denoiser = Callable[..., Array]

# (x_t, t) -> (x0, variance fraction), both of x_t's shape
VarianceDenoiser = Callable[[Array, Array], tuple[Array, Array]]

# Below this alpha (sigma) a noisy clip is taken to hold no signal (no noise). DeepFloyd IF's smallest alpha is 4.9e-5.
_NOTHING = 1e-6


def target(
    x0: Float[Array, "*shape"],
    epsilon: Float[Array, "*shape"],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
    objective: str,
) -> Float[Array, "*shape"]:
    """What a perfect network would predict for x_t = alpha x0 + sigma epsilon.

    Raises:
      ValueError: if objective is not "epsilon", "x0" or "v".
    """
    match objective:
        case "epsilon":
            return epsilon
        case "x0":
            return x0
        case "v":
            return per_example(alpha, x0) * epsilon - per_example(sigma, x0) * x0
        case _:
            raise _unknown(objective)


def to_x0(
    prediction: Float[Array, "*shape"],
    x_t: Float[Array, "*shape"],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
    objective: str,
) -> Float[Array, "*shape"]:
    """The clean clip that a prediction stands for.

    Where alpha < 1e-6, epsilon says nothing of x0: the result is 0, the middle of the range.

    Raises:
      ValueError: if objective is not "epsilon", "x0" or "v".
    """
    alpha, sigma = per_example(alpha, x_t), per_example(sigma, x_t)
    match objective:
        case "epsilon":
            return _divide(x_t - sigma * prediction, alpha)
        case "x0":
            return prediction
        case "v":
            return alpha * x_t - sigma * prediction
        case _:
            raise _unknown(objective)


def to_epsilon(
    prediction: Float[Array, "*shape"],
    x_t: Float[Array, "*shape"],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
    objective: str,
) -> Float[Array, "*shape"]:
    """The noise that a prediction stands for.

    Where sigma < 1e-6, x0 says nothing of epsilon: the result is 0, its mean.

    Raises:
      ValueError: if objective is not "epsilon", "x0" or "v".
    """
    alpha, sigma = per_example(alpha, x_t), per_example(sigma, x_t)
    match objective:
        case "epsilon":
            return prediction
        case "x0":
            return _divide(x_t - alpha * prediction, sigma)
        case "v":
            return sigma * x_t + alpha * prediction
        case _:
            raise _unknown(objective)


def x0_denoiser(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    objective: str,
    threshold: Callable[[Array], Array] | None = None,
) -> Denoiser:
    """Turns a denoiser `(x_t, t) -> prediction` into one that returns the clean clip: what the samplers take.

    Args:
      denoiser: predicts `objective`; it gets t in [0, 1] and gives its network `schedule.network_time(t)` itself.
        Guidance and MultiDiffusion wrap it before this: they combine predictions, the threshold comes after.
      schedule: relates t to alpha and sigma.
      objective: "epsilon", "x0" or "v".
      threshold: x0 -> x0, applied last, for instance `guidance.dynamic_threshold`.

    Raises:
      ValueError: if objective is unknown or, when called, if the prediction has not x_t's shape.
    """
    if objective not in get_args(Objective):
        raise _unknown(objective)

    def denoise_x0(x_t: Array, t: Array) -> Array:
        alpha, sigma = schedule.alpha_sigma(t)
        prediction = denoiser(x_t, t)
        check_prediction(prediction, x_t)
        x0 = to_x0(prediction, x_t, alpha, sigma, objective)
        return x0 if threshold is None else threshold(x0)

    return denoise_x0


def x0_and_variance_denoiser(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    objective: str,
    threshold: Callable[[Array], Array] | None = None,
) -> VarianceDenoiser:
    """`x0_denoiser` of a network with learned variance: what a plan with learned variance takes.

    Args:
      denoiser: returns twice x_t's channels, the prediction and then v. Guidance and MultiDiffusion may wrap it.
      schedule, objective, threshold: as for `x0_denoiser`.

    Returns:
      `(x_t, t) -> (x0, variance fraction)`: the fraction, (v + 1) / 2, is 0 for the variance of the posterior and 1 for
      beta. The network may leave [0, 1], and as in DeepFloyd IF nothing stops it.

    Raises:
      ValueError: if objective is unknown or, when called, if the output has not twice x_t's channels.
    """
    if objective not in get_args(Objective):
        raise _unknown(objective)

    def denoise(x_t: Array, t: Array) -> tuple[Array, Array]:
        output = denoiser(x_t, t)
        if output.shape != (*x_t.shape[:-1], 2 * x_t.shape[-1]):
            raise ValueError(
                f"the denoiser returned shape {output.shape} for x_t of shape {x_t.shape}; a network with learned "
                "variance returns twice the channels"
            )
        prediction, v = jnp.split(output, 2, axis=-1)
        return x0_denoiser(lambda *_: prediction, schedule, objective, threshold)(x_t, t), 0.5 * (v + 1.0)

    return denoise


def per_example(coefficient: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Adds axes to a scalar or [batch] coefficient so that it multiplies x [batch, ...]."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def check_prediction(prediction: Array, x_t: Array) -> None:
    """Raises ValueError if a network's prediction has another shape than its noisy input."""
    if prediction.shape != x_t.shape:
        raise ValueError(
            f"the denoiser returned shape {prediction.shape} for x_t of shape {x_t.shape}; of a network with learned "
            "variance pass on only the first half of the channels"
        )


def _divide(numerator: Array, denominator: Array) -> Array:
    """The quotient, or 0 where the denominator is nothing; gradients stay finite too."""
    nothing = denominator < _NOTHING
    return jnp.where(nothing, 0.0, numerator / jnp.where(nothing, 1.0, denominator))


def _unknown(objective: str) -> ValueError:
    return ValueError(f"unknown objective {objective!r}: use one of {get_args(Objective)}")
