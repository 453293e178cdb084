"""From prompts to clips: the base model, all frames of a clip in one pass (paper section 3.1).

Prompt number i gets noise i of the seed, whatever the other prompts are, and however many devices share the work:
those of the run's mesh, `data` of which divide the prompts and `rows` the height of each clip.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.diffusion.approximations import Approximations
from lumiere_jax.diffusion.clip_noise import clip_key
from lumiere_jax.diffusion.condition import Condition, for_each, nothing_given
from lumiere_jax.distributed import partitioning, processes
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.generation import Settings, check_window, generate, sampling_settings

Videos = Float[np.ndarray, "prompts frames height width 3"]


# Gets the middle frame of each clip, in [-1, 1], as each call of the network predicts it, while sampling goes on.
OnPrediction = Callable[[Float[Array, "prompts height width 3"]], None]


class Sampled(NamedTuple):
    """Clips in [-1, 1], and how they came about, where that was asked for: see `watch_denoising`."""

    videos: Videos
    denoising: Float[np.ndarray, "prompts calls height width 3"] | None


def sample_videos(
    run: Run,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    first_number: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    negative_prompt: str = "",
    given: Condition | None = None,
    original: Float[np.ndarray, "*prompts frames height width 3"] | None = None,
    **choices: Any,
) -> Videos:
    """Samples one clip per prompt with a text-to-video (or text-to-image) run.

    In a run of several processes all of them call it with the same arguments, and all get all clips.

    Args:
      run: from `load_run`.
      prompts: texts, at most `run.config.text.length` tokens each; any number, but a multiple of the devices along
        `data` uses them best.
      seed: of the noise; prompt number i gets noise i.
      first_number: the first prompt's number, where many prompts are sampled in several calls.
      frames: per clip, default the run's or those of what is given; any number (padded to the temporal stride inside
        the model).
      size: (height, width) in pixels, default likewise.
      negative_prompt: what guidance leads away from; by default from clips of whatever they show.
      given: what of the clips is given, of all or of each: see `conditional_generation.py`.
      original: clips to start from where `start` is below 1, for all or for each: see `video_editing.py`.
      **choices: of `sampling_settings`: steps, guidance_weight, guidance_interval, guidance_rescale, sampler, spacing,
        window, weights, window_batch, approximations, start, zero_shot, resample. With a window clips are made in
        windows of so many frames, which MultiDiffusion joins: for clips that are longer than the model's.

    Returns:
      Clips in [-1, 1], at `run.config.clip.fps` frames per second.

    Raises:
      ValueError: a super-resolution run, a prompt that is too long, a number out of range, a window that is longer
        than the clip, a negative prompt without guidance, approximations that do not fit, a height that the mesh
        does not divide, or something given that is not of the clip's size.
    """
    options = {"first_number": first_number, "frames": frames, "size": size, "negative_prompt": negative_prompt}
    options |= {"given": given, "original": original}
    return _sample(run, prompts, seed, watch=False, **options, **choices).videos


def watch_denoising(run: Run, prompts: Sequence[str], *, seed: int = 0, **options: Any) -> Sampled:
    """Samples clips, and shows how they come about: the middle frame as each call of the network predicts it.

    Args:
      run, prompts, seed, **options: as for `sample_videos`.

    Returns:
      the clips of `sample_videos`, and the predictions of their middle frame, in the order of sampling.

    Raises:
      ValueError: as `sample_videos`.
    """
    return _sample(run, prompts, seed, watch=True, **options)


def _sample(
    run: Run,
    prompts: Sequence[str],
    seed: int,
    *,
    watch: bool,
    on_prediction: OnPrediction | None = None,
    first_number: int = 0,
    negative_prompt: str = "",
    given: Condition | None = None,
    original: np.ndarray | None = None,
    **choices: Any,
) -> Sampled:
    options = {"negative_prompt": negative_prompt, "given": given, "original": original}
    clip, settings = _clip_and_settings(run, len(prompts), **options, **choices)
    # The devices along data get equally many, if need be clips that nobody asked for.
    count = _next_multiple(len(prompts), run.mesh.shape["data"])
    padded = [*prompts, *[""] * (count - len(prompts))]
    tokens = encode_prompts(run, padded, negative_prompt=negative_prompt)
    numbers = np.arange(first_number, first_number + count, dtype=np.int32)
    given = nothing_given(*clip) if given is None and settings.is_conditional else given

    def each(videos: np.ndarray) -> np.ndarray:
        return _filled_up(for_each(videos, len(prompts)), count)

    inputs = (numbers, tokens, *jax.tree.map(each, (given, original)))
    return _first(
        len(prompts), _sample_on_mesh(run, jax.random.key(seed), inputs, clip, settings, watch, on_prediction)
    )


def _filled_up(videos: np.ndarray, count: int) -> np.ndarray:
    """`count` videos, those that nobody asked for black."""
    return np.concatenate([videos, np.zeros((count - len(videos), *videos.shape[1:]), videos.dtype)])


def _clip_and_settings(
    run: Run,
    prompts: int,
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    negative_prompt: str = "",
    given: Condition | None = None,
    original: np.ndarray | None = None,
    **choices: Any,
) -> tuple[tuple[int, int, int], Settings]:
    """(frames, height, width) and the settings that a caller's choices come to; raises for those that do not fit."""
    if run.config.diffusion.low_res_factor:
        raise ValueError(f"{run.path} is a super-resolution run: give it as super_resolution, beside a base run")
    settings = sampling_settings(run.config, **choices)
    videos = [for_each(video, prompts) for video in (*(given or ()), original) if video is not None]
    shapes = [video.shape[1:4] for video in videos]
    default = shapes[0] if shapes else (run.config.clip.frames, run.config.clip.size, run.config.clip.size)
    height, width = size or default[1:]
    frames = default[0] if frames is None else frames
    if frames < 1 or height < 1 or width < 1:
        raise ValueError(f"frames={frames} and size={(height, width)} must be positive")
    if height % run.mesh.shape["rows"]:
        raise ValueError(
            f"clips of height {height} cannot be divided over rows={run.mesh.shape['rows']} devices: choose another "
            "height, or another --mesh_rows"
        )
    if any(shape != (frames, height, width) for shape in shapes):
        raise ValueError(f"clips of {(frames, height, width)} are asked for, but what is given has {shapes}")
    _check_given(run, given, original, settings)
    check_window(choices.get("window"), frames)
    check_negative_prompt(negative_prompt, settings)
    settings.approximations.check(frames, run.model.unet.config.shallow_layers)
    return (frames, height, width), settings


