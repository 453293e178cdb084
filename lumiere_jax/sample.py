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
from typing import Any, get_args

import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS
from jax.sharding import Mesh

from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.temporal_weights import load_temporal
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.diffusion.approximations import Approximations
from lumiere_jax.diffusion.samplers import Sampler, Spacing
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
from lumiere_jax.provenance.marks import Marks, define_provenance_flags, marks_of_flags
from lumiere_jax.sample_tasks import Task, check_task_flags, define_task_flags, read_task


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


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    flags.DEFINE_string(
        "checkpoint", None, "The --workdir of a text-to-video training, or temporal layers that export_weights wrote."
    )
    flags.DEFINE_multi_string(
        "super_resolution", [], "The same of a super-resolution training; repeated: each enlarges the last one's clips."
    )
    flags.DEFINE_string(
        "init_from", "", "The image model of exported layers; or where a run's imported U-Net was moved to."
    )
    flags.DEFINE_multi_string("super_resolution_init_from", [], "The same for each --super_resolution, in their order.")
    flags.DEFINE_string(
        "text_checkpoint", "", "The T5 encoder of exported layers; or where the imported one was moved to. For both."
    )
    flags.DEFINE_string("tokenizer", "", "The SentencePiece model of --text_checkpoint; default: the one beside it.")
    flags.DEFINE_float("ema_decay", None, "Which of a run's averages, by its decay; default: the first.")
    flags.DEFINE_multi_string("prompt", [], "What to show; may be repeated.")
    flags.DEFINE_string("prompts_file", None, "A text file with one prompt per line.")
    flags.DEFINE_string("output", "samples", "Where the clips go.")
    flags.DEFINE_integer("seed", 0, "Of the noise: the same seed gives the same pixels.", 0, 2**31 - 2)
    flags.DEFINE_integer("frames", None, "Frames per clip; default: as trained.", 1)
    flags.DEFINE_integer("height", None, "Pixels of the base clip; default: as trained.", 1)
    flags.DEFINE_integer("width", None, "Pixels of the base clip; default: as trained.", 1)
    flags.DEFINE_integer("steps", None, "Denoising steps of the base model; default: the run's config.", 1)
    flags.DEFINE_float("guidance", None, "Classifier-free guidance weight, 1 is none; default: the config's.")
    flags.DEFINE_list(
        "guidance_interval",
        None,
        "FIRST,LAST diffusion time, of 0 to 1, at which the base model is guided; default: all.",
    )
    flags.DEFINE_float(
        "guidance_rescale",
        None,
        "How far, 0 to 1, to bring guided clips back to the contrast of unguided ones; default: the config's.",
    )
    flags.DEFINE_string("negative_prompt", "", "What guidance leads away from, at all resolutions.")
    flags.DEFINE_enum("sampler", None, get_args(Sampler), "Of the base model; default: the config's.")
    flags.DEFINE_enum("spacing", None, get_args(Spacing), "Of its times; default: the config's.")
    flags.DEFINE_bool("denoising", False, "Write NAME_denoising.png, too: the middle frame as each step predicts it.")
    flags.DEFINE_integer(
        "window",
        None,
        "Frames at a time, for clips that are longer than the base model's: MultiDiffusion joins them.",
        1,
    )
    flags.DEFINE_integer(
        "window_overlap", None, "Frames that its neighbouring windows share; default: a quarter of --window.", 0
    )
    flags.DEFINE_integer(
        "window_batch", None, "Windows of a clip that the base model denoises at once; default: all.", 1
    )
    flags.DEFINE_enum(
        "window_weights",
        None,
        ["uniform", "feathered"],
        "How windows and tiles are averaged, at all resolutions; default: the config's, or uniform as in the paper.",
    )
    define_task_flags()
    define_approximation_flags()
    define_device_flags()
    define_memory_flags()
    define_provenance_flags()


