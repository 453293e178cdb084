"""Clips that are longer than those a base model was trained on: in one pass, or in windows that MultiDiffusion joins?

    pip install -e .
    python -m benchmarks.longer_clips [--quick] [--output=DIR]

Trains a small Space-Time U-Net on clips of 8 frames of moving_shapes, and samples clips of 20 and of 40 frames of the
same prompts and seeds: all frames in one pass, or in windows of 8 frames that share none, 2 or 4. Measures the seams as
`benchmarks.temporal_seams` does, and how far later frames drift away from the first window. Writes into --output:

    longer_slices.png    X-T slices of one clip of 40 frames
    longer_drift.png     distance of each frame from the first window, in the mean colour of frames
    longer.json          the numbers that docs/super_resolution.md quotes
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import ml_collections
import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS
from jaxtyping import Float
from matplotlib.figure import Figure

from benchmarks.temporal_seams import (
    TRUTH,
    WINDOW,
    Clips,
    Joining,
    draw_slices,
    measure,
    pair_sets,
    rendered_clips,
    report,
    summary,
)
from configs import stunet
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.distributed import platform
from lumiere_jax.evaluation.prompt_following import read_attributes
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.train import train

LENGTHS = (20, 40)  # frames: 2.5 and 5 times the window
METHODS = {
    "one pass": None,
    "disjoint windows": Joining(0, "uniform"),
    "windows, overlap 2": Joining(2, "uniform"),
    "windows, overlap 4": Joining(4, "uniform"),
    "windows, overlap 4, feathered": Joining(4, "feathered"),
}


def base_config(image_steps: int, steps: int) -> ml_collections.ConfigDict:
    """`configs/stunet.py:overfit`, 8 frames of 16x16 pixels, on more clips than it can learn by heart."""
    config = stunet.get_config("overfit")
    config.dataset.path = "one_object"
    config.clip.fps = config.image_model.clip.fps = 8.0
    for stage, count in ((config, steps), (config.image_model, image_steps)):
        stage.training.update({"steps": count, "checkpoint_every": 100, "validate_every": 100, "preview_every": 0})
        # Threshold: dynamic looks at the whole clip. Sampler: with noise windows agree better.
        stage.sampling.update({"guidance": 2.0, "threshold": "static", "sampler": "dpm_solver_pp_2m_sde", "steps": 24})
    config.training.update({"batch_size": 4, "learning_rate": 1e-3, "validation_clips": 16})
    return config


def sampled(run: Run, captions: Sequence[str], frames: int, seeds: int) -> dict[str, list[Clips]]:
    """Of each method, for each seed, a clip of each caption."""
    made: dict[str, list[Clips]] = {}
    for label, joining in tqdm.tqdm(METHODS.items(), desc=f"{frames} frames", unit="method"):
        cut = {"window": (WINDOW, joining.overlap), "weights": joining.weights} if joining else {}
        made[label] = [sample_videos(run, captions, seed=seed, frames=frames, **cut) for seed in range(seeds)]
    return made


def drift(clip: Float[np.ndarray, "frames height width 3"]) -> Float[np.ndarray, " frames"]:
    """Distance of each frame's mean colour from the first window's, root mean square over red, green and blue."""
    colours = clip.mean((1, 2))
    return np.sqrt(np.square(colours - colours[:WINDOW].mean(0)).mean(1))


def keeps_colour(clip: Float[np.ndarray, "frames height width 3"], fps: float) -> float | None:
    """Share of the later windows whose object has the colour of the first one's; None where that shows no object."""
    windows = [clip[first : first + WINDOW] for first in range(0, len(clip) - WINDOW + 1, WINDOW)]
    first, *later = (read_attributes(window, fps) for window in windows)
    if first is None:
        return None
    return float(np.mean([seen is not None and seen.colour == first.colour for seen in later]))


def drift_summary(made: Mapping[str, Sequence[Clips]], fps: float) -> dict[str, dict[str, Any]]:
    """Of each method: drift of the last window's frames, of the first one's own, and how often colours are kept."""
    found = {}
    for label, runs in made.items():
        drifts = np.array([drift(clip) for clips in runs for clip in clips])
        kept = [keeps_colour(clip, fps) for clips in runs for clip in clips]
        seen = [share for share in kept if share is not None]
        found[label] = {
            "first_window": float(drifts[:, :WINDOW].mean()),
            "last_window": float(drifts[:, -WINDOW:].mean()),
            "last_window_deviation": float(drifts[:, -WINDOW:].mean(1).std()),
            "colour_kept": float(np.mean(seen)) if seen else None,
            "clips_with_an_object": len(seen),
            "clips": len(kept),
        }
    return found


def draw_drift(by_length: Mapping[int, Mapping[str, Sequence[Clips]]]) -> Figure:
    """A panel for each length: mean over clips and seeds."""
    size = (5.0 * len(by_length), 3.2)
    figure, axes = plt.subplots(1, len(by_length), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis, (frames, made) in zip(axes[0], by_length.items(), strict=True):
        for label, runs in made.items():
            mean = np.mean([drift(clip) for clips in runs for clip in clips], axis=0)
            axis.plot(mean, label=label, color="grey" if label == TRUTH else None)
        axis.set(title=f"{frames} frames", xlabel="frame", ylabel="distance from the first 8 frames")
    axes[0, 0].set_ylim(bottom=0)  # of both panels; only now, as it fixes the upper end
    axes[0, 0].legend(fontsize=7)
    return figure


def drift_report(frames: int, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The drift of one length, to read."""
    lines = [f"\n{frames} frames: distance of the mean colour from the first window's"]
    for label, row in found.items():
        kept = "no object seen" if row["colour_kept"] is None else f"{row['colour_kept']:.2f}"
        lines.append(
            f"{label:34s} first window {row['first_window']:.3f}, last window {row['last_window']:.3f} "
            f"(+- {row['last_window_deviation']:.3f}), colour kept {kept} of {row['clips_with_an_object']} clips"
        )
    return "\n".join(lines)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_bool("quick", False, "A few steps, to see that everything runs; the numbers mean nothing.")
    flags.DEFINE_string("output", "workdir/longer_clips", "Pictures, numbers and the run.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(FLAGS.output, *(["quick"] if FLAGS.quick else []))
    image_steps, steps, count, seeds = (10, 6, 2, 1) if FLAGS.quick else (600, 500, 8, 2)
    train(base_config(image_steps, steps), output / "stunet")
    run = load_run(output / "stunet")
    fps, size = run.config.clip.fps, run.config.clip.size
    by_length: dict[int, dict[str, list[Clips]]] = {}
    facts: dict[str, Any] = {}
    for frames in LENGTHS:
        rendered, captions = rendered_clips(count, size, frames, fps)
        by_length[frames] = {TRUTH: [rendered]} | sampled(run, captions, frames, seeds)
        sets = pair_sets(frames, WINDOW, METHODS)
        made = {label: runs for label, runs in by_length[frames].items() if label != TRUTH}
        seams = summary(list(measure("moving_shapes", rendered, made, sets, ("frames",))))
        drifts = drift_summary(by_length[frames], fps)
        facts[str(frames)] = {"seams": seams, "drift": drifts}
        print(report(f"{frames} frames", seams), drift_report(frames, drifts), sep="\n", flush=True)
        clips = {label: runs[0][0] for label, runs in by_length[frames].items()}
        draw_slices(clips, sets).savefig(output / "longer_slices.png", dpi=150)  # in the end those of the longest
        draw_drift(by_length).savefig(output / "longer_drift.png", dpi=150)
        (output / "longer.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"\npictures and numbers: {output}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    app.run(main)