def _check_given(run: Run, given: Condition | None, original: np.ndarray | None, settings: Settings) -> None:
    """Raises a ValueError for conditions that the network or the settings have no use for."""
    if given is not None and not settings.is_conditional and not settings.zero_shot:
        raise ValueError(
            f"{run.path} is no conditional model: fine-tune it (configs/conditional.py), or ask for zero_shot, which "
            "replaces what is given at every step"
        )
    if settings.zero_shot and settings.is_conditional:
        raise ValueError(f"{run.path} is a conditional model, which sees what is given: do without zero_shot")
    if settings.zero_shot and given is None:
        raise ValueError("zero_shot says how what is given is made use of, and nothing is given")
    if original is None and settings.start < 1.0:
        raise ValueError(f"start={settings.start} is where an original clip is taken up, and there is none")
    if (given is not None or settings.is_conditional) and settings.approximations != Approximations():
        raise ValueError(f"{settings.approximations}: only plain text-to-video is approximated, not conditional models")


def _first(count: int, clips: Sampled) -> Sampled:
    return Sampled(clips.videos[:count], None if clips.denoising is None else clips.denoising[:count])


def sample_in_batches(
    run: Run,
    prompts: Sequence[str],
    *,
    seed: int,
    batch_size: int | None = None,
    first: int = 0,
    watch: bool = False,
    on_prediction: OnPrediction | None = None,
    **choices: Any,
) -> Iterator[Sampled]:
    """Samples many prompts, a batch at a time by one compiled program; for several processes see `sample_videos`.

    Args:
      run: a text-to-video run.
      prompts: the texts; the number of each is its place among them.
      seed: of the noise.
      batch_size: clips that are sampled at once; None: four, or as many more as the devices along `data` need.
      first: number of the prompt to begin with: those before it have their clips.
      watch: whether to return how they come about, too.
      on_prediction: is told how they come about at once. The program is compiled for it: give the same function again.
      **choices: the other arguments of `sample_videos`.

    Returns:
      each batch, when it is asked for.

    Raises:
      ValueError: as `sample_videos`, a batch size that the mesh does not divide, or no prompts; all before any work.
    """
    processes.check_same("the prompts and how they are sampled", (list(prompts), seed, batch_size, watch, choices))
    if not prompts:
        raise ValueError("prompts=[]: give at least one")
    _clip_and_settings(run, len(prompts), **choices)
    encode_prompts(run, prompts, negative_prompt=choices.get("negative_prompt", ""))
    _check_batch_size(run, batch_size)
    size = min(batch_size or _next_multiple(4, run.mesh.shape["data"]), len(prompts))
    return _batches(run, prompts, size, first, seed, {"watch": watch, "on_prediction": on_prediction, **choices})


