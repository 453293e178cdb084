"""Spatial super-resolution (paper section 3.2, the second half of Fig. 3): small clips to large ones, window by window.

The host holds the clip, and the devices denoise its windows (`diffusion/streaming.py`), so their memory does not grow
with the length of the clip. `prepare` finds how many windows at once, and if need be which tiles of a frame, fit into
it, before anything is sampled.

A clip's noise depends on the seed, its number, the frame and the row alone: not on the windows, nor on how many devices
share the work. What every window of a clip needs again is made once (text), or is small (the low-resolution clip, which
each window enlarges and noises by itself).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import psutil
import tqdm
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int32, Key

from lumiere_jax.checkpoints.run_directory import Run
from lumiere_jax.diffusion import low_resolution, samplers
from lumiere_jax.diffusion.clip_noise import clip_key, noise_of_rows
from lumiere_jax.diffusion.multidiffusion import Cut
from lumiere_jax.diffusion.streaming import stream
from lumiere_jax.distributed import partitioning, processes
from lumiere_jax.distributed.compiled_program import memory_that_is_missing
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.models.unet2d import UNet2DConfig
from lumiere_jax.pipelines.generation import Settings, guided_denoiser, sampling_settings
from lumiere_jax.pipelines.text_to_video import Videos, encode_prompts

# Streams of a clip's noise. The base model's is another seed's.
_LOW_RES, _START, _STEPS = range(3)
# Pixels of windows that keep a device busy: more of them at once need memory, and make nothing faster.
_BUSY = 2**20
# Of the sides of tiles that are tried where a whole frame does not fit.
_SMALLEST_TILE = 64


def super_resolve(
    run: Run,
    videos: Videos,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    first_number: int = 0,
    **choices: Any,
) -> Float[np.ndarray, "prompts frames large_height large_width 3"]:
    """Super-resolves clips: `prepare` and `SuperResolution.videos`, which see for errors.

    Args:
      run: a super-resolution run, whose `clip.frames` is the window.
      videos: in [-1, 1], any number of frames; enlarged by the run's `diffusion.low_res_factor`.
      prompts: one per clip, as for the base model.
      seed, first_number: of the noise, as for the base model.
      **choices: of `prepare`.
    """
    if not len(videos):
        raise ValueError("videos are none: give at least one clip")
    ready = prepare(run, videos.shape[1:4], clips=len(videos), **choices)
    return ready.videos(videos, prompts, seed=seed, first_number=first_number)


@dataclasses.dataclass(frozen=True)
class SuperResolution:
    """A super-resolution run, ready for clips of one size.

    Attributes:
      run, settings: what is sampled, and how.
      cut: the windows of a clip, at its full size.
      window_batch: windows that the devices denoise at once.
      needed: bytes that a device needs for that beside the parameters, by its compiler.
      program: `denoise_windows`, compiled for them.
    """

    run: Run
    settings: Settings
    cut: Cut
    window_batch: int
    needed: int
    program: Callable[..., Array]

    def line(self) -> str:
        """What was chosen, for people."""
        frames, height, width = self.cut.clip
        count, size = len(self.cut.corners), "x".join(map(str, self.cut.shape))
        return (
            f"{self.run.config.name}: {frames} frames of {width}x{height} in {count} windows of {size}, "
            f"{self.window_batch} at once, {self.needed / 2**30:.2f} GiB a device, {self.settings.steps} steps"
        )

    def frames(
        self, videos: Videos, prompts: Sequence[str], *, seed: int = 0, first_number: int = 0
    ) -> Iterator[tuple[int, int, Float[np.ndarray, "large_height large_width 3"]]]:
        """Super-resolves clips, frame by frame, in order: those of the first clip, then the next one's.

        Long before the first frame is finished there is a progress bar. Clips that are small enough share windows.

        Args:
          videos: in [-1, 1], of the size that this is for.
          prompts: one per clip.
          seed: of the noise.
          first_number: the first clip's number, where many are sampled in several calls; its noise depends on it.

        Returns:
          number of the clip in `videos`, of the frame, and the frame, in [-1, 1].

        Raises:
          ValueError: prompts and clips differ in number, a prompt is too long, or videos have another size.
        """
        factor = self.run.config.diffusion.low_res_factor
        small = (self.cut.clip[0], *(size // factor for size in self.cut.clip[1:]))
        if videos.shape[1:4] != small:
            raise ValueError(f"videos of shape {videos.shape}: this was made ready for clips of {small}")
        if len(videos) != len(prompts):
            raise ValueError(f"{len(videos)} clips but {len(prompts)} prompts: give one prompt per clip")
        tokens = encode_prompts(self.run, prompts)
        texts = _embed_text(nnx.graphdef(self.run.model), self.run.parameters(), tokens)
        return self._frames(videos, [np.asarray(text) for text in texts], seed, first_number)

    def videos(
        self, videos: Videos, prompts: Sequence[str], *, seed: int = 0, first_number: int = 0
    ) -> Float[np.ndarray, "prompts frames large_height large_width 3"]:
        """All of `frames`."""
        result = np.empty((len(videos), *self.cut.clip, 3), np.float32)
        for clip, frame, image in self.frames(videos, prompts, seed=seed, first_number=first_number):
            result[clip, frame] = image
        return result

    def _frames(
        self, videos: Videos, texts: Sequence[np.ndarray], seed: int, first_number: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        together = _clips_together(self.cut, self.window_batch)
        calls = sum(
            -(-min(together, len(videos) - first) * len(self.cut.corners) // self.window_batch)
            for first in range(0, len(videos), together)
        )
        with tqdm.tqdm(
            total=calls * self.settings.steps, desc="super-resolution", leave=False, disable=not processes.is_first()
        ) as bar:
            for first in range(0, len(videos), together):
                part = slice(first, first + together)
                clips = _Clips(self, videos[part], [text[part] for text in texts], seed, first_number + first, bar)
                for clip, frame, image in clips.frames():
                    yield first + clip, frame, image


class _Clips:
    """Some clips on their way: what `stream` asks of a network."""

    def __init__(
        self, ready: SuperResolution, videos: Videos, texts: list[np.ndarray], seed: int, first: int, bar: tqdm.tqdm
    ):
        self.ready, self.videos, self.texts, self.bar = ready, np.asarray(videos, np.float32), texts, bar
        self.parameters = ready.run.parameters()
        self.numbers = np.arange(first, first + len(videos), dtype=np.int32)
        self.key = jax.random.key(seed)  # this process's, for what it does alone; and the devices'
        everywhere = partitioning.replicated(ready.run.mesh)
        self.key_on_mesh = jax.jit(lambda: jax.random.key(seed), out_shardings=everywhere)()
        # On the host, once: one step of it goes to the devices at a time.
        self.plan = jax.tree.map(np.asarray, jax.jit(ready.settings.plan)())
        self.level = np.float32(ready.run.config.sampling.noise_level)

    def frames(self) -> Iterator[tuple[int, int, np.ndarray]]:
        frames, height, width = self.ready.cut.clip
        x = np.stack(
            [
                np.stack([np.asarray(_start(self.key, number, frame, (height, width))) for frame in range(frames)])
                for number in self.numbers
            ]
        )
        return stream(
            self.denoise_windows,
            self.finish_frame,
            x,
            self.ready.cut,
            steps=self.ready.settings.steps,
            window_batch=self.ready.window_batch,
            keeps_x0=self.plan.previous is not None,
        )

    def denoise_windows(self, step: int, clips: np.ndarray, corners: np.ndarray, x: np.ndarray) -> np.ndarray | Array:
        run, window = self.ready.run, self.ready.cut.shape[0]
        small = np.stack([self.videos[clip, f : f + window] for clip, (f, _, _) in zip(clips, corners, strict=True)])
        texts = tuple(text[clips] for text in self.texts)
        batch = (x, small, texts, self.numbers[clips], corners.astype(np.int32))
        scalars = partitioning.place(run.mesh, (self.plan.t[step], self.level))
        batch = partitioning.divide_batch(run.mesh, batch)
        predictions = self.ready.program(self.parameters, self.key_on_mesh, *scalars, *batch)
        self.bar.update()
        # One process fetches them when it needs them; several, at once.
        return predictions if predictions.is_fully_addressable else partitioning.videos_to_hosts(run.mesh, predictions)

    def finish_frame(
        self, step: int, clip: int, frame: int, x: np.ndarray, prediction: np.ndarray, previous: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        place = (self.numbers[clip], frame, step)
        finished = _finish_frame(
            x, prediction, previous, self.plan.step(step), self.key, place, settings=self.ready.settings
        )
        return tuple(map(np.asarray, finished))


def prepare_chain(
    runs: Sequence[Run], small: tuple[int, int, int], prompts: Sequence[str], **choices: Any
) -> list[SuperResolution]:
    """`prepare` of super-resolution models one after the other: each enlarges the clips of the one before.

    Raises:
      ValueError, MemoryError: as `prepare`, and a prompt that is too long for one of them.
    """
    chain: list[SuperResolution] = []
    for run in runs:
        encode_prompts(run, prompts)
        chain.append(prepare(run, chain[-1].cut.clip if chain else small, **choices))
    return chain


def prepare(
    run: Run,
    small: tuple[int, int, int],
    *,
    clips: int = 1,
    memory: int | None = None,
    window_batch: int | None = None,
    **choices: Any,
) -> SuperResolution:
    """Makes a super-resolution run ready for clips of one size: chooses windows that fit, and compiles.

    Args:
      run: from `load_run`.
      small: (frames, height, width) of the low-resolution clips.
      clips: how many there will be at a time, at most.
      memory: bytes of a device that the work may take beside the parameters; None: what is free now.
      window_batch: windows that are denoised at once; None: the config's `multidiffusion.window_batch` or, where that
        is 0, as many as keep the devices busy and fit.
      **choices: of `sampling_settings`: steps, guidance_weight, guidance_interval, sampler, window, tile. Where neither
        they nor the config name a tile, frames are whole if they fit.

    Raises:
      ValueError: not a super-resolution run; a value out of range; a window longer than the clip; tiles that the
        network or the mesh does not divide; a threshold that looks at whole clips.
      MemoryError: nothing fits.
    """
    factor = run.config.diffusion.low_res_factor
    if not factor:
        raise ValueError(f"{run.path} is no super-resolution run (its diffusion.low_res_factor is 0)")
    settings = sampling_settings(run.config, **choices)
    clip = (small[0], factor * small[1], factor * small[2])
    if choices.get("window") and choices["window"][0] > clip[0]:
        raise ValueError(f"window={choices['window'][0]} is longer than the clip, which has {clip[0]} frames")
    if settings.threshold == "dynamic" and settings.threshold_maximum != 1.0:
        raise ValueError(
            "threshold='dynamic' looks at a whole clip, which super-resolution never holds on a device: use 'static', "
            "which is the same as 'dynamic' with threshold_maximum=1"
        )
    memory = free_memory(run.mesh) if memory is None else memory
    stride, reasons = UNet2DConfig(**run.config.unet).spatial_stride, []
    for chosen, batch in _choices(settings, clip, clips, stride, window_batch or settings.window_batch, run.mesh):
        program, needed = _compile(run, chosen, clip, batch)
        cut = chosen.windows.of(clip)
        if needed <= memory:
            _check_host_memory(run, chosen, cut, batch)
            return SuperResolution(run, chosen, cut, batch, needed, program)
        reasons.append(f"{batch} windows of {'x'.join(map(str, cut.shape))} need {needed / 2**30:.2f} GiB")
    raise MemoryError(
        f"{run.config.name} to {clip[2]}x{clip[1]} pixels does not fit into the {memory / 2**30:.2f} GiB that are free "
        f"on a device beside its parameters: {'; '.join(reasons)}. Use smaller tiles, shorter windows or a larger "
        "device"
    )


def free_memory(mesh: jax.sharding.Mesh) -> int:
    """Bytes that are free on the fullest device of a mesh; those of the machine, where its processors are devices."""
    statistics = [device.memory_stats() for device in mesh.local_devices]
    free = [found["bytes_limit"] - found["bytes_in_use"] for found in statistics if found]
    mebibytes = min(free or [psutil.virtual_memory().available]) >> 20
    if jax.process_count() > 1:
        mebibytes = int(multihost_utils.process_allgather(np.int32(mebibytes)).min())
    return mebibytes << 20


def _clips_together(cut: Cut, window_batch: int) -> int:
    """Clips that fill a batch of windows."""
    return -(-window_batch // len(cut.corners))


def _check_host_memory(run: Run, settings: Settings, cut: Cut, window_batch: int) -> None:
    """Raises a MemoryError if the host has no room for the clips: their state and, for some samplers, the last x0."""
    arrays = 2 if jax.eval_shape(settings.plan).previous is not None else 1
    needed = arrays * _clips_together(cut, window_batch) * math.prod(cut.clip) * 3 * np.dtype(np.float32).itemsize
    available = psutil.virtual_memory().available
    if needed > available:
        raise MemoryError(
            f"{run.config.name}: {cut.clip[0]} frames of {cut.clip[2]}x{cut.clip[1]} pixels need {needed / 2**30:.2f} "
            f"GiB of the host's memory, of which {available / 2**30:.2f} are free: use fewer frames, or ddim"
        )


def _choices(
    settings: Settings,
    clip: tuple[int, int, int],
    clips: int,
    stride: int,
    window_batch: int | None,
    mesh: jax.sharding.Mesh,
) -> Iterator[tuple[Settings, int]]:
    """Settings and numbers of windows at once, from those that need most memory to those that need least."""
    for tiled in _tilings(settings, clip, stride):
        cut = tiled.windows.of(clip)
        shape, count = cut.shape, clips * len(cut.corners)
        data, rows = mesh.shape["data"], mesh.shape["rows"]
        if shape[1] % rows:
            raise ValueError(
                f"windows of {shape[1]} rows cannot be divided over rows={rows} devices: choose another tile or "
                "height, or another --mesh_rows"
            )
        batch = min(_multiple(count, data), data * max(1, _BUSY // math.prod(shape)))
        if window_batch is not None:
            batch = _multiple(window_batch, data)
        while batch >= data:
            yield tiled, batch
            batch = 0 if window_batch is not None else batch // (2 * data) * data


def _tilings(settings: Settings, clip: tuple[int, int, int], stride: int) -> Iterator[Settings]:
    """The settings themselves; where they name no tile also with ever smaller ones, that overlap by an eighth."""
    windows = settings.windows
    if windows.height is not None:
        for name, pixels in zip(("tile", "tile_overlap"), windows.height, strict=True):
            if pixels % stride:
                raise ValueError(f"{name}={pixels} is no multiple of {stride}, which the network halves pixels by")
        yield settings
        return
    yield settings
    side = _multiple(max(clip[1:]) / 2, stride)
    while side >= _SMALLEST_TILE:
        tile = (side, _multiple(side / 8, stride))
        yield dataclasses.replace(settings, windows=dataclasses.replace(windows, height=tile, width=tile))
        side = _multiple(side / 2, stride)


def _multiple(number: float | int, of: int) -> int:
    return math.ceil(number / of) * of


def _compile(
    run: Run, settings: Settings, clip: tuple[int, int, int], window_batch: int
) -> tuple[jax.stages.Compiled | None, int]:
    """The program that denoises windows, and the bytes that a device needs for it beside the parameters."""
    parameters = run.parameters()
    everywhere = partitioning.replicated(run.mesh)
    key = partitioning.shapes_on(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    lowered = denoise_windows.lower(
        nnx.graphdef(run.model),
        parameters,
        key,
        scalar,
        scalar,
        *abstract_windows(run.config, settings, clip, window_batch, run.mesh),
        size=clip[1:],
        settings=settings,
        sharding=partitioning.batch_sharding(run.mesh),
    )
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        missing = memory_that_is_missing(str(error))
        if missing is None:
            raise
        return None, missing["needed"]
    sizes, leaves = program.memory_analysis(), jax.tree.leaves(parameters)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return program, sizes.temp_size_in_bytes + sizes.output_size_in_bytes + sizes.argument_size_in_bytes - held


def abstract_windows(
    config: ml_collections.ConfigDict,
    settings: Settings,
    clip: tuple[int, int, int],
    window_batch: int,
    mesh: jax.sharding.Mesh,
) -> tuple:
    """What `denoise_windows` takes of windows, as shapes on a mesh: x, small, texts, numbers, corners."""
    shape, factor = settings.windows.of(clip).shape, config.diffusion.low_res_factor
    text = (window_batch, config.text.length, config.unet.text_dim)
    small = (window_batch, shape[0], *(size // factor for size in clip[1:]), 3)
    arrays = [((window_batch, *shape, 3), jnp.float32), (small, jnp.float32)]
    arrays += [(text, config.compute_dtype)] * 2 + [((window_batch,), jnp.int32), ((window_batch, 3), jnp.int32)]
    sharding = partitioning.batch_sharding(mesh, 1)
    x, small, prompt, empty, numbers, corners = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in arrays
    )
    return x, small, (prompt, empty), numbers, corners


@functools.partial(jax.jit, static_argnames="graphdef")
def _embed_text(graphdef: nnx.GraphDef, parameters: dict, tokens: tuple[Array, Array]) -> tuple[Array, Array]:
    model: TextToVideo = nnx.merge(graphdef, parameters)
    return tuple(model.embed_text(ids) for ids in tokens)


@functools.partial(jax.jit, static_argnames=("graphdef", "size", "settings", "sharding"))
def denoise_windows(
    graphdef: nnx.GraphDef,
    parameters: dict,
    key: Key[Array, ""],
    t: Float[Array, ""],
    level: Float[Array, ""],
    x: Float[Array, "n frames height width 3"],
    small: Float[Array, "n frames low_height low_width 3"],
    texts: tuple[Float[Array, "n tokens text_dim"], Float[Array, "n tokens text_dim"]],
    numbers: Int32[Array, " n"],
    corners: Int32[Array, "n 3"],
    *,
    size: tuple[int, int],
    settings: Settings,
    sharding: jax.sharding.NamedSharding,
) -> Float[Array, "n frames height width out_channels"]:
    """One evaluation of the network on some windows, guided.

    Args:
      graphdef, parameters: of a `TextToVideo`.
      key: of all noise.
      t: diffusion time.
      level: of the low-resolution clip's augmentation, a diffusion time.
      x: windows of the noisy clips.
      small: the low-resolution clips, the windows' frames of it, whole.
      texts: of the windows' prompts, and of the empty prompt.
      numbers: of the windows' clips, which their noise depends on.
      corners: where in its clip a window starts: frame, row, column.
      size: (height, width) of the large clip.
      settings: from `sampling_settings`.
      sharding: of the windows.
    """
    shape = x.shape[1:4]
    schedule = settings.schedule

    def conditioning(small: Array, number: Array, corner: Array) -> Array:
        """The low-resolution clip as a window sees it, enlarged and noised."""
        first, top, left = corner
        large = low_resolution.upsample_part(small, size, (top, left), shape[1:], align_corners=settings.align_corners)
        rows = noise_of_rows(
            clip_key(key, _LOW_RES, number), first + jnp.arange(shape[0]), top + jnp.arange(shape[1]), size[1]
        )
        noise = jax.lax.dynamic_slice_in_dim(rows, left, shape[2], axis=2)
        return low_resolution.augment(large[None], level[None], noise[None], schedule)[0]

    x = jax.lax.with_sharding_constraint(x, sharding)
    low_res = jax.lax.with_sharding_constraint(jax.vmap(conditioning)(small, numbers, corners), sharding)
    model: TextToVideo = nnx.merge(graphdef, parameters)
    predict = model.predict_with_variance if settings.learns_variance else model.predict
    denoise = partitioning.on_mesh(sharding.mesh, guided_denoiser(predict, settings))
    predictions = denoise(x, t, low_res, texts, jnp.broadcast_to(level, numbers.shape))
    return jax.lax.with_sharding_constraint(predictions, sharding)


@functools.partial(jax.jit, static_argnames="size")
def _start(key: Array, number: Array, frame: Array, size: tuple[int, int]) -> Float[Array, "height width 3"]:
    """The noise that a frame starts from."""
    return noise_of_rows(clip_key(key, _START, number), frame[None], jnp.arange(size[0]), size[1])[0]


@functools.partial(jax.jit, static_argnames="settings")
def _finish_frame(
    x: Float[Array, "height width 3"],
    prediction: Float[Array, "height width out_channels"],
    previous: Float[Array, "height width 3"] | None,
    step: samplers.Plan,
    key: Key[Array, ""],
    place: tuple[Array, Array, Array],
    *,
    settings: Settings,
) -> tuple[Float[Array, "height width 3"], Float[Array, "height width 3"]]:
    """A frame's step, from the average of its windows' predictions: its next state, and x0.

    Args:
      x: its state.
      prediction: of the network.
      previous: x0 of the step before, for samplers that need it.
      step: of the sampler's plan.
      key: of all noise.
      place: number of the clip, of the frame, and of the step.
      settings: from `sampling_settings`.
    """
    number, frame, index = place
    found = settings.to_x0(lambda *_: prediction)(x, step.t)
    x0, fraction = found if settings.learns_variance else (found, None)
    noise = None
    if step.noise is not None:
        step_key = jax.random.fold_in(clip_key(key, _STEPS, number), index)
        noise = noise_of_rows(step_key, frame[None], jnp.arange(x.shape[0]), x.shape[1])[0]
    return samplers.advance(step, x, x0, noise=noise, fraction=fraction, previous=previous), x0
