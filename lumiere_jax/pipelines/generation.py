"""Sampling as pure functions of a network: what a config asks for, guidance, and the loop over noise levels.

Everything wraps the network in the same order: network -> guidance -> MultiDiffusion (predictions are averaged) ->
x0 -> threshold -> what is given of the clip -> approximations -> sampler. A learned variance takes the same way, but
for guidance, threshold and what is given, which leave it alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from lumiere_jax.diffusion import guidance, low_resolution, noise_schedule, prediction, samplers
from lumiere_jax.diffusion.approximations import Approximations, half_rate
from lumiere_jax.diffusion.condition import Condition
from lumiere_jax.diffusion.multidiffusion import Windows, multidiffusion
from lumiere_jax.models.unet2d_config import UNet2DConfig


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
    align_corners: bool = True  # of the enlarged low-resolution video, as in training
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # the diffusion times at which clips are guided
    guidance_rescale: float = 0.0  # share of `guidance.rescale`
    windows: Windows | None = None  # None: all frames in one pass, as the base model makes them
    window_batch: int | None = None  # windows of each clip that `generate` denoises at once; None: all
    approximations: Approximations = dataclasses.field(default_factory=Approximations)
    start: float = 1.0  # diffusion time from which on a clip is sampled; below 1 it starts from another one (SDEdit)
    is_conditional: bool = False  # whether the network is that of the conditional model
    zero_shot: bool = False  # whether what is given replaces predictions, and no network is told of it
    resample: int = 1  # how often each step is taken, see `samplers.resampled`; with zero_shot alone

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
        self.times()  # raises on steps, spacing or a start that do not fit
        if self.resample != 1:
            if not self.zero_shot:
                raise ValueError(f"resample={self.resample} is for what is given to no conditional model: zero_shot")
            jax.eval_shape(self.plan)  # raises for steps that cannot be taken again
        if not 0.0 <= self.guidance_weight < 1e3:
            raise ValueError(f"guidance={self.guidance_weight}: use a weight from 0; 1 is no guidance")
        first, last = self.guidance_interval
        if not 0.0 <= first <= last <= 1.0:
            raise ValueError(f"guidance_interval={self.guidance_interval}: give two diffusion times, 0 to 1, in order")
        if not 0.0 <= self.guidance_rescale <= 1.0:
            raise ValueError(f"guidance_rescale={self.guidance_rescale}: give a share from 0, which is none, to 1")
        if self.approximations.deep_features_every > 1 and (self.windows or (first, last) != (0.0, 1.0)):
            raise ValueError(
                f"deep_features_every={self.approximations.deep_features_every} is for clips that are sampled in one "
                f"pass and guided at all times, not with windows={self.windows} and guidance_interval="
                f"{self.guidance_interval}"
            )

    @property
    def learns_variance(self) -> bool:
        """Whether the sampler asks the network for its variance."""
        return self.sampler == "ddpm" and self.variance == "learned_range"

    @functools.cached_property
    def calls(self) -> int:
        """How often a clip goes through the network; a guided call counts once."""
        return jax.eval_shape(self.plan).calls

    @property
    def evaluations_a_call(self) -> int:
        """2 with guidance, which asks the network with and without the text; else 1."""
        return 1 if self.guidance_weight == 1.0 else 2

    def times(self) -> Float[np.ndarray, " times"]:
        """The diffusion times that the sampler goes along."""
        return samplers.tail(samplers.time_grid(self.steps, self.schedule, self.spacing), self.start, self.schedule)

    def plan(self) -> samplers.Plan:
        """The sampler's steps."""
        variance = self.variance if self.learns_variance else "posterior"
        steps = samplers.plan(self.sampler, self.schedule, self.times(), variance=variance)
        return samplers.resampled(steps, self.schedule, self.times(), self.resample)

    def to_x0(self, denoiser: prediction.Denoiser) -> prediction.Denoiser | prediction.VarianceDenoiser:
        """The x0 denoiser, with threshold and learned variance, of one that predicts as the network does."""
        dynamic = functools.partial(
            guidance.dynamic_threshold, percentile=self.threshold_percentile, maximum=self.threshold_maximum
        )
        thresholds = {"dynamic": dynamic, "static": guidance.static_threshold, "none": None}
        to_x0 = prediction.x0_and_variance_denoiser if self.learns_variance else prediction.x0_denoiser
        return to_x0(denoiser, self.schedule, self.prediction, threshold=thresholds[self.threshold])


