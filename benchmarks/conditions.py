"""The conditional model beside its base, which was never told of conditions, and is led by replacement (zero-shot).

    python -m benchmarks.conditions --checkpoint=CONDITIONAL --base=STUNET [--clips=8] [--output=DIR]

Both are runs on `moving_shapes`, the first fine-tuned from the second (configs/conditional.py). Of held-out clips a
part is given, of each kind of condition the same to both, with the same noise. For each kind the mean squared error to
the real clip, in [-1, 1]: where nothing was given (`made`), which has many right answers; and where it was (`given`),
which has one. Writes

    conditions.json     all of it
    conditions.png      for each kind four frames of one clip: what is given, conditional, zero-shot, resampled, real

Resampled is zero-shot by DDIM with each step taken four times (samplers.resampled): four times the calls.
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS

from benchmarks.machine import machine
from benchmarks.temporal_seams import rendered_clips
from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.diffusion import condition
from lumiere_jax.diffusion.condition import Condition
from lumiere_jax.distributed import platform
from lumiere_jax.pipelines.results import write_sheet
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.provenance.metadata import COMPOSITE, SOURCE_TYPE

RESAMPLED = 4
VERSIONS = ("jax", "jaxlib", "flax", "numpy")


def conditions(clips: np.ndarray) -> dict[str, Condition]:
    """What is given of clips [clips, frames, height, width, 3], by the kind of task."""
    _, frames, height, width, _ = clips.shape
    middle = np.zeros((height, width), np.float32)
    middle[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1.0
    quarter = height // 4
    inside = clips[:, :, quarter:-quarter, quarter:-quarter]

    def of_each(make: Any, videos: np.ndarray = clips) -> Condition:
        return Condition(*(np.stack(parts) for parts in zip(*map(make, videos), strict=True)))

    return {
        "first frame": of_each(lambda clip: condition.image_to_video(clip[0], frames)),
        "first and last frame": of_each(lambda clip: condition.keyframes({0: clip[0], frames - 1: clip[-1]}, frames)),
        "first half": of_each(lambda clip: condition.extension(clip[: frames // 2], frames)),
        "all but the middle": of_each(lambda clip: condition.inpainting(clip, middle)),
        "the middle": of_each(
            lambda clip: condition.outpainting(clip, top=quarter, bottom=quarter, left=quarter, right=quarter), inside
        ),
    }


def measure(conditional: Run, base: Run, clips: np.ndarray, captions: list[str]) -> tuple[list[dict], list[np.ndarray]]:
    """A row of the table for each kind, and of each the clips to be shown: as `conditions.png` has them."""
    rows, shown = [], []
    for kind, given in tqdm.tqdm(conditions(clips).items(), unit="condition"):
        made = {
            "conditional": sample_videos(conditional, captions, given=given),
            "zero-shot": sample_videos(base, captions, given=given, zero_shot=True),
            # Of the steps that can be taken again, those without noise.
            f"resampled {RESAMPLED} times": sample_videos(
                base, captions, given=given, zero_shot=True, sampler="ddim", resample=RESAMPLED
            ),
        }
        row: dict[str, Any] = {"given": kind, "share": float(given.mask.mean())}
        for name, videos in made.items():
            error = (videos - clips) ** 2
            for part, mask in (("made", 1.0 - given.mask), ("given", given.mask)):
                row[f"{name}, {part}"] = float((error * mask).sum() / (mask.sum() * error.shape[-1]))
        rows.append(row)
        blank = given.video * given.mask
        shown += [videos[0, :: max(1, videos.shape[1] // 4)][:4] for videos in (blank, *made.values(), clips)]
    return rows, shown


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        values = [value if isinstance(value, str) else f"{value:.4f}" for value in row.values()]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def check(conditional: Run, base: Run) -> None:
    """Raises a ValueError for runs that cannot be compared."""
    if "conditioning" not in conditional.config:
        raise ValueError(f"--checkpoint={conditional.path} is no conditional model: {conditional.config.name}")
    if "conditioning" in base.config or "temporal" not in base.config:
        raise ValueError(f"--base={base.path} is no Space-Time U-Net's run: {base.config.name}")
    if conditional.config.clip != base.config.clip:
        raise ValueError(f"--checkpoint and --base have other clips: {conditional.config.clip}, {base.config.clip}")


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("checkpoint", None, "The --workdir of a conditional model's training on moving_shapes.")
    flags.DEFINE_string("base", None, "The --workdir that it was fine-tuned from.")
    flags.DEFINE_integer("clips", 8, "How many.", 1)
    flags.DEFINE_string("output", "workdir/conditions", "Table and pictures.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    facts = machine(VERSIONS)
    try:
        conditional, base = load_run(FLAGS.checkpoint), load_run(FLAGS.base)
        check(conditional, base)
    except (CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    clip = base.config.clip
    clips, captions = rendered_clips(FLAGS.clips, clip.size, clip.frames, clip.fps)
    rows, shown = measure(conditional, base, clips, captions)
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "conditions.json").write_text(json.dumps({"conditions": rows, "machine": facts}, indent=1) + "\n")
    write_sheet(output / "conditions.png", shown, "completed clips", {SOURCE_TYPE: COMPOSITE, "measured": rows})
    print(table(rows))
    print(f"\n{output / 'conditions.png'}: for each row of the table given, conditional, zero-shot, resampled, real")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flags_as_required(["checkpoint", "base"])
    app.run(main)
