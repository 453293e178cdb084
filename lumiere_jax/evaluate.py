"""Evaluation: `python -m lumiere_jax.evaluate --checkpoint=DIR [--prompts=100] [--super_resolution=DIR]`.

Prompt following on `moving_shapes`: clips are sampled for prompts whose scene is known, colour, shape, direction and
motion are read back by classical image processing, and the accuracy of each is printed with its 95 % interval. So are
measures of the motion itself (evaluation/motion.py). Beside them stands the same reading of clips that are *rendered*
from those scenes: what the evaluator itself gets right.
On several hosts each runs the same command, as for `sample`.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS

from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.run_directory import Run, load_run
from lumiere_jax.data import moving_shapes, video_io
from lumiere_jax.distributed import mesh as meshes
from lumiere_jax.distributed import platform, processes
from lumiere_jax.evaluation.motion import motion_measures
from lumiere_jax.evaluation.prompt_following import ATTRIBUTES, prompt_following_accuracy
from lumiere_jax.pipelines.super_resolution import prepare_chain
from lumiere_jax.pipelines.text_to_video import sample_in_batches
from lumiere_jax.sample import define_device_flags


def evaluate(
    run: Run,
    super_resolution: Run | None,
    output: pathlib.Path,
    *,
    prompts: int,
    held_out: bool,
    seed: int,
    guidance_weight: float | None,
    batch_size: int | None = None,
) -> dict[str, dict]:
    """Measures prompt following and motion.

    Returns and writes, by name of the clips, `prompt_following_accuracy`, with `motion_measures` as `measures`.

    Raises:
      ValueError: clips too short for motion to be read from them.
    """
    fps, frames = run.config.clip.fps, run.config.clip.frames
    if frames < 4:
        raise ValueError(f"{run.path} makes {frames} frames: motion cannot be read from fewer than 4")
    captions, scenes = zip(*moving_shapes.prompts(prompts, seed, held_out, duration=frames / fps), strict=True)
    size = run.config.clip.size
    rendered = [video_io.to_float(moving_shapes.render(scene, size, frames, fps)) for scene in scenes]
    clips: dict[str, list[np.ndarray]] = {"rendered, the evaluator's own accuracy": rendered, "generated": []}
    if super_resolution is not None:
        clips["generated, super-resolved"] = []
    chain = prepare_chain(
        [super_resolution] if super_resolution else [], (frames, size, size), captions, clips=len(captions)
    )
    settings = {"seed": seed, "batch_size": batch_size, "guidance_weight": guidance_weight}
    with tqdm.tqdm(total=prompts, unit="clip", disable=not processes.is_first()) as bar:
        for base, _ in sample_in_batches(run, captions, **settings):
            first = len(clips["generated"])
            for stage in chain:
                batch = captions[first : first + len(base)]
                clips["generated, super-resolved"] += list(stage.videos(base, batch, seed=seed, first_number=first))
            clips["generated"] += list(base)
            bar.update(len(base))
    results = {
        name: prompt_following_accuracy(np.stack(videos), scenes, fps)
        | {"measures": motion_measures(np.stack(videos), scenes, fps)}
        for name, videos in clips.items()
    }
    if processes.is_first():
        _write(output, run, results, captions, clips["generated"], {"held_out": held_out, "seed": seed})
    return results


def _write(
    output: pathlib.Path,
    run: Run,
    results: dict[str, dict],
    captions: Sequence[str],
    clips: Sequence[np.ndarray],
    protocol: dict[str, Any],
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    protocol = {"prompts": len(captions), **protocol, "step": run.step}
    (output / "prompt_following.json").write_text(json.dumps(protocol | {"results": results}, indent=2) + "\n")
    (output / "prompts.txt").write_text("".join(f"{caption}\n" for caption in captions))
    video_io.write_contact_sheet(output / "generated.png", clips[:16])


def _print_table(results: dict[str, dict]) -> None:
    attributes = ("found", *ATTRIBUTES)
    print(f"{'accuracy (95 % interval)':42}" + "".join(f"{attribute:>18}" for attribute in attributes))
    for name, row in results.items():
        cells = (f"{row[a]['accuracy']:.2f} ({row[a]['low']:.2f}-{row[a]['high']:.2f})" for a in attributes)
        print(f"{name:42}" + "".join(f"{cell:>18}" for cell in cells))

    measures = list(next(iter(results.values()))["measures"])
    print(f"{'mean (95 % interval)':42}" + "".join(f"{measure:>26}" for measure in measures))
    for name, row in results.items():
        cells = (f"{each['mean']:.3f} ({each['low']:.3f}-{each['high']:.3f})" for each in row["measures"].values())
        print(f"{name:42}" + "".join(f"{cell:>26}" for cell in cells))


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    flags.DEFINE_string("checkpoint", None, "The --workdir of a text-to-video training on moving_shapes.")
    flags.DEFINE_string("super_resolution", None, "Also evaluate after this run's super-resolution.")
    flags.DEFINE_integer("prompts", 100, "How many prompts.", 1)
    flags.DEFINE_bool("held_out", False, "Combinations of attributes that the training split does not have.")
    flags.DEFINE_integer("seed", 0, "Of the prompts and of the noise.", 0)
    flags.DEFINE_float("guidance", None, "Classifier-free guidance weight; default: the run's config.")
    define_device_flags()
    flags.DEFINE_string("output", None, "Where the JSON and the sheet go; default: CHECKPOINT/evaluation.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    with processes.ended_by_errors(ValueError, OSError, MemoryError, CheckpointError):
        mesh = meshes.make_mesh(rows=FLAGS.mesh_rows)
        run = load_run(FLAGS.checkpoint, mesh=mesh)
        super_resolution = load_run(FLAGS.super_resolution, mesh=mesh) if FLAGS.super_resolution else None
        output = pathlib.Path(FLAGS.output or run.path / "evaluation")
        results = evaluate(
            run,
            super_resolution,
            output,
            prompts=FLAGS.prompts,
            held_out=FLAGS.held_out,
            seed=FLAGS.seed,
            guidance_weight=FLAGS.guidance,
            batch_size=FLAGS.batch_size,
        )
        if processes.is_first():
            _print_table(results)
            print(f"written to {output}")
        processes.wait_for_all("evaluated")


if __name__ == "__main__":
    platform.configure()
    meshes.initialize()
    define_flags()
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