def sampling_settings(
    config: ml_collections.ConfigDict,
    *,
    steps: int | None = None,
    guidance_weight: float | None = None,
    guidance_interval: Sequence[float] | None = None,
    guidance_rescale: float | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    window: tuple[int, int] | None = None,
    tile: tuple[int, int] | None = None,
    weights: str | None = None,
    window_batch: int | None = None,
    approximations: Approximations | None = None,
    start: float = 1.0,
    zero_shot: bool = False,
    resample: int = 1,
) -> Settings:
    """The sampling that a run's config asks for, with what a caller chooses otherwise.

    Args:
      config: of a run.
      steps, guidance_weight, guidance_interval, guidance_rescale, sampler, spacing: see `Settings`; default: the
        config's.
      window: (frames of a window, frames that neighbours share): MultiDiffusion in time. Default: the config's for
        super-resolution, else none.
      tile: (pixels of a side, pixels that neighbours share): MultiDiffusion in space. Default: likewise.
      weights: of windows in their average, see `multidiffusion.window_weights`; default: the config's for
        super-resolution, else uniform, as the paper's.
      window_batch: see `Settings`.
      approximations: default: none.
      start, zero_shot, resample: see `Settings`.

    Raises:
      ValueError: a value is unknown or out of range, a learned variance is asked of a network that has none, or
        approximations of super-resolution, which has none.
    """
    defaults = config.sampling
    fields = config.get("multidiffusion", {})
    if fields:
        window = (config.clip.frames, fields.overlap) if window is None else window
        if tile is None and fields.get("tile", 0):
            tile = (fields.tile, fields.tile_overlap)
    weights = fields.get("weights", "uniform") if weights is None else weights
    windows = Windows(window, tile, tile, weights) if window or tile else None
    interval = tuple(defaults.get("guidance_interval", (0.0, 1.0)))
    schedule = noise_schedule.from_config(config.diffusion.schedule, config.diffusion.log_snr_shift)
    variance = defaults.get("variance", "posterior")
    out_channels = UNet2DConfig(**config.unet).out_channels
    if variance == "learned_range" and out_channels != 6:
        raise ValueError(
            f"sampling.variance='learned_range' needs a network with 6 output channels, 3 of them for the variance, "
            f"and this one has {out_channels}: set it to 'posterior'"
        )
    if approximations is not None and config.diffusion.low_res_factor:
        raise ValueError(f"{approximations}: only text-to-video is approximated, not super-resolution")
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
        spacing=defaults.get("spacing", "uniform") if spacing is None else spacing,
        variance=variance,
        align_corners=config.diffusion.align_corners,
        guidance_interval=interval if guidance_interval is None else tuple(guidance_interval),
        guidance_rescale=defaults.get("guidance_rescale", 0.0) if guidance_rescale is None else guidance_rescale,
        windows=windows,
        window_batch=window_batch,
        approximations=approximations or Approximations(),
        start=start,
        is_conditional="conditioning" in config,
        zero_shot=zero_shot,
        resample=resample,
    )


def check_window(window: tuple[int, int] | None, frames: int) -> None:
    """Raises a ValueError if a window that a caller chose (see `sampling_settings`) is longer than the clip.

    A config's may be: a clip that is shorter than it is a single window.
    """
    if window is not None and window[0] > frames:
        raise ValueError(f"window={window[0]} is longer than the clip, which has {frames} frames")


def generate(
    predict: Callable[..., Any],
    noise: Float[Array, "batch frames height width channels"],
    texts: tuple[Float[Array, "batch tokens text_dim"], Float[Array, "batch tokens text_dim"]],
    beside: Float[Array, "batch frames height width more"] | None,
    noise_level: Float[Array, " batch"] | None,
    key: Array,
    settings: Settings,
    sharding: jax.sharding.NamedSharding | None = None,
    watch: Callable[[Array], Any] = lambda x0: None,
    given: Condition | None = None,
) -> tuple[Float[Array, "batch frames height width channels"], Any]:
    """The whole of sampling but for the text encoder, as a pure function of a network.

    Args:
      predict: the network, called as `TextToVideo.predict`; where `settings.learns_variance`, `predict_with_variance`.
        Where its deep features are used several times, `predict_with_deep_features`.
      noise: what the clips start from: noise, or clips noised at `settings.start`.
      texts: embeddings of the prompts, and of what guidance leads away from: the empty prompt, or a negative one.
      beside: what the network gets in further channels, see `TextToVideo.predict`.
      noise_level: for super-resolution: their augmentation's level, a diffusion time; predict gets its network time.
      key: of the noise that a stochastic sampler adds, for all clips or one for each.
      settings: from `sampling_settings`.
      sharding: of the windows, where there are: see `multidiffusion`.
      watch: what to keep of each x0 prediction, see `samplers.follow_and_watch`.
      given: what of the clips is put into each prediction in its place: see `replacing`.

    Returns:
      clips, and what was kept.
    """
    if settings.approximations.deep_features_every > 1:
        denoise, deep = _with_deep_features(predict, noise, texts, settings)
        return samplers.follow_and_watch(settings.plan(), denoise, noise, key, watch, deep)
    denoiser = guided_denoiser(predict, settings)
    if settings.windows is not None:
        denoiser = multidiffusion(denoiser, settings.windows, window_batch=settings.window_batch, sharding=sharding)
    per_frame = () if beside is None else (beside,)

    def conditioned(x_t: Array, t: Array) -> Array:
        if settings.windows is None:
            return denoiser(x_t, t, *per_frame, texts, noise_level)
        return denoiser(x_t, t, *per_frame, per_clip=(texts, noise_level))

    denoise, first = settings.to_x0(conditioned), settings.approximations.half_rate_from
    denoise = denoise if given is None else replacing(denoise, given)
    denoise = denoise if first is None else half_rate(denoise, settings.schedule, first)
    return samplers.follow_and_watch(settings.plan(), denoise, noise, key, watch)


