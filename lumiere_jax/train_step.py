"""State, loss and update: pure functions without logging or flags.

Training, ahead-of-time compilation, benchmarks and tests all import this file.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from lumiere_jax.diffusion import loss as diffusion_loss
from lumiere_jax.diffusion import low_resolution
from lumiere_jax.diffusion.noise_schedule import NoiseSchedule
from lumiere_jax.models.stunet import deflate


class Batch(NamedTuple):
    """Captioned clips."""

    video: Float[Array, "batch frames height width 3"]  # in [-1, 1]
    # Token ids, or embeddings that were made ahead of time (`text/embedding_store.py`).
    text: Int[Array, "batch tokens"] | Float[Array, "batch tokens text_dim"]


class TrainState(NamedTuple):
    """All that changes in training; randomness and data position follow from `step`."""

    step: Int[Array, ""]  # updates done
    parameters: dict  # the trained part of the model: float32 masters
    average: dict  # exponential moving average of `parameters`: what is sampled
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised. No value here is from the paper."""

    schedule: NoiseSchedule
    prediction: str = "v"  # epsilon, x0 or v
    weighting: str = "uniform"
    low_res_factor: int | None = None  # super-resolution: how many times smaller the given video is
    max_noise_level: float = 0.3  # super-resolution: largest augmentation of the low-resolution video, as a time


def create_state(parameters: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    average = jax.tree.map(jnp.copy, parameters)
    return TrainState(jnp.zeros((), jnp.int32), parameters, average, optimizer.init(parameters))


def train_step(
    state: TrainState,
    frozen: dict,
    batch: Batch,
    seed: Int[Array, ""],
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    ema_decay: float,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One update of the trained parameters; the frozen ones have no gradient and no optimiser slots.

    Returns:
      the next state, and `loss` and `gradient_norm` (before clipping) of this step.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_of(parameters: dict) -> Array:
        model = nnx.merge(graphdef, parameters, frozen)
        loss_key, condition_key = jax.random.split(key)
        denoiser = _denoiser(model, batch, condition_key, objective)
        return diffusion_loss.diffusion_loss(
            denoiser,
            batch.video,
            loss_key,
            schedule=objective.schedule,
            objective=objective.prediction,
            weighting=objective.weighting,
        )[0]

    loss, gradient = jax.value_and_grad(loss_of)(state.parameters)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.parameters)
    parameters = optax.apply_updates(state.parameters, updates)
    step = state.step + 1
    # While few updates are done the average forgets faster, or it would stay near the initialisation.
    decay = jnp.minimum(ema_decay, step / (step + 10.0))
    average = optax.incremental_update(parameters, state.average, 1.0 - decay)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(step, parameters, average, optimizer_state), metrics


def validation_step(
    parameters: dict, frozen: dict, batch: Batch, *, graphdef: nnx.GraphDef, objective: Objective
) -> dict[str, Float[Array, ""]]:
    """The loss at evenly spaced noise levels with noise that is always the same: the number that actually falls.

    Returns:
      `loss`, and for an inflated model `image_model_loss`: the same U-Net without its temporal layers, frame by frame.
    """
    model = nnx.merge(graphdef, parameters, frozen)
    losses = {"loss": _loss_at_fixed_noise(model, batch, objective)}
    if model.unet.is_inflated:
        model.unet = deflate(model.unet)
        losses["image_model_loss"] = _loss_at_fixed_noise(model, batch, objective)
    return losses


def _loss_at_fixed_noise(model: Any, batch: Batch, objective: Objective) -> Float[Array, ""]:
    clips = batch.video.shape[0]
    noise_key, condition_key = jax.random.split(jax.random.key(0))
    return diffusion_loss.diffusion_loss_at(
        _denoiser(model, batch, condition_key, objective),
        batch.video,
        (jnp.arange(clips) + 0.5) / clips,
        jax.random.normal(noise_key, batch.video.shape),
        schedule=objective.schedule,
        objective=objective.prediction,
        weighting=objective.weighting,
    )[0]


def _denoiser(model: Any, batch: Batch, key: Array, objective: Objective) -> diffusion_loss.Denoiser:
    """The model as a function `(x_t, t) -> prediction`, conditioned on the batch."""
    text = model.embed_text(batch.text)
    low_res = noise_level = None
    if objective.low_res_factor is not None:
        height, width = batch.video.shape[2:4]
        small = low_resolution.downsample(batch.video, objective.low_res_factor)
        level_key, noise_key = jax.random.split(key)
        # Never 0: a discrete schedule has no level there.
        level = objective.max_noise_level * (1.0 - jax.random.uniform(level_key, batch.video.shape[:1]))
        full_size = low_resolution.upsample(small, height, width)
        noise = jax.random.normal(noise_key, full_size.shape)
        low_res = low_resolution.augment(full_size, level, noise, objective.schedule)
        noise_level = objective.schedule.network_time(level)

    def denoiser(x_t: Array, t: Array) -> Array:
        return model.predict(x_t, objective.schedule.network_time(t), text, low_res, noise_level)

    return denoiser
