"""State, loss and update: pure functions without logging or flags.

Training, ahead-of-time compilation, benchmarks and tests all import this file.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from lumiere_jax.diffusion import condition_masks, degradation, distillation, low_resolution
from lumiere_jax.diffusion import loss as diffusion_loss
from lumiere_jax.diffusion.condition import Condition
from lumiere_jax.diffusion.noise_schedule import NoiseSchedule
from lumiere_jax.models.stunet import deflate
from lumiere_jax.pipelines.generation import Settings, guided_denoiser
from lumiere_jax.train_guards import ONLY_FINITE, Guards, Health, judge, new_health

# (x_t, t [batch], text embeddings) -> x0
TeacherDenoiser = Callable[[Array, Array, Array], Array]


class Batch(NamedTuple):
    """Captioned clips."""

    video: Float[Array, "batch frames height width 3"]  # in [-1, 1]
    # Token ids, or embeddings that were made ahead of time (`text/embedding_store.py`).
    text: Int[Array, "batch tokens"] | Float[Array, "batch tokens text_dim"]


class TrainState(NamedTuple):
    """All that changes in training; randomness and data position follow from `step`."""

    step: Int[Array, ""]  # batches seen
    parameters: dict  # the trained part of the model: float32 masters
    averages: tuple[dict, ...]  # exponential moving averages of `parameters`; the first is what is sampled
    optimizer: optax.OptState
    health: Health


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised. No value here is from the paper."""

    schedule: NoiseSchedule
    prediction: str = "v"  # epsilon, x0 or v
    weighting: str = "uniform"
    low_res_factor: int | None = None  # super-resolution: how many times smaller the given video is
    # Super-resolution: how the low-resolution video is made worse and enlarged.
    max_noise_level: float = 0.3  # largest augmentation, as a time
    max_blur: float = 0.0  # largest standard deviation, in its pixels; 0: no blur
    min_jpeg_quality: int = 0  # of 1 to 100; 0: no compression
    align_corners: bool = True  # how `low_resolution.upsample` enlarges it
    # The conditional model: what of a clip is given, and how often (`condition_masks.draw_masks`). Others have none.
    masks: tuple[tuple[str, float], ...] = ()
    # Distillation: how many steps the student is to need, and how its teacher is sampled with twice as many.
    student_steps: int | None = None
    teacher: Settings | None = None


class Teacher(NamedTuple):
    """Whom a student is distilled from: the same model with other parameters."""

    parameters: dict  # as those that are trained
    empty: Int[Array, " tokens"] | Float[Array, "tokens text_dim"]  # the empty prompt, for guidance


class Draws(NamedTuple):
    """What is random in the loss of a batch, drawn for all of its clips at once.

    So the loss does not depend on how a batch is divided, over devices or by gradient accumulation.
    """

    times: Float[Array, " batch"]
    noise: Float[Array, "batch frames height width 3"]
    # Super-resolution: the augmentation of the low-resolution video, as a time, and its noise.
    low_res_level: Float[Array, " batch"] | None = None
    low_res_noise: Float[Array, "batch frames height width 3"] | None = None
    # ... and, where the objective asks for them, the standard deviation of its blur and the quality of its compression.
    blur: Float[Array, " batch"] | None = None
    jpeg_quality: Int[Array, " batch"] | None = None
    # The conditional model: 1 where the clip is given.
    mask: Float[Array, "batch frames height width 1"] | None = None


def create_state(parameters: dict, optimizer: optax.GradientTransformation, averages: int = 1) -> TrainState:
    """The state before the first update.

    Args:
      parameters: the trained ones.
      optimizer: of `train_step`.
      averages: how many moving averages are kept: one for each of `train_step`'s `ema_decays`.
    """
    copies = tuple(jax.tree.map(jnp.copy, parameters) for _ in range(averages))
    return TrainState(jnp.zeros((), jnp.int32), parameters, copies, optimizer.init(parameters), new_health())


