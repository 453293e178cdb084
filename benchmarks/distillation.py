"""Students beside their teacher: with as few calls of the network, who comes closer to where the teacher leads?

    python -m benchmarks.distillation --teacher=RUN --student=RUN [--student=RUN] [--prompts=16] [--output=DIR]

All start from the same noise, for captions of `moving_shapes` that no training had. The reference is the teacher with
64 guided DDIM steps; beside the students stands the teacher with 16, 8 and 4 steps of DDIM and of DPM-Solver++(2M).
Writes

    distillation.json     calls of the network (a guided step is two), and the mean squared error to the reference
    distillation.png      the middle frames of four clips, a row for each way
"""

import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS

from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.data import moving_shapes
from lumiere_jax.distributed import platform
from lumiere_jax.pipelines.generation import sampling_settings
from lumiere_jax.pipelines.results import write_sheet
from lumiere_jax.pipelines.text_to_video import Videos, sample_in_batches

REFERENCE = ("ddim", 64)
TEACHER_WAYS = tuple((sampler, steps) for steps in (16, 8, 4) for sampler in ("ddim", "dpm_solver_pp_2m"))


def load_students(teacher: Run, paths: Sequence[str]) -> list[Run]:
    """The students' runs.

    Raises:
      ValueError: a run that is no student, or one of another clip than the teacher's.
    """
    students = [load_run(path) for path in paths]
    for student in students:
        if "distillation" not in student.config:
            raise ValueError(f"--student={student.path} was not trained by configs/distill.py")
        if student.config.clip.to_dict() != teacher.config.clip.to_dict():
            raise ValueError(f"--student={student.path} makes other clips than --teacher={teacher.path}")
    return students


def sampled(run: Run, captions: Sequence[str], **choices: str | int) -> tuple[Videos, int]:
    """Clips, and how often each went through the network."""
    settings = sampling_settings(run.config, **choices)
    batches = [batch.videos for batch in sample_in_batches(run, captions, seed=0, **choices)]
    return np.concatenate(batches), settings.calls * settings.evaluations_a_call


def measure(teacher: Run, students: Sequence[Run], captions: Sequence[str]) -> tuple[list[dict], dict[str, Videos]]:
    """(calls and error of each way, its clips), the reference first."""
    ways = {f"teacher, {sampler}, {steps} steps": (teacher, sampler, steps) for sampler, steps in TEACHER_WAYS}
    for student in students:
        steps = student.config.distillation.steps
        ways[f"student, {steps} steps"] = (student, "ddim", steps)
    expected, calls = sampled(teacher, captions, sampler=REFERENCE[0], steps=REFERENCE[1])
    label = f"teacher, {REFERENCE[0]}, {REFERENCE[1]} steps"
    rows, clips = [{"way": label, "calls": calls, "error": 0.0}], {label: expected}
    for label, (run, sampler, steps) in tqdm.tqdm(ways.items(), unit="way"):
        clips[label], calls = sampled(run, captions, sampler=sampler, steps=steps)
        rows.append({"way": label, "calls": calls, "error": float(np.square(clips[label] - expected).mean())})
    return rows, clips


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("teacher", None, "The --workdir of a Space-Time U-Net's training on moving_shapes.")
    flags.DEFINE_multi_string("student", None, "That of a training by configs/distill.py; may be repeated.")
    flags.DEFINE_integer("prompts", 16, "How many clips.", 1)
    flags.DEFINE_string("output", "workdir/distillation", "Where numbers and picture go.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    try:
        teacher = load_run(FLAGS.teacher)
        students = load_students(teacher, FLAGS.student)
    except (CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    duration = teacher.config.clip.frames / teacher.config.clip.fps
    pairs = moving_shapes.prompts(FLAGS.prompts, seed=1, held_out=True, duration=duration)
    rows, clips = measure(teacher, students, [caption for caption, _ in pairs])
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "distillation.json").write_text(json.dumps(rows, indent=1) + "\n")
    middle = teacher.config.clip.frames // 2
    shown = [np.concatenate([videos[:4, middle], videos[:4, -1]]) for videos in clips.values()]
    write_sheet(output / "distillation.png", shown, "a student beside its teacher", {"measured": rows})
    print(f"{'way':38s}{'calls':>8s}{'error':>10s}")
    for row in rows:
        print(f"{row['way']:38s}{row['calls']:>8d}{row['error']:>10.4f}")
    print(
        f"\nrows of {output / 'distillation.png'}: the ways in this order; middle frames of four clips, then last ones"
    )


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flags_as_required(["teacher", "student"])
    app.run(main)
