"""What measures of motion say of whole clips, and of the same clips damaged (lumiere_jax/evaluation/motion.py).

    python -m benchmarks.motion_measures [--clips=64] [--videos=DIR] [--output=DIR]

Rendered clips of `moving_shapes`, 80 frames of 64x64 pixels at 16 fps, whose objects change their place; with
`--videos` also real clips, of which only what needs no scene is measured. Writes

    motion_measures.json    means and 95 % intervals by measure and damage
    motion_measures.png     X-T slices of one clip: whole, and damaged in each way
"""

import json
import pathlib

import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS

from benchmarks.machine import machine
from lumiere_jax.data.area_resizing import proportional_width
from lumiere_jax.data.moving_shapes import prompts, render
from lumiere_jax.data.task_inputs import frame_size, video_for
from lumiere_jax.data.video_io import to_float, write_contact_sheet
from lumiere_jax.evaluation.damages import DAMAGES
from lumiere_jax.evaluation.motion import adjacent_frame_error, motion_measures, period
from lumiere_jax.evaluation.xt_slice import xt_slice

VERSIONS = ("jax", "numpy", "scipy")
FRAMES, FPS, SIZE = 80, 16, 64
_MOVING = ("translating", "circling", "swinging", "bouncing")


def moving_clips(count: int) -> tuple[np.ndarray, list]:
    """Rendered clips [count, 80, 64, 64, 3] in [-1, 1] whose objects change their place, and their scenes."""
    drawn = (scene for _, scene in prompts(3 * count, 0, duration=FRAMES / FPS))
    scenes = [scene for scene in drawn if scene.objects[0].motion in _MOVING][:count]
    return np.stack([to_float(render(scene, SIZE, FRAMES, FPS)) for scene in scenes]), scenes


def damaged(videos: np.ndarray) -> dict[str, np.ndarray]:
    """The clips as they are, and damaged in each way."""
    draw = np.random.default_rng(0)
    return {"whole": videos} | {
        name: np.stack([damage(video, draw) for video in videos]) for name, damage in DAMAGES.items()
    }


def of_real_clips(files: list[pathlib.Path]) -> dict[str, dict[str, float]]:
    """Adjacent frame error, and period with its strength, of real clips of 80 frames, whole and damaged.

    Files that are no such clips are named, and left out.
    """
    rows: dict[str, dict[str, float]] = {}
    for file in tqdm.tqdm(files, unit="clip"):
        try:
            size = (SIZE, proportional_width(frame_size(file), SIZE))
            video = video_for(file, frames=FRAMES, fps=FPS, size=size)
        except ValueError as error:
            print(f"left out: {error}")
            continue
        for name, (clip,) in damaged(video[None]).items():
            found = period(clip, FPS)
            values = {"adjacent frame error": adjacent_frame_error(clip)}
            rows[f"{file.name}, {name}"] = values | {"period": found.seconds, "strength": found.strength}
    return rows


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Means with intervals as Markdown."""
    measures = list(next(iter(rows.values())))
    lines = [f"| clips | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for name, row in rows.items():
        cells = (f"{row[each]['mean']:.4f} ({row[each]['low']:.4f} to {row[each]['high']:.4f})" for each in measures)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_integer("clips", 64, "Rendered clips.", 1)
    flags.DEFINE_string("videos", None, "A folder of videos of at least five seconds.")
    flags.DEFINE_string("output", "workdir/motion_measures", "Values and pictures.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    videos, scenes = moving_clips(FLAGS.clips)
    of_each = damaged(videos)
    rows = {name: motion_measures(clips, scenes, FPS) for name, clips in tqdm.tqdm(of_each.items(), unit="damage")}
    print(table(rows))
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    values = {"rendered": rows, "clips": len(videos), "frames": FRAMES, "fps": FPS, "size": SIZE}
    if FLAGS.videos:
        real = of_real_clips(sorted(pathlib.Path(FLAGS.videos).glob("*.mp4")))
        values["real"] = real
        for name, row in real.items():
            print(f"{name}: " + ", ".join(f"{measure} {value:.4f}" for measure, value in row.items()))
    (output / "motion_measures.json").write_text(json.dumps(values | {"machine": machine(VERSIONS)}, indent=1) + "\n")
    slices = np.stack([xt_slice(clips[0], scale=2) for clips in of_each.values()])
    write_contact_sheet(output / "motion_measures.png", to_float(slices), columns=len(slices))
    print(f"{output / 'motion_measures.png'}: {', '.join(of_each)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
