"""Classifier-free guidance, and the thresholds that keep guided clips in range."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lumiere_jax.diffusion.prediction import Denoiser


def classifier_free_guidance(
    denoiser_pair: Callable[..., tuple[Array, Array]], weight: float | Float[Array, ""], rescaled: float = 0.0
) -> Denoiser:
    """The guided denoiser u + w (c - u) (Ho & Salimans 2022).

    Args:
      denoiser_pair: `(x_t, t) -> (conditional, unconditional)` predictions, both of x_t's shape; usually one call of
        the network on a doubled batch. Channels beyond x_t's are a learned variance: it is not guided, the conditional
        one is taken (as DeepFloyd IF does). Further arguments of the guided denoiser (what MultiDiffusion cuts into
        windows) are handed on to it.
      weight: w; 0 is unconditional, 1 exactly conditional. DeepFloyd IF uses 7 (base) and 4 (super-resolution); not
        from the paper.
      rescaled: `share` of `rescale`.
    """

    def guided(x_t: Array, t: Array, *conditioning: Any) -> Array:
        conditional, unconditional = denoiser_pair(x_t, t, *conditioning)
        channels = x_t.shape[-1]
        c, u, variance = conditional[..., :channels], unconditional[..., :channels], conditional[..., channels:]
        # The same as u + w (c - u), and without rounding error at w = 1.
        mixed = c + (weight - 1.0) * (c - u)
        return jnp.concatenate([rescale(mixed, c, rescaled) if rescaled else mixed, variance], axis=-1)

    return guided


def rescale(
    guided: Float[Array, " batch *shape"], conditional: Float[Array, " batch *shape"], share: float
) -> Float[Array, " batch *shape"]:
    """Brings a guided prediction back to the conditional one's contrast (Lin et al. 2024, section 3.4, eq. 15-16).

    Args:
      guided, conditional: predictions; the standard deviation is over all of one clip.
      share: of the way, in [0, 1]: 0 changes nothing, their choice is 0.7 (not from the paper).
    """
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(axes, keepdims=True) / guided.std(axes, keepdims=True)
    return guided * (share * ratio + (1.0 - share))


def dynamic_threshold(
    x0: Float[Array, " batch *shape"], percentile: float = 0.95, maximum: float = 1.5
) -> Float[Array, " batch *shape"]:
    """Clips each clip at a quantile of its absolute values and scales it back to [-1, 1] (Imagen, section 2.3).

    s = clip(quantile(|x0|, percentile), 1, maximum);  x0 <- clip(x0, -s, s) / s

    Args:
      x0: predicted clips (or images), any number of axes after the batch; the quantile is over all of one clip.
      percentile: in [0, 1]; 0.95 as in DeepFloyd IF (not from the paper).
      maximum: largest s, at least 1; IF has 1.5 for its base model and 1 for super-resolution (not from the paper).

    Raises:
      ValueError: if percentile or maximum is out of range.
    """
    if not 0.0 <= percentile <= 1.0:
        raise ValueError(f"percentile must be in [0, 1], got {percentile}")
    if maximum < 1.0:
        raise ValueError(f"maximum must be at least 1, got {maximum}")
    if maximum == 1.0:  # s = 1: spares sorting the clip
        return static_threshold(x0)
    magnitude = jnp.abs(x0.astype(jnp.promote_types(x0.dtype, jnp.float32)))
    quantile = jnp.quantile(magnitude, percentile, axis=tuple(range(1, x0.ndim)), keepdims=True)
    s = jnp.clip(quantile, 1.0, maximum)
    return (jnp.clip(x0, -s, s) / s).astype(x0.dtype)


def static_threshold(x0: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Clips to [-1, 1]."""
    return jnp.clip(x0, -1.0, 1.0)
