"""Stylized generation (paper section 4.1): spatial layers between a style's and the model's own.

A style is the image model inside of a video model, fine-tuned on a few images (configs/style.py). Put under the
temporal layers as it is, it often gave distorted or static videos (paper): these were trained above other features. So
the spatial layers are a mixture, W = alpha W_style + (1 - alpha) W_orig, with alpha of 0.5 to 1 (paper). The temporal
layers stay.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.checkpoints.checkpointing import tree_hash
from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.models.stunet import deflate, path_in_image_model
from lumiere_jax.models.temporal import TemporalParam
from lumiere_jax.models.text_to_video import TextToVideo


def stylized(run: Run, style: Run, alpha: float | int) -> Run:
    """A run whose spatial layers are mixed with those of a style.

    Args:
      run: of a video model, with or without conditions, or of an image model.
      style: of its style, on the same mesh; one fits all runs over the same image model.
      alpha: share of the style: 0 is the run as it is, 1 the style's layers alone.

    Raises:
      ValueError: as `check_style`, or alpha is out of range.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha}: give a share of the style, 0 to 1")
    check_style(run, style)
    graphdef, state = nnx.split(run.model.unet)
    leaves, of_style = dict(nnx.to_flat_state(state)), dict(nnx.to_flat_state(nnx.state(style.model.unet)))
    own = {path: leaf.get_value() for path, leaf in leaves.items() if not isinstance(leaf, TemporalParam)}
    styles = {path: of_style[path_in_image_model(path)].get_value() for path in own}
    mixed = _mix(list(styles.values()), list(own.values()), jnp.float32(alpha))
    leaves |= {path: leaves[path].replace(value) for path, value in zip(own, mixed, strict=True)}
    state = nnx.from_flat_state(leaves.items())
    model = TextToVideo(
        run.model.text_encoder,
        nnx.merge(graphdef, state),
        dtype=jnp.dtype(run.model.dtype),
        padding_sees_tokens=run.model.padding_sees_tokens,
    )
    return dataclasses.replace(run, model=model)


def check_style(run: Run, style: Run) -> None:
    """Raises a ValueError for a style that is none, or was fine-tuned from other spatial layers than the run's."""
    if "style" not in style.config:
        raise ValueError(f"{style.path} is no style but {style.config.name}: train one with configs/style.py")
    if spatial_layers_hash(run) != style.config.style.base_unet:
        raise ValueError(
            f"{style.path} was fine-tuned from other spatial layers than those of {run.path}: train it again with "
            f"--config.style.base={run.path}"
        )


def spatial_layers_hash(run: Run) -> str:
    """SHA-256 of a run's spatial layers, by which a style knows the runs that it goes with."""
    unet = deflate(run.model.unet) if "temporal" in run.config else run.model.unet
    return tree_hash(nnx.to_pure_dict(nnx.state(unet)))


@jax.jit
def _mix(styles: list[Array], own: list[Array], alpha: Float[Array, ""]) -> list[Array]:
    """Computed in float32, whatever type the layers are kept in."""

    def mix(style: Array, own: Array) -> Array:
        mixture = alpha * style.astype(jnp.float32) + (1.0 - alpha) * own.astype(jnp.float32)
        return mixture.astype(own.dtype)

    return list(map(mix, styles, own))
