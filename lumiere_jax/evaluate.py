"""Evaluation: `python -m lumiere_jax.evaluate --checkpoint=DIR [--protocol=moving_shapes] [--super_resolution=DIR]`.

    --protocol=moving_shapes       prompt following and motion, read back without any network
    --protocol=ucf101_zero_shot    the paper's Table 1: FVD and IS on UCF101's classes, with --i3d, --c3d, --reference
    --protocol=folder              clips that are there already: --generated=DIR [--reference=DIR]
    --compare=A.json --compare=B.json    two results side by side, if their protocol is the same

Clips are kept in OUTPUT/clips, and a command that was stopped goes on there. The numbers, with their intervals and the
protocol that made them, go to OUTPUT/evaluation.json, and with clips and X-T slices to the page OUTPUT/report.html.
docs/evaluation.md says what each measure is. On several hosts each runs the same command, as for `sample`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS
from jaxtyping import Bool

from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.distributed import mesh as meshes
from lumiere_jax.distributed import platform, processes
from lumiere_jax.evaluation import material as materials
from lumiere_jax.evaluation import seams
from lumiere_jax.evaluation.clip_files import read_clip
from lumiere_jax.evaluation.generated_clips import generate_clips
from lumiere_jax.evaluation.material import Material
from lumiere_jax.evaluation.measures import Row
from lumiere_jax.evaluation.network_measures import NetworkMeasures
from lumiere_jax.evaluation.result import comparison, measured, protocol_of, read_result
from lumiere_jax.evaluation.result_table import table
from lumiere_jax.pipelines.results import description
from lumiere_jax.pipelines.super_resolution import whole_factor
from lumiere_jax.sample_flags import define_device_flags

PROTOCOLS = ("moving_shapes", "ucf101_zero_shot", "folder")
_PROMPTS = 100  # of moving_shapes
_FOLDER_FRAMES = 16


def evaluate(
    run: Run,
    super_resolution: Sequence[Run],
    material: Material,
    output: pathlib.Path,
    *,
    seed: int = 0,
    repeats: int = 1,
    frames: int | None = None,
    batch_size: int | None = None,
    networks: NetworkMeasures | None = None,
    report: bool = True,
    **choices: Any,
) -> dict[str, Any]:
    """Generates a protocol's clips where they are not there yet, and measures them.

    Args:
      run: a text-to-video run.
      super_resolution: super-resolution runs, each for the clips of the one before: the largest clips get a row, too.
      material: the protocol's prompts and real clips.
      output: the directory for clips and results.
      seed: of the noise of the first repeat.
      repeats: how often all clips are generated.
      frames: that are measured of each clip: the central ones; None: all.
      batch_size: clips that are sampled at once.
      networks: measures that need weights; of the largest clips alone.
      report: whether to write the page, too.
      **choices: of `sample_videos`.

    Returns:
      what `evaluation.json` holds: `protocol`, `models`, `sampling`, `versions`, and `results` by row.

    Raises:
      ValueError: as `generate_clips` and the measures.
      MemoryError: as `generate_clips`.
    """
    if frames is not None and frames > run.config.clip.frames:
        raise ValueError(f"frames={frames}: {run.path} makes {run.config.clip.frames}")
    if networks:
        networks.check(
            clips=len(material.prompts),
            frames=frames or run.config.clip.frames,
            has_reference=material.reference is not None,
            has_prompts=True,
        )
    made = [
        generate_clips(
            run,
            super_resolution,
            material.prompts,
            output / "clips" / f"seed_{seed + repeat}",
            seed=seed + repeat,
            batch_size=batch_size,
            **choices,
        )
        for repeat in range(repeats)
    ]
    fps, names = run.config.clip.fps, {"base": "generated", "large": "generated, super-resolved"}
    read = functools.partial(functools.partial, read_clip, frames=frames)
    borders = _borders(super_resolution, run.config.clip.frames) if frames is None else None
    rows = [Row(names[kind], [list(map(read, files[kind])) for files in made], fps, borders) for kind in made[0]]
    if material.reference is not None:  # has no windows: what the same pairs of frames differ by without
        material = dataclasses.replace(material, reference=dataclasses.replace(material.reference, borders=borders))
    size = run.config.clip.size * whole_factor(super_resolution)
    facts = {
        "models": [description(each) for each in (run, *super_resolution)],
        "sampling": {"seed": seed, **choices},
    }
    protocol = protocol_of(material, rows[-1], seed, frames or run.config.clip.frames, fps, (size, size), networks)
    return measured(rows, material, protocol, output, networks, facts, report=report)


def _borders(super_resolution: Sequence[Run], frames: int) -> Bool[np.ndarray, " pairs"] | None:
    """Where windows of any of the runs meet; None: nowhere."""
    found = np.zeros(frames - 1, bool)
    for each in super_resolution:
        windows = each.config.multidiffusion
        found |= seams.borders(frames, each.config.clip.frames, windows.overlap, windows.weights)
    return found if found.any() else None


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    flags.DEFINE_enum("protocol", "moving_shapes", PROTOCOLS, "Which prompts, and which real clips.")
    flags.DEFINE_string("checkpoint", None, "The --workdir of a text-to-video training.")
    flags.DEFINE_string("super_resolution", None, "Also evaluate after this run's super-resolution.")
    flags.DEFINE_integer("prompts", None, "How many clips of each repeat; default: the protocol's.", 1)
    flags.DEFINE_integer("repeats", 1, "How often all are generated: with seeds SEED, SEED + 1, ...", 1)
    flags.DEFINE_bool("held_out", False, "moving_shapes: combinations of attributes that the training split lacks.")
    flags.DEFINE_bool("two_objects", False, "moving_shapes: two objects in each prompt, rather than one.")
    flags.DEFINE_integer("seed", 0, "Of the prompts and of the noise.", 0)
    flags.DEFINE_float("guidance", None, "Classifier-free guidance weight; default: the run's config.")
    flags.DEFINE_integer("steps", None, "Denoising steps of the base model; default: the run's config.", 1)
    flags.DEFINE_integer("frames", None, "ucf101_zero_shot, folder: the central frames of each clip; default: 16.", 1)
    flags.DEFINE_string("generated", None, "folder: the directory of the generated clips.")
    flags.DEFINE_string("pattern", "*.mp4", "folder: of the generated clips' names.")
    flags.DEFINE_string("reference", None, "ucf101_zero_shot, folder: the directory of the real clips.")
    flags.DEFINE_float("fps", None, "folder: frames per second, of both; default: each clip's own.", 0.0)
    flags.DEFINE_integer("size", None, "folder: pixels of a side, to which all clips are brought.", 1)
    flags.DEFINE_string("i3d", None, "I3D's weights, for the Fréchet video distance: see docs/evaluation.md.")
    flags.DEFINE_enum("resize", "tf1_bilinear", ["tf1_bilinear", "half_pixel"], "How frames come to I3D's size.")
    flags.DEFINE_string("c3d", None, "C3D's weights, for the inception score.")
    flags.DEFINE_string("c3d_mean", None, "The mean of C3D's training clips.")
    flags.DEFINE_integer("inception_splits", 10, "Parts of the clips whose inception scores are averaged.", 1)
    flags.DEFINE_string("clip", None, "The directory of CLIP's weights and tokenizer, for CLIP similarity.")
    flags.DEFINE_bool("report", True, "Write OUTPUT/report.html: numbers, clips, X-T slices and the protocol.")
    flags.DEFINE_multi_string("compare", [], "Only show these evaluation.json files side by side.")
    define_device_flags()
    flags.DEFINE_string("output", None, "Where clips and results go; default: CHECKPOINT/evaluation.")


def _of_flags() -> dict[str, Any]:
    weights = {name: FLAGS[name].value for name in _WEIGHTS if FLAGS[name].value is not None}
    networks = NetworkMeasures(**weights, resize=FLAGS.resize, inception_splits=FLAGS.inception_splits)
    if FLAGS.protocol == "ucf101_zero_shot" and not weights:
        raise ValueError("ucf101_zero_shot measures with networks alone: give --i3d and --reference, --c3d, or --clip")
    if FLAGS.protocol == "folder":
        return _folder(networks)
    mesh = meshes.make_mesh(rows=FLAGS.mesh_rows)
    run = load_run(FLAGS.checkpoint, mesh=mesh)
    super_resolution = [load_run(FLAGS.super_resolution, mesh=mesh)] if FLAGS.super_resolution else []
    clip, size = run.config.clip, run.config.clip.size * whole_factor(super_resolution)
    if FLAGS.protocol == "moving_shapes":
        material = materials.moving_shapes(
            clips=FLAGS.prompts or _PROMPTS,
            seed=FLAGS.seed,
            held_out=FLAGS.held_out,
            two_objects=FLAGS.two_objects,
            frames=clip.frames,
            fps=clip.fps,
            size=size,
        )
        frames = None
    else:
        frames = FLAGS.frames or materials.UCF101_FRAMES
        material = materials.ucf101_zero_shot(
            FLAGS.reference, clips=FLAGS.prompts or materials.UCF101_CLIPS, frames=frames, size=(size, size)
        )
    return evaluate(
        run,
        super_resolution,
        material,
        pathlib.Path(FLAGS.output or run.path / "evaluation"),
        seed=FLAGS.seed,
        repeats=FLAGS.repeats,
        frames=frames,
        batch_size=FLAGS.batch_size,
        networks=networks,
        report=FLAGS.report,
        guidance_weight=FLAGS.guidance,
        steps=FLAGS.steps,
    )


def _folder(networks: NetworkMeasures) -> dict[str, Any]:
    frames, size = FLAGS.frames or _FOLDER_FRAMES, (FLAGS.size, FLAGS.size)
    row, material = materials.folder(
        FLAGS.generated,
        FLAGS.reference,
        pattern=FLAGS.pattern,
        clips=FLAGS.prompts,
        frames=frames,
        fps=FLAGS.fps,
        size=size,
    )
    clips, has_prompts = len(row.repeats[0]), bool(material.prompts)
    networks.check(clips=clips, frames=frames, has_reference=material.reference is not None, has_prompts=has_prompts)
    protocol = protocol_of(material, row, None, frames, FLAGS.fps, size, networks)
    return measured([row], material, protocol, pathlib.Path(FLAGS.output), networks, {}, report=FLAGS.report)


_WEIGHTS = ("i3d", "c3d", "c3d_mean", "clip")
_OF_FOLDER = ("generated", "fps", "size")
_OF_MODELS = ("checkpoint", "super_resolution", "guidance", "steps")


def check_flags() -> None:
    """Raises a ValueError for flags that lack, or that the protocol has no use for."""
    if FLAGS.compare:
        return
    is_folder = FLAGS.protocol == "folder"
    for name in _OF_MODELS if is_folder else _OF_FOLDER:
        if FLAGS[name].value is not None:
            raise ValueError(f"--{name}={FLAGS[name].value} says nothing with --protocol={FLAGS.protocol}")
    needed = ("generated", "output", "size") if is_folder else ("checkpoint",)
    for name in needed:
        if FLAGS[name].value is None:
            raise ValueError(f"--protocol={FLAGS.protocol} needs --{name}: see --help")
    if FLAGS.reference is not None and FLAGS.protocol == "moving_shapes":
        raise ValueError(f"--reference={FLAGS.reference} says nothing: moving_shapes are rendered to be compared with")
    if FLAGS.frames is not None and FLAGS.protocol == "moving_shapes":
        raise ValueError(f"--frames={FLAGS.frames} says nothing: moving_shapes' motion is read from whole clips")
    for name in ("held_out", "two_objects"):
        if FLAGS[name].value and FLAGS.protocol != "moving_shapes":
            raise ValueError(f"--{name} says nothing with --protocol={FLAGS.protocol}")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    with processes.ended_by_errors(ValueError, OSError, MemoryError, CheckpointError):
        check_flags()
        if FLAGS.compare:
            print(table(comparison({name: read_result(name) for name in FLAGS.compare})))
            return
        result = _of_flags()
        if processes.is_first():
            print(table(result["results"]))
        processes.wait_for_all("evaluated")


if __name__ == "__main__":
    platform.configure()
    meshes.initialize()
    define_flags()
    app.run(main)
