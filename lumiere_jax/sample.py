"""Sampling: `python -m lumiere_jax.sample --checkpoint=DIR --prompt="a red circle moving left" --output=DIR`.

`--task` is given more than a prompt: an image to be animated, a video to be completed or edited (sample_tasks.py).
For every prompt and resolution: mp4, gif, contact sheet, X-T slice, and a JSON file that says how it was made.
The same seed gives the same pixels. The functions behind it are importable: see `lumiere_jax`.
On several hosts each runs the same command (`distributed/mesh.py`), and the first one writes.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS
from jax.sharding import Mesh

from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.temporal_weights import load_temporal
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.diffusion.approximations import Approximations
from lumiere_jax.distributed import mesh as meshes
from lumiere_jax.distributed import platform, processes
from lumiere_jax.models.int8_weights import to_int8
from lumiere_jax.pipelines.results import (
    NO_MARKS,
    description,
    file_name,
    library_versions,
    open_video_files,
    video_files,
    write_sheet,
)
from lumiere_jax.pipelines.stylized_generation import stylized
from lumiere_jax.pipelines.super_resolution import prepare_chain, whole_factor
from lumiere_jax.pipelines.text_to_video import OnPrediction, Videos, sample_in_batches
from lumiere_jax.pipelines.video_editing import image_model_of
from lumiere_jax.provenance.marks import Marks, marks_of_flags
from lumiere_jax.sample_flags import (
    approximation_flags,
    define_flags,
    enlarging_flags,
    guidance_interval_flag,
    window_flags,
)
from lumiere_jax.sample_tasks import Task, check_task_flags, read_task


def sample(
    run: Run,
    super_resolution: Sequence[Run],
    prompts: Sequence[str],
    output: pathlib.Path,
    *,
    seed: int,
    frames: int,
    size: tuple[int, int],
    batch_size: int | None = None,
    enlarging: Mapping[str, Any] | None = None,
    denoising: bool = False,
    approximations: Approximations | None = None,
    task: Task | None = None,
    alpha: float | int | None = None,
    on_prediction: OnPrediction | None = None,
    marks: Marks = NO_MARKS,
    **choices: Any,
) -> Videos:
    """Samples every prompt and writes it, at the base and, with `super_resolution`, at the highest resolution.

    Args:
      run: a text-to-video run.
      super_resolution: super-resolution runs, each for the clips of the one before.
      prompts: the texts.
      output: the directory to write to.
      seed: of the noise.
      frames, size: of the base clips: how many, and their height and width.
      batch_size: clips that are sampled at once; None: see `sample_in_batches`.
      enlarging: choices of `super_resolution.prepare`, for all of `super_resolution`.
      denoising: whether to write how the base clips come about, too.
      approximations: of the base clips; default: none.
      task: what is given beside prompts; default: nothing.
      alpha: share of a style in `run`, which its clips' names then tell.
      on_prediction: see `sample_in_batches`.
      marks: watermark and signature of what is written.
      **choices: the other arguments of `sample_videos`.

    Returns:
      the base clips, in [-1, 1].

    Raises:
      ValueError: as `sample_in_batches` and `prepare_chain`, before any work.
      MemoryError: as `prepare_chain`.
    """
    enlarging, task = dict(enlarging or {}), task or Task()
    # Checked before the chain is prepared, which compiles programs; sampled when the first batch is asked for.
    clips = {"seed": seed, "batch_size": batch_size, "frames": frames, "size": size, "watch": denoising}
    clips["on_prediction"] = on_prediction
    run = image_model_of(run) if task.frame_by_frame else run
    batches = sample_in_batches(run, prompts, approximations=approximations, **clips, **task.choices(), **choices)
    chain = prepare_chain(super_resolution, (frames, *size), prompts, clips=len(prompts), **enlarging)
    for stage in chain:
        processes.say(stage.line())
    approximated = dataclasses.asdict(approximations or Approximations())
    made_with = {
        "seed": seed,
        **task.facts(),
        **choices,
        "approximations": approximated,
        "versions": library_versions(),
    }
    made_with |= {"checkpoint": description(run)} | ({} if alpha is None else {"alpha": alpha})
    enlarged_with = made_with | {"super_resolution": [description(each) | enlarging for each in super_resolution]}
    given_to = {stage.cut.clip: task.given_at(stage.cut.clip[1:]) for stage in chain}
    suffix = "" if alpha is None else f"_alpha_{alpha:g}"
    fps, first, made = run.config.clip.fps, 0, []
    for videos, pictures in batches:
        batch = prompts[first : first + len(videos)]
        pasted = videos if task.given is None else task.given_at(size).paste(videos)
        videos = pasted if task.paste_known else videos
        made.append(videos)
        write_frames(_frames_of(videos), batch, first, suffix, output, (frames, *size), fps, made_with, marks)
        if denoising and processes.is_first():
            for number, (prompt, clip) in enumerate(zip(batch, pictures, strict=True), start=first):
                name = f"{file_name(number, prompt)}{suffix}_denoising.png"
                write_sheet(output / name, [clip], prompt, {"prompt": prompt, **made_with}, marks, columns=10)
        # What is given is enlarged as it is, not as the base model came near to it.
        videos = pasted
        for stage in chain[:-1]:
            videos = stage.videos(videos, batch, given=given_to[stage.cut.clip], seed=seed, first_number=first)
        for stage in chain[-1:]:
            given = given_to[stage.cut.clip]
            frames_of_clips = stage.frames(videos, batch, given=given, seed=seed, first_number=first)
            large = f"{suffix}_high_resolution"
            write_frames(frames_of_clips, batch, first, large, output, stage.cut.clip, fps, enlarged_with, marks)
        first += len(batch)
    processes.wait_for_all("sampled")  # one that ends would not wait long for the first to write
    return np.concatenate(made)


def sample_styles(
    run: Run,
    style: Run,
    super_resolution: Sequence[Run],
    prompts: Sequence[str],
    output: pathlib.Path,
    *,
    task: Task,
    marks: Marks = NO_MARKS,
    **options: Any,
) -> None:
    """Samples every prompt with each share of a style; NAME_alphas.png has of each a row of four frames.

    Args:
      run, super_resolution, prompts, output, **options: as for `sample`.
      style: of `run`.
      task: whose `alphas` are taken.
      marks: as for `sample`.

    Raises:
      ValueError, MemoryError: as `sample` and `stylized`.
    """
    made = [
        sample(
            stylized(run, style, alpha),
            super_resolution,
            prompts,
            output,
            task=task,
            alpha=alpha,
            marks=marks,
            **options,
        )
        for alpha in task.alphas
    ]
    if processes.is_first():
        for number, (prompt, *clips) in enumerate(zip(prompts, *made, strict=True)):
            sheet = output / f"{file_name(number, prompt)}_alphas.png"
            facts = {"prompt": prompt, **task.facts(), "alphas": task.alphas, "checkpoint": str(run.path)}
            write_sheet(sheet, clips, prompt, facts, marks, columns=4)
            processes.say(f"{sheet}  alpha {', '.join(f'{alpha:g}' for alpha in task.alphas)} from top to bottom")


def _frames_of(videos: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    for clip, video in enumerate(videos):
        for frame, image in enumerate(video):
            yield clip, frame, image


def load(
    path: str,
    *,
    init_from: str = "",
    text_checkpoint: str = "",
    tokenizer: str = "",
    ema_decay: float | None = None,
    mesh: Mesh | None = None,
) -> Run:
    """Loads a run's directory, or exported temporal layers onto their image model.

    Args:
      path: a run directory, or a file that `export_weights` wrote.
      init_from: of a run: where its imported U-Net lies now, if it was moved. Of a file: its image model.
      text_checkpoint: the same for the text encoder; a run that holds its own has no use for it.
      tokenizer: of a file: the SentencePiece model; default: the one beside the text encoder.
      ema_decay: of a run: which of its averages; default: the first. A file holds one alone.
      mesh: as for `load_run`.

    Raises:
      ValueError, OSError, CheckpointError: as `load_run` and `load_temporal`.
    """
    if path.endswith(".safetensors"):
        if not init_from:
            raise ValueError(
                f"{path} holds temporal layers alone: say with --init_from=DIR which image model they belong to (its "
                "metadata name it: the imported U-Net's directory, or the run of an image model)"
            )
        if ema_decay is not None:
            raise ValueError(f"ema_decay={ema_decay}: {path} holds one average alone, give none")
        return load_temporal(path, init_from=init_from, text_checkpoint=text_checkpoint, tokenizer=tokenizer, mesh=mesh)
    refers_to_text = RunDirectory(path).read_references().text_encoder is not None
    text_checkpoint = text_checkpoint if refers_to_text else None
    return load_run(path, mesh=mesh, init_from=init_from or None, text_checkpoint=text_checkpoint, ema_decay=ema_decay)


def write_frames(
    frames: Iterable[tuple[int, int, np.ndarray]],
    prompts: Sequence[str],
    first: int,
    suffix: str,
    output: pathlib.Path,
    clip: tuple[int, int, int],
    fps: float,
    facts: Mapping[str, Any],
    marks: Marks = NO_MARKS,
) -> None:
    """Writes clips as their frames come; all processes take the frames, and the first one writes.

    Args:
      frames: number of the clip, of the frame, and the frame in [-1, 1], in order.
      prompts: of the clips.
      first: number of the first prompt among all, for the files' names.
      suffix: of these names.
      output: the directory.
      clip: (frames, height, width) of each.
      fps: frames per second.
      facts: how the clips were made, for their sidecars.
      marks: watermark and signature.
    """
    shape = dict(zip(("frames", "height", "width"), clip, strict=True))
    for number, of_one_clip in itertools.groupby(frames, key=lambda each: each[0]):
        prompt, name = prompts[number], file_name(first + number, prompts[number]) + suffix
        sidecar = {"prompt": prompt, "number": first + number, **facts, **shape, "fps": fps}
        is_first = processes.is_first()
        files = open_video_files(output, name, fps, sidecar, marks) if is_first else contextlib.nullcontext(len)
        with files as add:
            for _, _, image in of_one_clip:
                add(image)
        mp4 = video_files(output, name)[0]
        processes.say(f"{mp4}  {shape['frames']} frames of {shape['width']}x{shape['height']}: {prompt!r}")


def read_prompts(prompts: Sequence[str], prompts_file: str | None) -> list[str]:
    """The prompts of the flags, then those of the file.

    Raises:
      ValueError: there are none.
    """
    lines = pathlib.Path(prompts_file).read_text(encoding="utf-8").splitlines() if prompts_file else []
    found = [*prompts, *(line.strip() for line in lines if line.strip())]
    if not found:
        raise ValueError('no prompt: give --prompt="..." or --prompts_file=FILE with one prompt per line')
    return found


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    with processes.ended_by_errors(ValueError, OSError, MemoryError, ImportError, CheckpointError):
        prompts = read_prompts(FLAGS.prompt, FLAGS.prompts_file)
        check_task_flags()
        marks = marks_of_flags()
        interval, windows, enlarging = guidance_interval_flag(), window_flags(), enlarging_flags()
        approximations = approximation_flags()
        both = {"text_checkpoint": FLAGS.text_checkpoint, "tokenizer": FLAGS.tokenizer}
        both["mesh"] = meshes.make_mesh(rows=FLAGS.mesh_rows)
        run = load(FLAGS.checkpoint, init_from=FLAGS.init_from, ema_decay=FLAGS.ema_decay, **both)
        moved = [*FLAGS.super_resolution_init_from, *[""] * len(FLAGS.super_resolution)]
        # One that is named twice is loaded once.
        load_once = functools.cache(lambda path, init_from: load(path, init_from=init_from, **both))
        chain = list(map(load_once, FLAGS.super_resolution, moved))
        frames, height = FLAGS.frames or run.config.clip.frames, FLAGS.height or run.config.clip.size
        factor = whole_factor(chain)
        task = read_task(run, frames=frames, height=height, factor=factor)
        size = task.size or (height, FLAGS.width or run.config.clip.size)
        if FLAGS.int8:
            for network in {id(each): each.model.unet for each in (run, *chain)}.values():
                to_int8(network)
        sample_task = sample
        if task.alphas:
            sample_task = functools.partial(sample_styles, style=load(FLAGS.style, **both))
        sample_task(
            run,
            super_resolution=chain,
            prompts=prompts,
            output=pathlib.Path(FLAGS.output),
            seed=FLAGS.seed,
            batch_size=FLAGS.batch_size,
            frames=frames,
            size=size,
            task=task,
            enlarging=enlarging,
            steps=FLAGS.steps,
            guidance_weight=FLAGS.guidance,
            guidance_interval=interval,
            guidance_rescale=FLAGS.guidance_rescale,
            negative_prompt=FLAGS.negative_prompt,
            sampler=FLAGS.sampler,
            spacing=FLAGS.spacing,
            denoising=FLAGS.denoising,
            approximations=approximations,
            marks=marks,
            **windows,
        )


if __name__ == "__main__":
    platform.configure()
    meshes.initialize()
    define_flags()
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
