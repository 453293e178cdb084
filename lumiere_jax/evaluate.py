"""Evaluation: `python -m lumiere_jax.evaluate --checkpoint=DIR [--prompts=100] [--super_resolution=DIR]`.

Prompt following on `moving_shapes`: clips are sampled for prompts whose scene is known, colour, shape, direction and
motion are read back by classical image processing, and the accuracy of each is printed with its 95 % interval. Beside
it stands the same reading of clips that are *rendered* from those scenes: what the evaluator itself gets right.
"""

import json
import pathlib
import sys

import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS

from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.run_directory import Run, load_run
from lumiere_jax.data import moving_shapes, video_io
from lumiere_jax.distributed import platform
from lumiere_jax.evaluation.prompt_following import ATTRIBUTES, prompt_following_accuracy
from lumiere_jax.pipelines.text_to_video import sample_videos, super_resolve


def evaluate(
    run: Run,
    super_resolution: Run | None,
    output: pathlib.Path,
    *,
    prompts: int,
    held_out: bool,
    seed: int,
    guidance_weight: float | None,
    batch_size: int,
) -> dict[str, dict]:
    """Measures prompt following; returns and writes `{name of the clips: {attribute: accuracy, interval}}`.

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
    for first in tqdm.trange(0, prompts, batch_size, unit="batch"):
        texts = captions[first : first + batch_size]
        videos = sample_videos(run, texts, seed=seed, first_number=first, guidance_weight=guidance_weight)
        clips["generated"] += list(videos)
        if super_resolution is not None:
            high = super_resolve(super_resolution, videos, texts, seed=seed, first_number=first)
            clips["generated, super-resolved"] += list(high)
    results = {name: prompt_following_accuracy(np.stack(videos), scenes, fps) for name, videos in clips.items()}
    output.mkdir(parents=True, exist_ok=True)
    protocol = {"prompts": prompts, "held_out": held_out, "seed": seed, "step": run.step}
    (output / "prompt_following.json").write_text(json.dumps(protocol | {"results": results}, indent=2) + "\n")
    (output / "prompts.txt").write_text("".join(f"{caption}\n" for caption in captions))
    video_io.write_contact_sheet(output / "generated.png", clips["generated"][:16])
    return results


def _print_table(results: dict[str, dict]) -> None:
    attributes = ("found", *ATTRIBUTES)
    print(f"{'accuracy (95 % interval)':42}" + "".join(f"{attribute:>18}" for attribute in attributes))
    for name, row in results.items():
        cells = (f"{row[a]['accuracy']:.2f} ({row[a]['low']:.2f}-{row[a]['high']:.2f})" for a in attributes)
        print(f"{name:42}" + "".join(f"{cell:>18}" for cell in cells))


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    flags.DEFINE_string("checkpoint", None, "The --workdir of a text-to-video training on moving_shapes.")
    flags.DEFINE_string("super_resolution", None, "Also evaluate after this run's super-resolution.")
    flags.DEFINE_integer("prompts", 100, "How many prompts.", 1)
    flags.DEFINE_bool("held_out", False, "Combinations of attributes that the training split does not have.")
    flags.DEFINE_integer("seed", 0, "Of the prompts and of the noise.", 0)
    flags.DEFINE_float("guidance", None, "Classifier-free guidance weight; default: the run's config.")
    flags.DEFINE_integer("batch_size", 4, "Clips that are sampled at once.", 1)
    flags.DEFINE_string("output", None, "Where the JSON and the sheet go; default: CHECKPOINT/evaluation.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    try:
        run = load_run(FLAGS.checkpoint)
        super_resolution = load_run(FLAGS.super_resolution) if FLAGS.super_resolution else None
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
    except (ValueError, OSError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    _print_table(results)
    print(f"written to {output}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