def train_step(
    state: TrainState,
    frozen: dict,
    batch: Batch,
    seed: Int[Array, ""],
    teacher: Teacher | None = None,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    ema_decays: tuple[float, ...],
    accumulation_steps: int = 1,
    guards: Guards = ONLY_FINITE,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One update of the trained parameters; the frozen ones have no gradient and no optimiser slots.

    An update that `guards` find unsound is not made; the step counts all the same, so that its batch is passed over.

    Args:
      state: is used up.
      frozen: the parameters that are not trained.
      batch: of all devices.
      seed: of the run.
      teacher: where the objective is distillation.
      graphdef: the model without parameters.
      optimizer: also clips the gradient.
      objective: what is minimised.
      ema_decays: of the moving averages, one for each of `state.averages`.
      accumulation_steps: the batch is divided into so many parts whose gradients are added up one after the other, for
        want of memory. The update is that of the whole batch, to the rounding of a sum.
      guards: what an unsound update is.

    Returns:
      the next state, and as metrics `loss`, `gradient_norm` (before clipping) and those of `train_guards.judge`.

    Raises:
      ValueError: `accumulation_steps` does not divide the batch.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    loss_key, given_key = jax.random.split(key)
    time_key, noise_key = jax.random.split(loss_key)
    times = diffusion_loss.stratified_times(time_key, batch.video.shape[0])
    draws = _draw(times, noise_key, given_key, batch.video, objective)

    teach = _denoiser_of(teacher, graphdef, frozen, objective)

    def loss_of(parameters: dict, part: tuple[Batch, Draws]) -> Array:
        return _loss(nnx.merge(graphdef, parameters, frozen), *part, objective, teach)

    loss, gradient = _mean_gradient(loss_of, state.parameters, (batch, draws), accumulation_steps)
    gradient_norm = optax.tree.norm(gradient)
    health, is_sound, found = judge(state.health, loss, gradient_norm, guards)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.parameters)
    parameters = optax.apply_updates(state.parameters, updates)
    step = state.step + 1
    averages = tuple(
        # While few updates are done the average forgets faster, or it would stay near the initialisation.
        optax.incremental_update(parameters, average, 1.0 - jnp.minimum(decay, step / (step + 10.0)))
        for decay, average in zip(ema_decays, state.averages, strict=True)
    )
    updated, before = (parameters, averages, optimizer_state), state[1:4]
    kept = jax.tree.map(lambda new, old: jnp.where(is_sound, new, old), updated, before)
    return TrainState(step, *kept, health), {"loss": loss, "gradient_norm": gradient_norm} | found


def _mean_gradient(
    loss_of: Callable[[dict, Any], Array], parameters: dict, examples: Any, parts: int
) -> tuple[Array, dict]:
    """Loss and gradient of a mean over examples, `parts` of them one after the other."""
    loss_and_gradient = jax.value_and_grad(loss_of)
    if parts == 1:
        return loss_and_gradient(parameters, examples)

    def divided(array: Array) -> Array:
        if array.shape[0] % parts:
            raise ValueError(f"accumulation_steps={parts} does not divide a batch of {array.shape[0]} clips")
        # Part i is every `parts`-th example from the i-th: each device has its share of every part on it already.
        return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)

    def add(total: tuple[Array, dict], part: Any) -> tuple[tuple[Array, dict], None]:
        return jax.tree.map(jnp.add, total, loss_and_gradient(parameters, part)), None

    examples = jax.tree.map(divided, examples)
    first = jax.tree.map(lambda array: array[0], examples)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(loss_and_gradient, parameters, first)
    )
    total, _ = jax.lax.scan(add, zeros, examples)
    return jax.tree.map(lambda leaf: leaf / parts, total)


def validation_step(
    parameters: dict,
    frozen: dict,
    batch: Batch,
    teacher: Teacher | None = None,
    *,
    graphdef: nnx.GraphDef,
    objective: Objective,
) -> dict[str, Float[Array, ""]]:
    """The loss at evenly spaced noise levels with noise that is always the same: the number that actually falls.

    Returns:
      `loss`, and beside it one to be compared with: of a student `teacher_loss`, the teacher's with as few steps; of
      the conditional model `text_alone_loss`, its own where nothing of the clip is given; of another inflated model
      `image_model_loss`, the same U-Net without its temporal layers, frame by frame.
    """
    teach = _denoiser_of(teacher, graphdef, frozen, objective)
    model = nnx.merge(graphdef, parameters, frozen)
    losses = {"loss": _loss_at_fixed_noise(model, batch, objective, teach)}
    if teacher is not None:
        before = nnx.merge(graphdef, teacher.parameters, frozen)
        losses["teacher_loss"] = _loss_at_fixed_noise(before, batch, objective, teach)
    elif objective.masks:
        text_alone = dataclasses.replace(objective, masks=(("nothing", 1.0),))
        losses["text_alone_loss"] = _loss_at_fixed_noise(model, batch, text_alone)
    elif model.unet.is_inflated:
        model.unet = deflate(model.unet)
        losses["image_model_loss"] = _loss_at_fixed_noise(model, batch, objective)
    return losses