def _batches(
    run: Run, prompts: Sequence[str], size: int, start: int, seed: int, choices: dict[str, Any]
) -> Iterator[Sampled]:
    given = {name: choices[name] for name in ("given", "original") if name in choices}
    videos = jax.tree.map(lambda video: for_each(video, len(prompts)), given)
    for first in range(start, len(prompts), size):
        batch = list(prompts[first : first + size])
        # Always a full batch, so that one compiled program serves all; what is too much is dropped.
        full = batch + [""] * (size - len(batch))
        of_batch = jax.tree.map(lambda each, first=first: _filled_up(each[first : first + size], size), videos)
        yield _first(len(batch), _sample(run, full, seed, first_number=first, **choices | of_batch))


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
    run: Run, prompts: Sequence[str], *, negative_prompt: str = ""
) -> tuple[Int32[np.ndarray, "prompts tokens"], Int32[np.ndarray, "prompts tokens"]]:
    """Token ids of the prompts, and of what guidance leads away from."""
    length = run.config.text.length
    return tuple(run.tokenizer.encode(texts, length)[0] for texts in (list(prompts), [negative_prompt] * len(prompts)))


def check_negative_prompt(negative_prompt: str, settings: Settings) -> None:
    """Raises a ValueError for a negative prompt that would do nothing."""
    if negative_prompt and settings.guidance_weight == 1.0:
        raise ValueError(
            f"negative_prompt={negative_prompt!r} does nothing without guidance, and the guidance weight is 1: raise it"
        )


def _sample_on_mesh(
    run: Run,
    key: Array,
    inputs: tuple[Any, ...],
    clip: tuple[int, int, int],
    settings: Settings,
    watch: bool,
    on_prediction: OnPrediction | None,
) -> Sampled:
    """One call of the compiled program, for one batch; every process has the whole batch, and gets all of its clips."""
    batch = partitioning.divide_batch(run.mesh, inputs)
    sharding = partitioning.batch_sharding(run.mesh)
    sampled, watched = sample_program(
        nnx.graphdef(run.model),
        run.parameters(),
        key,
        *batch,
        clip=clip,
        settings=settings,
        sharding=sharding,
        watch=watch,
        on_prediction=on_prediction,
    )
    to_hosts = functools.partial(partitioning.videos_to_hosts, run.mesh)
    return Sampled(to_hosts(sampled), to_hosts(watched) if watch else None)


@functools.partial(jax.jit, static_argnames=("graphdef", "clip", "settings", "sharding", "watch", "on_prediction"))
def sample_program(
    graphdef: nnx.GraphDef,
    parameters: dict,
    key: Array,
    numbers: Int32[Array, " batch"],
    tokens: tuple[Array, Array],
    given: Condition | None = None,
    original: Float[Array, "batch frames height width 3"] | None = None,
    *,
    clip: tuple[int, int, int],
    settings: Settings,
    sharding: jax.sharding.NamedSharding,
    watch: bool = False,
    on_prediction: OnPrediction | None = None,
) -> tuple[Float[Array, "batch frames height width 3"], Float[Array, "batch calls height width 3"] | None]:
    """All of sampling, jitted.

    Args:
      graphdef, parameters: of a `TextToVideo`.
      key: of all noise.
      numbers: of the prompts; a clip's noise depends on the key and its number alone.
      tokens: of the prompts, and of the empty prompt: ids, or embeddings that were made ahead of time.
      given: what of the clips is given.
      original: clips that are taken up, noised, at `settings.start`.
      clip: (frames, height, width).
      settings: from `sampling_settings`.
      sharding: of videos.
      watch: whether to return the predictions of the middle frame, too.
      on_prediction: see `sample_in_batches`.
    """

    starts, steps = (jax.vmap(functools.partial(clip_key, key, stream))(numbers) for stream in range(2))
    noise = jax.vmap(lambda start: jax.random.normal(start, (*clip, 3)))(starts)
    noise, given, original = (
        jax.tree.map(lambda video: jax.lax.with_sharding_constraint(video, sharding), videos)
        for videos in (noise, given, original)
    )
    if settings.start < 1.0:
        alpha, sigma = settings.schedule.alpha_sigma(jnp.asarray(settings.times()[0]))
        noise = alpha * original + sigma * noise
    beside = given.channels() if settings.is_conditional else None
    model = nnx.merge(graphdef, parameters)
    texts = tuple(model.embed_text(ids) for ids in tokens)
    predict = _network(model, settings)
    on_mesh = partitioning.on_mesh(sharding.mesh, generate)

    def middle(x0: Array) -> Array | None:
        frame = x0[:, clip[0] // 2]
        if on_prediction is not None:
            jax.debug.callback(on_prediction, frame)
        return frame if watch else None

    replaced = given if settings.zero_shot else None
    sampled, watched = on_mesh(predict, noise, texts, beside, None, steps, settings, sharding, middle, replaced)
    if watch:
        watched = jax.lax.with_sharding_constraint(jnp.moveaxis(watched, 0, 1), sharding)
    return jax.lax.with_sharding_constraint(sampled, sharding), watched


def _network(model: TextToVideo, settings: Settings) -> Callable[..., Any]:
    """What `generate` takes as the network."""
    if settings.approximations.deep_features_every > 1:
        return model.predict_with_deep_features
    return model.predict_with_variance if settings.learns_variance else model.predict
