"""From prompts to clips, and from clips to super-resolved clips: the two halves of paper Fig. 3.

Both wrap the network in the same order: network -> guidance -> MultiDiffusion (predictions are averaged) -> x0 ->
threshold -> sampler. Prompt number i starts from noise i of the seed, whatever the other prompts are.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.checkpoints.run_directory import Run
from lumiere_jax.diffusion import guidance, low_resolution, noise_schedule, prediction, samplers
from lumiere_jax.diffusion.multidiffusion import multidiffusion, window_starts

Videos = Float[np.ndarray, "prompts frames height width 3"]


def sample_videos(
    run: Run,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    first_number: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    guidance_weight: float | None = None,
    sampler: str | None = None,
) -> Videos:
    """Samples one clip per prompt with a text-to-video (or text-to-image) run.

    Args:
      run: from `load_run`.
      prompts: texts, at most `run.config.text.length` tokens each.
      seed: of the noise; prompt number i starts from noise i.
      first_number: the first prompt's number, where many prompts are sampled in several calls.
      frames: per clip, default the run's; any number (padded to the temporal stride inside the model).
      size: (height, width) in pixels, default the run's.
      steps, guidance_weight, sampler: default those of the run's config.

    Returns:
      Clips in [-1, 1], at `run.config.clip.fps` frames per second.

    Raises:
      ValueError: a super-resolution run, a prompt that is too long, or a number out of range.
    """
    if run.config.diffusion.low_res_factor:
        raise ValueError(f"{run.path} is a super-resolution run: give it as super_resolution, beside a base run")
    settings = _settings(run.config, steps, guidance_weight, sampler)
    height, width = size or (run.config.clip.size, run.config.clip.size)
    frames = run.config.clip.frames if frames is None else frames
    if frames < 1 or height < 1 or width < 1:
        raise ValueError(f"frames={frames} and size={(height, width)} must be positive")
    tokens = encode_prompts(run, prompts)
    key = jax.random.key(seed)
    noise = _noise(key, 0, first_number, (len(prompts), frames, height, width, 3))
    return np.asarray(
        _sample(nnx.graphdef(run.model), run.parameters(), noise, *tokens, None, None, key, settings=settings)
    )


def super_resolve(
    run: Run,
    videos: Videos,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    first_number: int = 0,
    steps: int | None = None,
    guidance_weight: float | None = None,
    sampler: str | None = None,
) -> Float[np.ndarray, "prompts frames large_height large_width 3"]:
    """Super-resolves clips over overlapping windows of frames that MultiDiffusion joins (paper section 3.2).

    Args:
      run: a super-resolution run, whose `clip.frames` is the window.
      videos: in [-1, 1], any number of frames; enlarged by the run's `diffusion.low_res_factor`.
      prompts: one per clip, as for the base model.
      seed, first_number: of the noise, as for the base model.
      steps, guidance_weight, sampler: default those of the run's config.

    Raises:
      ValueError: not a super-resolution run, or prompts and clips differ in number.
    """
    factor = run.config.diffusion.low_res_factor
    if not factor:
        raise ValueError(f"{run.path} is no super-resolution run (its diffusion.low_res_factor is 0)")
    if len(videos) != len(prompts):
        raise ValueError(f"{len(videos)} clips but {len(prompts)} prompts: give one prompt per clip")
    settings = _settings(run.config, steps, guidance_weight, sampler)
    height, width = factor * videos.shape[2], factor * videos.shape[3]
    low_res = low_resolution.upsample(jnp.asarray(videos), height, width)
    level = jnp.full((len(videos),), run.config.sampling.noise_level)
    # Another stream than the base model's, so that the two noises are independent.
    key = jax.random.fold_in(jax.random.key(seed), 2)
    low_res = low_resolution.augment(low_res, level, _noise(key, 0, first_number, low_res.shape), settings.schedule)
    noise = _noise(key, 1, first_number, low_res.shape)
    tokens = encode_prompts(run, prompts)
    return np.asarray(
        _sample(nnx.graphdef(run.model), run.parameters(), noise, *tokens, low_res, level, key, settings=settings)
    )


def encode_prompts(run: Run, prompts: Sequence[str]) -> tuple[Array, Array]:
    """Token ids of the prompts, and of the empty prompt for guidance."""
    length = run.config.text.length
    return tuple(jnp.asarray(run.tokenizer.encode(texts, length)[0]) for texts in (list(prompts), [""] * len(prompts)))


def _noise(key: Array, stream: int, first_number: int, shape: tuple[int, ...]) -> Array:
    """Normal noise whose row i depends on the stream and on `first_number + i` alone."""
    stream_key = jax.random.fold_in(key, stream)
    keys = jax.vmap(lambda row: jax.random.fold_in(stream_key, row))(first_number + jnp.arange(shape[0]))
    return jax.vmap(lambda row_key: jax.random.normal(row_key, shape[1:]))(keys)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a compiled sampling program is specialised to. No value is from the paper but the window's overlap."""

    schedule: noise_schedule.NoiseSchedule
    prediction: str
    sampler: str
    steps: int
    guidance_weight: float
    threshold: str
    window: int | None = None  # None: all frames in one pass, as the base model does
    overlap: int = 0
    weights: str = "uniform"
    window_batch: int | None = None

    def __post_init__(self):
        if self.threshold not in ("dynamic", "static", "none"):
            raise ValueError(f"threshold={self.threshold!r}: use dynamic, static or none")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: sampling takes at least one step")
        if not 0.0 <= self.guidance_weight < 1e3:
            raise ValueError(f"guidance={self.guidance_weight}: use a weight from 0; 1 is no guidance")
        if self.window is not None:
            window_starts(self.window, self.window, self.overlap)  # raises on an overlap out of range


