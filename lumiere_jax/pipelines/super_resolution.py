"""Spatial super-resolution (paper section 3.2, the second half of Fig. 3): small clips to large ones, window by window.

The host holds the clip, and the devices denoise its windows (`diffusion/streaming.py`), so their memory does not grow
with the length of the clip. `prepare` finds how many windows at once, and if need be which tiles of a frame, fit into
it, before anything is sampled (`window_memory.py`).

What every window of a clip needs again is made once (text), or is small (the low-resolution clip, which each window
enlarges and noises by itself: `window_programs.py`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Array, Float

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.diffusion.condition import Condition, for_each
from lumiere_jax.diffusion.multidiffusion import Cut
from lumiere_jax.diffusion.streaming import stream
from lumiere_jax.distributed import partitioning, processes
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.pipelines import window_programs
from lumiere_jax.pipelines.generation import Settings, check_window, sampling_settings
from lumiere_jax.pipelines.text_to_video import Videos, encode_prompts
from lumiere_jax.pipelines.window_memory import (
    check_host_memory,
    clips_together,
    compile_windows,
    free_memory,
    settings_to_try,
)


def super_resolve(
    run: Run,
    videos: Videos,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    first_number: int = 0,
    given: Condition | None = None,
    **choices: Any,
) -> Float[np.ndarray, "prompts frames large_height large_width 3"]:
    """Super-resolves clips: `prepare` and `SuperResolution.videos`, which see for errors.

    Args:
      run: a super-resolution run, whose `clip.frames` is the window.
      videos: in [-1, 1], any number of frames; enlarged by the run's `diffusion.low_res_factor`.
      prompts: one per clip, as for the base model.
      seed, first_number: of the noise, as for the base model.
      given: what of the large clips is given, see `SuperResolution.frames`.
      **choices: of `prepare`.
    """
    if not len(videos):
        raise ValueError("videos are none: give at least one clip")
    ready = prepare(run, videos.shape[1:4], clips=len(videos), **choices)
    return ready.videos(videos, prompts, seed=seed, first_number=first_number, given=given)


@dataclasses.dataclass(frozen=True)
class SuperResolution:
    """A super-resolution run, ready for clips of one size.

    Attributes:
      run, settings: what is sampled, and how.
      cut: the windows of a clip, at its full size.
      window_batch: windows that the devices denoise at once.
      negative_prompt: what guidance leads away from.
      needed: bytes that a device needs for that beside the parameters, by its compiler.
      program: `denoise_windows`, compiled for them.
    """

    run: Run
    settings: Settings
    cut: Cut
    window_batch: int
    negative_prompt: str
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
        self,
        videos: Videos,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        first_number: int = 0,
        given: Condition | None = None,
    ) -> Iterator[tuple[int, int, Float[np.ndarray, "large_height large_width 3"]]]:
        """Super-resolves clips, frame by frame, in order: those of the first clip, then the next one's.

        Long before the first frame is finished there is a progress bar. Clips that are small enough share windows.

        Args:
          videos: in [-1, 1], of the size that this is for.
          prompts: one per clip.
          seed: of the noise.
          first_number: the first clip's number, where many are sampled in several calls; its noise depends on it.
          given: what of the large clips is given, of all or of each. It replaces the prediction there at every step:
            the clips have it exactly.

        Returns:
          number of the clip in `videos`, of the frame, and the frame, in [-1, 1].

        Raises:
          ValueError: prompts and clips differ in number, a prompt is too long, or videos or what is given have
            another size.
        """
        factor = self.run.config.diffusion.low_res_factor
        small = (self.cut.clip[0], *(size // factor for size in self.cut.clip[1:]))
        if videos.shape[1:4] != small:
            raise ValueError(f"videos of shape {videos.shape}: this was made ready for clips of {small}")
        if len(videos) != len(prompts):
            raise ValueError(f"{len(videos)} clips but {len(prompts)} prompts: give one prompt per clip")
        if given is not None:
            given = Condition(*(for_each(part, len(videos)) for part in given))
            if given.mask.shape[1:4] != self.cut.clip:
                raise ValueError(f"clips of {given.mask.shape[1:4]} are given, but these become {self.cut.clip}")
        tokens = encode_prompts(self.run, prompts, negative_prompt=self.negative_prompt)
        texts = window_programs.embed_text(nnx.graphdef(self.run.model), self.run.parameters(), tokens)
        return self._frames(videos, [np.asarray(text) for text in texts], seed, first_number, given)

    def videos(
        self, videos: Videos, prompts: Sequence[str], **options: Any
    ) -> Float[np.ndarray, "prompts frames large_height large_width 3"]:
        """All of `frames`."""
        result = np.empty((len(videos), *self.cut.clip, 3), np.float32)
        for clip, frame, image in self.frames(videos, prompts, **options):
            result[clip, frame] = image
        return result

    def _frames(
        self, videos: Videos, texts: Sequence[np.ndarray], seed: int, first_number: int, given: Condition | None
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        together = clips_together(self.cut, self.window_batch)
        calls = sum(
            -(-min(together, len(videos) - first) * len(self.cut.corners) // self.window_batch)
            for first in range(0, len(videos), together)
        )
        with tqdm.tqdm(
            total=calls * self.settings.calls, desc="super-resolution", leave=False, disable=not processes.is_first()
        ) as bar:
            for first in range(0, len(videos), together):
                part = slice(first, first + together)
                given_there = jax.tree.map(lambda array, part=part: array[part], given)
                of_part = (videos[part], [text[part] for text in texts], given_there)
                clips = _Clips(self, *of_part, seed, first_number + first, bar)
                for clip, frame, image in clips.frames():
                    yield first + clip, frame, image


class _Clips:
    """Some clips on their way: what `stream` asks of a network."""

    def __init__(
        self,
        ready: SuperResolution,
        videos: Videos,
        texts: list[np.ndarray],
        given: Condition | None,
        seed: int,
        first: int,
        bar: tqdm.tqdm,
    ):
        self.ready, self.videos, self.texts, self.bar = ready, np.asarray(videos, np.float32), texts, bar
        self.given = given
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
        x = np.empty((len(self.numbers), frames, height, width, 3), np.float32)
        for clip, number in enumerate(self.numbers):
            for frame in range(frames):
                x[clip, frame] = window_programs.start_frame(self.key, number, frame, (height, width))
        return stream(
            self.denoise_windows,
            self.finish_frame,
            x,
            self.ready.cut,
            calls=self.plan.calls,
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
        given = jax.tree.map(lambda array: array[clip, frame], self.given)
        finished = window_programs.finish_frame(
            x, prediction, previous, self.plan.step(step), self.key, place, given, settings=self.ready.settings
        )
        return tuple(map(np.asarray, finished))


def whole_factor(runs: Sequence[Run]) -> int:
    """By which super-resolution models one after the other enlarge height and width; 1 without any."""
    return math.prod(max(1, run.config.diffusion.low_res_factor) for run in runs)


def prepare_chain(
    runs: Sequence[Run], small: tuple[int, int, int], prompts: Sequence[str], **choices: Any
) -> list[SuperResolution]:
    """`prepare` of super-resolution models one after the other: each enlarges the clips of the one before.

    Raises:
      ValueError, MemoryError: as `prepare`, and a prompt that is too long for one of them.
    """
    chain: list[SuperResolution] = []
    for run in runs:
        encode_prompts(run, prompts, negative_prompt=choices.get("negative_prompt", ""))
        chain.append(prepare(run, chain[-1].cut.clip if chain else small, **choices))
    return chain


def prepare(
    run: Run,
    small: tuple[int, int, int],
    *,
    clips: int = 1,
    memory: int | None = None,
    window_batch: int | None = None,
    negative_prompt: str = "",
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
      negative_prompt: what guidance leads away from; without guidance (weight 1) it does nothing.
      **choices: of `sampling_settings`: steps, guidance_weight, guidance_interval, guidance_rescale, sampler, spacing,
        window, tile, weights. Where neither they nor the config name a tile, frames are whole if they fit.

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
    check_window(choices.get("window"), clip[0])
    if settings.threshold == "dynamic" and settings.threshold_maximum != 1.0:
        raise ValueError(
            "threshold='dynamic' looks at a whole clip, which super-resolution never holds on a device: use 'static', "
            "which is the same as 'dynamic' with threshold_maximum=1"
        )
    memory = free_memory(run.mesh) if memory is None else memory
    window_batch = window_batch or run.config.multidiffusion.window_batch or None
    stride, reasons = UNet2DConfig(**run.config.unet).spatial_stride, []
    for chosen, batch in settings_to_try(settings, clip, clips, stride, window_batch, run.mesh):
        program, needed = compile_windows(run, chosen, clip, batch)
        cut = chosen.windows.of(clip)
        if needed <= memory:
            check_host_memory(run, chosen, cut, batch)
            return SuperResolution(run, chosen, cut, batch, negative_prompt, needed, program)
        reasons.append(f"{batch} windows of {'x'.join(map(str, cut.shape))} need {needed / 2**30:.2f} GiB")
    raise MemoryError(
        f"{run.config.name} to {clip[2]}x{clip[1]} pixels does not fit into the {memory / 2**30:.2f} GiB that are free "
        f"on a device beside its parameters: {'; '.join(reasons)}. Use smaller tiles, shorter windows or a larger "
        "device"
    )