def define_approximation_flags() -> None:
    """What is computed less exactly, by the base model unless said otherwise; docs/sampling.md has its price."""
    default = Approximations()
    flags.DEFINE_integer(
        "deep_features_every", default.deep_features_every, "Run all layers at every so many-th call only.", 1
    )
    flags.DEFINE_integer("shallow_layers", default.shallow_layers, "Last layers that the other calls run.", 1)
    flags.DEFINE_float(
        "half_rate_from", default.half_rate_from, "Diffusion time, 0 to 1, above which frames are denoised in pairs."
    )
    flags.DEFINE_bool("int8", False, "Keep the networks' kernels as 8-bit integers, at all resolutions.")


def define_device_flags() -> None:
    """How sampling is divided over devices."""
    flags.DEFINE_integer("batch_size", None, "Clips that are sampled at once; default: 4, or as the devices need.", 1)
    flags.DEFINE_integer("mesh_rows", 1, "Devices that share the height of a clip; the others divide the batch.", 1)


def define_memory_flags() -> None:
    """How super-resolution is brought into the memory that there is."""
    flags.DEFINE_float(
        "memory_gib", None, "GiB of a device for super-resolution, beside parameters; default: what is free.", 0.0
    )
    flags.DEFINE_integer(
        "super_resolution_window_batch",
        None,
        "Windows that super-resolution denoises at once; default: the config's, or what fits.",
        1,
    )
    flags.DEFINE_integer("tile", None, "Pixels of a side of its tiles; default: whole frames, or what fits.", 1)
    flags.DEFINE_integer("tile_overlap", None, "Pixels that neighbouring tiles share; default: an eighth of a tile.", 0)


def enlarging_flags() -> dict[str, Any]:
    """The choices of `super_resolution.prepare` that the flags make."""
    if FLAGS.tile is None and FLAGS.tile_overlap is not None:
        raise ValueError(f"--tile_overlap={FLAGS.tile_overlap} says nothing without --tile")
    overlap = FLAGS.tile // 8 if FLAGS.tile and FLAGS.tile_overlap is None else FLAGS.tile_overlap
    return {
        "memory": None if FLAGS.memory_gib is None else int(FLAGS.memory_gib * 2**30),
        "window_batch": FLAGS.super_resolution_window_batch,
        "tile": None if FLAGS.tile is None else (FLAGS.tile, overlap),
        "negative_prompt": FLAGS.negative_prompt,
        "weights": FLAGS.window_weights,
    }


def approximation_flags() -> Approximations:
    """The approximations that the flags ask for."""
    if FLAGS.deep_features_every == 1 and FLAGS.shallow_layers != Approximations().shallow_layers:
        raise ValueError(f"--shallow_layers={FLAGS.shallow_layers} says nothing without --deep_features_every")
    return Approximations(FLAGS.deep_features_every, FLAGS.shallow_layers, FLAGS.half_rate_from)


def window_flags() -> dict[str, Any]:
    """The windows of the base model that the flags ask for: choices of `sample_videos`."""
    for name in ("window_overlap", "window_batch"):
        if FLAGS.window is None and FLAGS[name].value is not None:
            raise ValueError(f"--{name}={FLAGS[name].value} says nothing without --window")
    if FLAGS.window is None and FLAGS.window_weights is not None and not FLAGS.super_resolution:
        raise ValueError(
            f"--window_weights={FLAGS.window_weights} says nothing without windows: give --window or --super_resolution"
        )
    if FLAGS.window is None:
        return {}
    overlap = FLAGS.window // 4 if FLAGS.window_overlap is None else FLAGS.window_overlap
    return {"window": (FLAGS.window, overlap), "weights": FLAGS.window_weights, "window_batch": FLAGS.window_batch}


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    with processes.ended_by_errors(ValueError, OSError, MemoryError, ImportError, CheckpointError):
        prompts = read_prompts(FLAGS.prompt, FLAGS.prompts_file)
        check_task_flags()
        marks = marks_of_flags()
        interval, windows, enlarging = _interval(FLAGS.guidance_interval), window_flags(), enlarging_flags()
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


def _interval(words: list[str] | None) -> tuple[float, float] | None:
    if words is None:
        return None
    try:
        first, last = map(float, words)
    except ValueError:
        raise ValueError(f"--guidance_interval={','.join(words)}: give two numbers, FIRST,LAST") from None
    return first, last


if __name__ == "__main__":
    platform.configure()
    meshes.initialize()
    define_flags()
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
