"""From prompts to clips, and from clips to super-resolved clips: the two halves of paper Fig. 3.

Both wrap the network in the same order: network -> guidance -> MultiDiffusion (predictions are averaged) -> x0 ->
threshold -> sampler. A learned variance takes the same way, but for guidance and threshold, which leave it alone.
Prompt number i starts from noise i of the seed, whatever the other prompts are.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.checkpoints.run_directory import Run
from lumiere_jax.diffusion import guidance, low_resolution, noise_schedule, prediction, samplers
from lumiere_jax.diffusion.multidiffusion import multidiffusion, window_starts
from lumiere_jax.models.unet2d import UNet2DConfig

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
    settings = sampling_settings(run.config, steps, guidance_weight, sampler)
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
    settings = sampling_settings(run.config, steps, guidance_weight, sampler)
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
    guidance_weight: float  # DeepFloyd IF: 7 at stage I, 4 at stage II
    threshold: str
    threshold_percentile: float = 0.95  # of "dynamic": DeepFloyd IF's
    threshold_maximum: float = 1.5  # of "dynamic": DeepFloyd IF's stage I; its stage II has 1
    spacing: str = "uniform"
    variance: str = "posterior"  # of ddpm's steps; the other samplers have no use for it
    window: int | None = None  # None: all frames in one pass, as the base model does
    overlap: int = 0
    weights: str = "uniform"
    window_batch: int | None = None

    def __post_init__(self):
        for field, known in (
            ("threshold", ("dynamic", "static", "none")),
            ("sampler", get_args(samplers.Sampler)),
            ("variance", get_args(samplers.Variance)),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r}: use one of {', '.join(known)}")
        if not 0.0 <= self.threshold_percentile <= 1.0:
            raise ValueError(f"threshold_percentile={self.threshold_percentile}: give a share from 0 to 1")
        if self.threshold_maximum < 1.0:
            raise ValueError(f"threshold_maximum={self.threshold_maximum}: give a number from 1, the range of a clip")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: sampling takes at least one step")
        samplers.time_grid(self.steps, self.schedule, self.spacing)  # raises on steps or spacing that do not fit
        if not 0.0 <= self.guidance_weight < 1e3:
            raise ValueError(f"guidance={self.guidance_weight}: use a weight from 0; 1 is no guidance")
        if self.window is not None:
            window_starts(self.window, self.window, self.overlap)  # raises on an overlap out of range

    @property
    def learns_variance(self) -> bool:
        """Whether the sampler asks the network for its variance."""
        return self.sampler == "ddpm" and self.variance == "learned_range"


def sampling_settings(
    config: ml_collections.ConfigDict,
    steps: int | None = None,
    guidance_weight: float | None = None,
    sampler: str | None = None,
) -> Settings:
    """The sampling that a run's config asks for, with what a caller chooses otherwise.

    Raises:
      ValueError: a value is unknown or out of range, or a learned variance is asked of a network that has none.
    """
    defaults = config.sampling
    windows = {}
    if "multidiffusion" in config:
        fields = config.multidiffusion
        windows = {"window": config.clip.frames, "overlap": fields.overlap, "weights": fields.weights}
        windows["window_batch"] = fields.window_batch or None
    schedule = noise_schedule.from_config(config.diffusion.schedule, config.diffusion.log_snr_shift)
    variance = defaults.get("variance", "posterior")
    out_channels = UNet2DConfig(**config.unet).out_channels
    if variance == "learned_range" and out_channels != 6:
        raise ValueError(
            f"sampling.variance='learned_range' needs a network with 6 output channels, 3 of them for the variance, "
            f"and this one has {out_channels}: set it to 'posterior'"
        )
    if "noise_level" in defaults:
        low_resolution.check_level("sampling.noise_level", defaults.noise_level, schedule)
    return Settings(
        schedule=schedule,
        prediction=config.diffusion.prediction,
        sampler=defaults.sampler if sampler is None else sampler,
        steps=defaults.steps if steps is None else steps,
        guidance_weight=float(defaults.guidance if guidance_weight is None else guidance_weight),
        threshold=defaults.threshold,
        # Runs from before these fields have none of them.
        threshold_percentile=defaults.get("threshold_percentile", 0.95),
        threshold_maximum=defaults.get("threshold_maximum", 1.0 if config.diffusion.low_res_factor else 1.5),
        spacing=defaults.get("spacing", "uniform"),
        variance=variance,
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
    model = nnx.merge(graphdef, parameters)
    texts = (model.embed_text(tokens), model.embed_text(empty_tokens))
    predict = model.predict_with_variance if settings.learns_variance else model.predict
    return generate(predict, noise, texts, low_res, noise_level, key, settings)


def generate(
    predict: Callable[..., Array],
    noise: Float[Array, "batch frames height width channels"],
    texts: tuple[Float[Array, "batch tokens text_dim"], Float[Array, "batch tokens text_dim"]],
    low_res: Float[Array, "batch frames height width channels"] | None,
    noise_level: Float[Array, " batch"] | None,
    key: Array,
    settings: Settings,
) -> Float[Array, "batch frames height width channels"]:
    """The whole of sampling but for the text encoder, as a pure function of a network.

    Args:
      predict: the network, called as `TextToVideo.predict`; where `settings.learns_variance`, `predict_with_variance`.
      noise: what the clips start from.
      texts: embeddings of the prompts, and of the empty prompt for guidance.
      low_res: for super-resolution: the noised low-resolution clips at full size.
      noise_level: for super-resolution: their augmentation's level, a diffusion time; predict gets its network time.
      key: of the noise that a stochastic sampler adds.
      settings: from `sampling_settings`.
    """
    schedule = settings.schedule
    level = None if noise_level is None else schedule.network_time(noise_level)

    def conditional(x_t: Array, t: Array, *conditioning: Any) -> Array:
        *low, (text, _), level = conditioning
        return predict(x_t, _per_clip_time(schedule, t, x_t), text, *low, noise_level=level)

    def pair(x_t: Array, t: Array, *conditioning: Any) -> tuple[Array, Array]:
        # Conditional and unconditional in one batch of the network.
        doubled = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x_t, *conditioning[:-2], conditioning[-1]))
        x, *low, level = doubled
        both = predict(x, _per_clip_time(schedule, t, x), jnp.concatenate(conditioning[-2]), *low, noise_level=level)
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

    dynamic = functools.partial(
        guidance.dynamic_threshold, percentile=settings.threshold_percentile, maximum=settings.threshold_maximum
    )
    thresholds = {"dynamic": dynamic, "static": guidance.static_threshold, "none": None}
    to_x0 = prediction.x0_and_variance_denoiser if settings.learns_variance else prediction.x0_denoiser
    return samplers.sample(
        to_x0(conditioned, schedule, settings.prediction, threshold=thresholds[settings.threshold]),
        noise,
        schedule=schedule,
        steps=settings.steps,
        sampler=settings.sampler,
        key=key,
        spacing=settings.spacing,
        variance=settings.variance if settings.learns_variance else "posterior",
    )


def _per_clip_time(schedule: noise_schedule.NoiseSchedule, t: Array, x: Array) -> Array:
    return jnp.broadcast_to(schedule.network_time(t), x.shape[:1])