def _settings(
    config: ml_collections.ConfigDict, steps: int | None, guidance_weight: float | None, sampler: str | None
) -> Settings:
    defaults = config.sampling
    windows = {}
    if "multidiffusion" in config:
        fields = config.multidiffusion
        windows = {"window": config.clip.frames, "overlap": fields.overlap, "weights": fields.weights}
        windows["window_batch"] = fields.window_batch or None
    return Settings(
        schedule=noise_schedule.from_config(config.diffusion.schedule, config.diffusion.log_snr_shift),
        prediction=config.diffusion.prediction,
        sampler=defaults.sampler if sampler is None else sampler,
        steps=defaults.steps if steps is None else steps,
        guidance_weight=float(defaults.guidance if guidance_weight is None else guidance_weight),
        threshold=defaults.threshold,
        **windows,
    )


@functools.partial(jax.jit, static_argnames=("graphdef", "settings"))
def _sample(
    graphdef: nnx.GraphDef,
    parameters: dict,
    noise: Array,
    tokens: Array,
    empty_tokens: Array,
    low_res: Array | None,
    noise_level: Array | None,
    key: Array,
    *,
    settings: Settings,
) -> Array:
    model, schedule = nnx.merge(graphdef, parameters), settings.schedule
    texts = (model.embed_text(tokens), model.embed_text(empty_tokens))
    level = None if noise_level is None else schedule.network_time(noise_level)

    def conditional(x_t: Array, t: Array, *conditioning: Any) -> Array:
        *low, (text, _), level = conditioning
        return model.predict(x_t, _per_clip_time(schedule, t, x_t), text, *low, noise_level=level)

    def pair(x_t: Array, t: Array, *conditioning: Any) -> tuple[Array, Array]:
        # Conditional and unconditional in one batch of the network.
        doubled = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x_t, *conditioning[:-2], conditioning[-1]))
        x, *low, level = doubled
        both = model.predict(
            x, _per_clip_time(schedule, t, x), jnp.concatenate(conditioning[-2]), *low, noise_level=level
        )
        return tuple(jnp.split(both, 2))

    weight = settings.guidance_weight
    denoiser = conditional if weight == 1.0 else guidance.classifier_free_guidance(pair, weight)
    if settings.window is not None:
        denoiser = multidiffusion(
            denoiser,
            window=settings.window,
            overlap=settings.overlap,
            weights=settings.weights,
            window_batch=settings.window_batch,
        )
    per_frame = () if low_res is None else (low_res,)

    def conditioned(x_t: Array, t: Array) -> Array:
        if settings.window is None:
            return denoiser(x_t, t, *per_frame, texts, level)
        return denoiser(x_t, t, *per_frame, per_clip=(texts, level))

    thresholds = {"dynamic": guidance.dynamic_threshold, "static": guidance.static_threshold, "none": None}
    denoise_x0 = prediction.x0_denoiser(
        conditioned, schedule, settings.prediction, threshold=thresholds[settings.threshold]
    )
    return samplers.sample(
        denoise_x0, noise, schedule=schedule, steps=settings.steps, sampler=settings.sampler, key=key
    )


def _per_clip_time(schedule: noise_schedule.NoiseSchedule, t: Array, x: Array) -> Array:
    return jnp.broadcast_to(schedule.network_time(t), x.shape[:1])