def replacing(
    denoise: prediction.Denoiser | prediction.VarianceDenoiser, given: Condition
) -> prediction.Denoiser | prediction.VarianceDenoiser:
    """An x0 denoiser that predicts what is given: conditional generation without a conditional model.

    As each step of a sampler is a linear combination of state, prediction and noise, the state there is, at every time,
    what is given with noise of that time's level.
    """

    def denoiser(x_t: Array, t: Array) -> Any:
        predicted = denoise(x_t, t)
        if isinstance(predicted, tuple):
            x0, fraction = predicted
            return given.paste(x0), fraction
        return given.paste(predicted)

    return denoiser


def _with_deep_features(
    predict: Callable[..., tuple[Array, Array]], noise: Array, texts: tuple[Array, Array], settings: Settings
) -> tuple[Callable[..., tuple[Any, Array]], Array]:
    """A denoiser `(x_t, t, number of the call, deep) -> (x0, deep)`, and what to begin with."""
    every, shallow = settings.approximations.deep_features_every, settings.approximations.shallow_layers

    def call(x_t: Array, t: Array, deep: Array | None) -> tuple[Any, Array]:
        kept = []  # past guidance and threshold, which know nothing of features

        def network(*inputs: Array, noise_level: None) -> Array:
            prediction, features = predict(*inputs, shallow=shallow, deep=deep)
            kept.append(features)
            return prediction if settings.learns_variance else prediction[..., : noise.shape[-1]]

        guided = guided_denoiser(network, settings)
        x0 = settings.to_x0(lambda x_t, t: guided(x_t, t, texts, None))(x_t, t)
        return x0, kept.pop()

    def denoise(x_t: Array, t: Array, number: Array, deep: Array) -> tuple[Any, Array]:
        is_whole = number % every == 0
        return jax.lax.cond(is_whole, lambda deep: call(x_t, t, None), lambda deep: call(x_t, t, deep), deep)

    _, deep = jax.eval_shape(call, noise, jnp.zeros(()), None)
    return denoise, jnp.zeros(deep.shape, deep.dtype)


def guided_denoiser(predict: Callable[..., Array], settings: Settings) -> prediction.Denoiser:
    """A network as a denoiser `(x_t, t, *beside, texts, noise_level)`, guided where the settings ask for it.

    t is a scalar or, where all times are guided, one for each clip.

    Args:
      predict, settings: as for `generate`, and of the denoiser's arguments `texts` and `noise_level`, too.
    """
    schedule = settings.schedule

    def network_level(noise_level: Array | None) -> Array | None:
        return None if noise_level is None else schedule.network_time(noise_level)

    def conditional(x_t: Array, t: Array, *conditioning: Any) -> Array:
        *beside, (text, _), level = conditioning
        return predict(x_t, _per_clip_time(schedule, t, x_t), text, *beside, noise_level=network_level(level))

    def pair(x_t: Array, t: Array, *conditioning: Any) -> tuple[Array, Array]:
        # Conditional and unconditional in one batch of the network, side by side: both on the device of their clip.
        *beside, texts, level = conditioning
        x, *beside, level = jax.tree.map(lambda array: jnp.repeat(array, 2, axis=0), (x_t, *beside, level))
        text = jnp.stack(texts, axis=1).reshape(-1, *texts[0].shape[1:])
        both = predict(x, _per_clip_time(schedule, t, x), text, *beside, noise_level=network_level(level))
        both = both.reshape(-1, 2, *both.shape[1:])
        return both[:, 0], both[:, 1]

    if settings.guidance_weight == 1.0:
        return conditional
    guided = guidance.classifier_free_guidance(pair, settings.guidance_weight, settings.guidance_rescale)
    first, last = settings.guidance_interval
    if (first, last) == (0.0, 1.0):
        return guided

    def guided_in_the_interval(x_t: Array, t: Array, *conditioning: Any) -> Array:
        is_inside = (t >= first) & (t <= last)
        return jax.lax.cond(is_inside, guided, conditional, x_t, t, *conditioning)

    return guided_in_the_interval


def _per_clip_time(schedule: noise_schedule.NoiseSchedule, t: Array, x: Array) -> Array:
    time = schedule.network_time(t)
    return jnp.broadcast_to(time, x.shape[:1]) if time.ndim == 0 else jnp.repeat(time, len(x) // len(time))