def _loss_at_fixed_noise(
    model: Any, batch: Batch, objective: Objective, teach: TeacherDenoiser | None = None
) -> Float[Array, ""]:
    clips = batch.video.shape[0]
    noise_key, given_key = jax.random.split(jax.random.key(0))
    draws = _draw((jnp.arange(clips) + 0.5) / clips, noise_key, given_key, batch.video, objective)
    return _loss(model, batch, draws, objective, teach)


def _denoiser_of(
    teacher: Teacher | None, graphdef: nnx.GraphDef, frozen: dict, objective: Objective
) -> TeacherDenoiser | None:
    """The teacher as it is sampled, guided and with its threshold: (x_t, t, text) -> x0."""
    if teacher is None:
        return None
    model = nnx.merge(graphdef, teacher.parameters, frozen)
    guided = guided_denoiser(model.predict, objective.teacher)
    empty = model.embed_text(teacher.empty[None])  # once, for all calls and parts of a batch

    def denoise(x_t: Array, t: Array, text: Array) -> Array:
        texts = text, jnp.broadcast_to(empty, text.shape)
        return objective.teacher.to_x0(lambda x_t, t: guided(x_t, t, texts, None))(x_t, t)

    return denoise


def _draw(times: Array, noise_key: Array, given_key: Array, video: Array, objective: Objective) -> Draws:
    draws = Draws(times, jax.random.normal(noise_key, video.shape, jnp.promote_types(video.dtype, jnp.float32)))
    if objective.masks:
        mask = condition_masks.draw_masks(given_key, dict(objective.masks), len(video), video.shape[1:4])
        draws = draws._replace(mask=mask)
    if objective.low_res_factor is None:
        return draws
    clips, is_degraded = video.shape[:1], objective.max_blur or objective.min_jpeg_quality
    level_key, noise_key, *degradation_keys = jax.random.split(given_key, 4 if is_degraded else 2)
    draws = draws._replace(
        # Never 0: a discrete schedule has no level there.
        low_res_level=objective.max_noise_level * (1.0 - jax.random.uniform(level_key, clips)),
        low_res_noise=jax.random.normal(noise_key, video.shape),
    )
    if objective.max_blur:
        draws = draws._replace(blur=objective.max_blur * jax.random.uniform(degradation_keys[0], clips))
    if objective.min_jpeg_quality:
        quality = jax.random.randint(degradation_keys[1], clips, objective.min_jpeg_quality, 101)
        draws = draws._replace(jpeg_quality=quality)
    return draws


def _loss(
    model: Any, batch: Batch, draws: Draws, objective: Objective, teach: TeacherDenoiser | None = None
) -> Float[Array, ""]:
    """The mean loss of clips, conditioned on their text and, where the objective says so, on a part of themselves:

    made small for super-resolution, masked for the conditional model.
    """
    text = model.embed_text(batch.text)
    times, two_steps = draws.times, None
    if objective.student_steps:
        times = distillation.student_times(times, objective.student_steps)
        taught = functools.partial(teach, text=text)
        two_steps = distillation.two_step_x0(taught, objective.schedule, objective.student_steps)
    beside = noise_level = None
    if objective.masks:
        beside = Condition(batch.video, draws.mask).channels()
    elif objective.low_res_factor is not None:
        beside = _low_resolution(batch.video, draws, objective)
        noise_level = objective.schedule.network_time(draws.low_res_level)

    def denoiser(x_t: Array, t: Array) -> Array:
        return model.predict(x_t, objective.schedule.network_time(t), text, beside, noise_level)

    return diffusion_loss.diffusion_loss(
        denoiser,
        batch.video,
        times,
        draws.noise,
        schedule=objective.schedule,
        objective=objective.prediction,
        weighting=objective.weighting,
        teacher=two_steps,
    )[0]


def _low_resolution(video: Array, draws: Draws, objective: Objective) -> Array:
    """What the network is shown of a clip for super-resolution: made small, made worse, and enlarged again."""
    small = low_resolution.downsample(video, objective.low_res_factor)
    if draws.blur is not None:
        small = degradation.blur(small, draws.blur)
    if draws.jpeg_quality is not None:
        small = degradation.jpeg(small, draws.jpeg_quality)
    full_size = low_resolution.upsample(small, *video.shape[2:4], align_corners=objective.align_corners)
    return low_resolution.augment(full_size, draws.low_res_level, draws.low_res_noise, objective.schedule)
