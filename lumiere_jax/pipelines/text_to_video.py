"""From prompts to clips, and from clips to super-resolved clips: the two halves of paper Fig. 3.

Both wrap the network in the same order: network -> guidance -> MultiDiffusion (predictions are averaged) -> x0 ->
threshold -> sampler. A learned variance takes the same way, but for guidance and threshold, which leave it alone.
Prompt number i gets noise i of the seed, whatever the other prompts are, and however many devices share the work:
those of the run's mesh, `data` of which divide the prompts and `rows` the height of each clip.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from lumiere_jax.checkpoints.run_directory import Run
from lumiere_jax.diffusion import guidance, low_resolution, noise_schedule, prediction, samplers
from lumiere_jax.diffusion.multidiffusion import multidiffusion, window_starts
from lumiere_jax.distributed import partitioning, processes
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

    In a run of several processes all of them call it with the same arguments, and all get all clips.

    Args:
      run: from `load_run`.
      prompts: texts, at most `run.config.text.length` tokens each; any number, but a multiple of the devices along
        `data` uses them best.
      seed: of the noise; prompt number i gets noise i.
      first_number: the first prompt's number, where many prompts are sampled in several calls.
      frames: per clip, default the run's; any number (padded to the temporal stride inside the model).
      size: (height, width) in pixels, default the run's.
      steps, guidance_weight, sampler: default those of the run's config.

    Returns:
      Clips in [-1, 1], at `run.config.clip.fps` frames per second.

    Raises:
      ValueError: a super-resolution run, a prompt that is too long, a number out of range, or a height that the mesh
        does not divide.
    """
    if run.config.diffusion.low_res_factor:
        raise ValueError(f"{run.path} is a super-resolution run: give it as super_resolution, beside a base run")
    settings = sampling_settings(run.config, steps, guidance_weight, sampler)
    height, width = size or (run.config.clip.size, run.config.clip.size)
    frames = run.config.clip.frames if frames is None else frames
    if frames < 1 or height < 1 or width < 1:
        raise ValueError(f"frames={frames} and size={(height, width)} must be positive")
    return _sample_on_mesh(run, prompts, first_number, jax.random.key(seed), (frames, height, width), settings)


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
      ValueError: not a super-resolution run, prompts and clips differ in number, or a height that the mesh does not
        divide.
    """
    factor = run.config.diffusion.low_res_factor
    if not factor:
        raise ValueError(f"{run.path} is no super-resolution run (its diffusion.low_res_factor is 0)")
    if len(videos) != len(prompts):
        raise ValueError(f"{len(videos)} clips but {len(prompts)} prompts: give one prompt per clip")
    settings = sampling_settings(run.config, steps, guidance_weight, sampler)
    frames, height, width = videos.shape[1:4]
    # Another stream than the base model's, so that the two noises are independent.
    key = jax.random.fold_in(jax.random.key(seed), 2)
    clip = (frames, factor * height, factor * width)
    return _sample_on_mesh(run, prompts, first_number, key, clip, settings, videos, run.config.sampling.noise_level)


def sample_in_batches(
    run: Run,
    super_resolution: Run | None,
    prompts: Sequence[str],
    *,
    seed: int,
    batch_size: int | None = None,
    **settings: Any,
) -> Iterator[tuple[Videos, Videos | None]]:
    """Samples many prompts, a batch at a time by one compiled program; for several processes see `sample_videos`.

    Args:
      run: a text-to-video run.
      super_resolution: a super-resolution run, or None.
      prompts: the texts; the number of each is its place among them.
      seed: of the noise.
      batch_size: clips that are sampled at once; None: four, or as many more as the devices along `data` need.
      **settings: the other arguments of `sample_videos`.

    Returns:
      for each batch, when it is asked for, its base clips and, with `super_resolution`, those at the higher resolution.

    Raises:
      ValueError: a prompt that is too long for one of the runs, or a batch size that the mesh does not divide, before
        any work; else as `sample_videos` and `super_resolve`.
    """
    processes.check_same("the prompts and how they are sampled", (list(prompts), seed, batch_size, settings))
    if not prompts:
        raise ValueError("prompts=[]: give at least one")
    for each in (run, super_resolution):
        if each is not None:
            encode_prompts(each, prompts)
            _check_batch_size(each, batch_size)
    size = min(batch_size or _next_multiple(4, run.mesh.shape["data"]), len(prompts))
    return _batches(run, super_resolution, prompts, size, seed, settings)


def _batches(
    run: Run, super_resolution: Run | None, prompts: Sequence[str], size: int, seed: int, settings: dict[str, Any]
) -> Iterator[tuple[Videos, Videos | None]]:
    for first in range(0, len(prompts), size):
        batch = list(prompts[first : first + size])
        # Always a full batch, so that one compiled program serves all; what is too much is dropped.
        full = batch + [""] * (size - len(batch))
        base, high = sample_videos(run, full, seed=seed, first_number=first, **settings), None
        if super_resolution is not None:
            high = super_resolve(super_resolution, base, full, seed=seed, first_number=first)[: len(batch)]
        yield base[: len(batch)], high


def _check_batch_size(run: Run, batch_size: int | None) -> None:
    data = run.mesh.shape["data"]
    if batch_size is not None and batch_size % data:
        raise ValueError(
            f"batch_size={batch_size} cannot be divided over {data} devices along data: make it a multiple of {data}, "
            "or let more devices share a clip (--mesh_rows)"
        )


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def encode_prompts(
    run: Run, prompts: Sequence[str]
) -> tuple[Int32[np.ndarray, "prompts tokens"], Int32[np.ndarray, "prompts tokens"]]:
    """Token ids of the prompts, and of the empty prompt for guidance."""
    length = run.config.text.length
    return tuple(run.tokenizer.encode(texts, length)[0] for texts in (list(prompts), [""] * len(prompts)))


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
        align_corners=config.diffusion.align_corners,
        **windows,
    )


def _sample_on_mesh(
    run: Run,
    prompts: Sequence[str],
    first_number: int,
    key: Array,
    clip: tuple[int, int, int],
    settings: Settings,
    low_res: np.ndarray | None = None,
    noise_level: float = 0.0,
) -> Videos:
    """One call of the compiled program, for one batch; every process has the whole batch, and gets all of its clips."""
    mesh, rows = run.mesh, run.mesh.shape["rows"]
    if clip[1] % rows:
        raise ValueError(
            f"clips of height {clip[1]} cannot be divided over rows={rows} devices: choose another height, or another "
            "--mesh_rows"
        )
    # The devices along data get equally many, if need be clips that nobody asked for.
    size = _next_multiple(len(prompts), mesh.shape["data"])
    tokens = encode_prompts(run, [*prompts, *[""] * (size - len(prompts))])
    if low_res is not None:
        low_res = np.pad(low_res, [(0, size - len(prompts)), *[(0, 0)] * 4])
    numbers = np.arange(first_number, first_number + size, dtype=np.int32)
    batch = partitioning.divide_batch(mesh, (numbers, tokens, low_res))
    sharding = partitioning.batch_sharding(mesh)
    sampled = sample_program(
        nnx.graphdef(run.model),
        run.parameters(),
        key,
        *batch,
        noise_level,
        clip=clip,
        settings=settings,
        sharding=sharding,
    )
    return partitioning.videos_to_hosts(mesh, sampled)[: len(prompts)]


@functools.partial(jax.jit, static_argnames=("graphdef", "clip", "settings", "sharding"))
def sample_program(
    graphdef: nnx.GraphDef,
    parameters: dict,
    key: Array,
    numbers: Int32[Array, " batch"],
    tokens: tuple[Array, Array],
    low_res: Float[Array, "batch frames low_height low_width 3"] | None,
    noise_level: Float[Array, ""] | float,
    *,
    clip: tuple[int, int, int],
    settings: Settings,
    sharding: jax.sharding.NamedSharding,
) -> Float[Array, "batch frames height width 3"]:
    """All of sampling, jitted.

    Args:
      graphdef, parameters: of a `TextToVideo`.
      key: of all noise.
      numbers: of the prompts; a clip's noise depends on the key and its number alone.
      tokens: of the prompts, and of the empty prompt: ids, or embeddings that were made ahead of time.
      low_res: for super-resolution, in [-1, 1].
      noise_level: for super-resolution: of its augmentation.
      clip: (frames, height, width).
      settings: from `sampling_settings`.
      sharding: of videos.
    """

    def keys(stream: int) -> Array:
        """One for each clip, which depends on the stream and on the clip's number alone."""
        stream_key = jax.random.fold_in(key, stream)
        return jax.vmap(lambda number: jax.random.fold_in(stream_key, number))(numbers)

    def noise(stream: int) -> Array:
        drawn = jax.vmap(lambda clip_key: jax.random.normal(clip_key, (*clip, 3)))(keys(stream))
        return jax.lax.with_sharding_constraint(drawn, sharding)

    level, x_T = None, noise(0)
    if low_res is not None:
        level = jnp.full(numbers.shape, noise_level)
        low_res = low_resolution.upsample(low_res, *clip[1:], align_corners=settings.align_corners)
        low_res = jax.lax.with_sharding_constraint(low_res, sharding)
        low_res, x_T = low_resolution.augment(low_res, level, x_T, settings.schedule), noise(1)
    model = nnx.merge(graphdef, parameters)
    texts = tuple(model.embed_text(ids) for ids in tokens)
    predict = model.predict_with_variance if settings.learns_variance else model.predict
    on_mesh = partitioning.on_mesh(sharding.mesh, generate)
    sampled = on_mesh(predict, x_T, texts, low_res, level, keys(2), settings)
    return jax.lax.with_sharding_constraint(sampled, sharding)


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
      key: of the noise that a stochastic sampler adds, for all clips or one for each.
      settings: from `sampling_settings`.
    """
    schedule = settings.schedule
    level = None if noise_level is None else schedule.network_time(noise_level)

    def conditional(x_t: Array, t: Array, *conditioning: Any) -> Array:
        *low, (text, _), level = conditioning
        return predict(x_t, _per_clip_time(schedule, t, x_t), text, *low, noise_level=level)

    def pair(x_t: Array, t: Array, *conditioning: Any) -> tuple[Array, Array]:
        # Conditional and unconditional in one batch of the network, side by side: both on the device of their clip.
        *low, texts, level = conditioning
        x, *low, level = jax.tree.map(lambda array: jnp.repeat(array, 2, axis=0), (x_t, *low, level))
        text = jnp.stack(texts, axis=1).reshape(-1, *texts[0].shape[1:])
        both = predict(x, _per_clip_time(schedule, t, x), text, *low, noise_level=level)
        both = both.reshape(-1, 2, *both.shape[1:])
        return both[:, 0], both[:, 1]

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
