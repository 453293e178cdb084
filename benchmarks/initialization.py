"""Appendix B: does it matter how the temporal resamplers start? Identity against He's against the kernel [.5, 1, .5].

    pip install -e .
    python -m benchmarks.initialization [--videos=DIR] [--quick] [--output=DIR]

Trains an image model, then the same small STUNet with each initialisation and several seeds, on moving_shapes and,
where --videos names a folder, on real clips. Only the starting values of the resamplers' kernels differ: the other new
parameters, the clips and the noise are the same for the three of a seed. Writes into --output:

    losses.csv, curves.png   validation loss at fixed noise levels over the steps (paper Fig. 12)
    untrained_DATA.png       samples before any training of temporal layers (paper Fig. 13)
    summary.json             the numbers that docs/ablations.md quotes
"""

import csv
import json
import pathlib
import sys
import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS
from jaxtyping import Float
from matplotlib.figure import Figure

from benchmarks import short_training
from benchmarks.short_training import Curve, Data
from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.data.video_io import to_uint8
from lumiere_jax.distributed import platform
from lumiere_jax.distributed.mesh import make_mesh
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.text_to_video import sample_videos

INITIALISATIONS = {"identity": "identity (the paper's)", "he": "He et al., 2015", "tent": "[.5, 1, .5]"}
Curves = dict[str, list[Curve]]  # of each initialisation, one a seed
Clip = Float[np.ndarray, "frames height width 3"]


def train_all(data: Data, *, steps: int, seeds: int) -> Curves:
    """Trains every initialisation with every seed."""
    curves: Curves = {init: [] for init in INITIALISATIONS}
    settings = short_training.step_settings(data.config, steps)
    measure_at = sorted({round(steps * share**2) for share in np.linspace(0.0, 1.0, 13)})  # more of them early on
    with tqdm.tqdm(total=seeds * len(INITIALISATIONS) * steps, desc=data.name, unit="step") as bar:
        for seed in range(seeds):
            batches = short_training.training_batches(data, seed, steps)
            for init in INITIALISATIONS:
                model = short_training.inflated(data, seed, resampler_init=init)
                curve = short_training.train_temporal(
                    model, batches, data.validation, settings, seed=seed, measure_at=measure_at
                )
                curves[init].append(curve)
                bar.update(steps)
                bar.set_postfix_str(f"{init}: {curve.losses[0]:.4f} -> {curve.losses[-1]:.4f}")
    return curves


def untrained_samples(data: Data) -> dict[str, Clip]:
    """One clip of the image model frame by frame, and of a new STUNet of each initialisation, from the same noise."""
    prompt = data.config.sampling.preview_prompts[0] if data.name == "moving_shapes" else "a video"
    models = {"image model, frame by frame": short_training.image_model(data)} | {
        label: short_training.inflated(data, 0, resampler_init=init) for init, label in INITIALISATIONS.items()
    }
    return {label: sample_videos(_run(data, model), [prompt])[0] for label, model in models.items()}


def _run(data: Data, model: TextToVideo) -> Run:
    return Run(data.config, data.image.tokenizer, model, step=0, path=pathlib.Path(data.name), mesh=make_mesh())


def differences(clips: dict[str, Clip]) -> dict[str, dict[str, float]]:
    """Root mean squared difference to the image model's frames: of every fourth frame, and of those between."""
    expected, *_ = clips.values()
    kept = np.arange(len(expected)) % 4 == 0  # what the strides 2 and 2 leave
    rows = {}
    for label, clip in list(clips.items())[1:]:
        error = np.sqrt(np.square(clip - expected).mean((1, 2, 3)))
        rows[label] = {"every 4th frame": float(error[kept].mean()), "between": float(error[~kept].mean())}
    return rows


def summary(data: Data, curves: Curves, clips: dict[str, Clip]) -> dict[str, Any]:
    """Losses over the steps (mean and range of the seeds), the claim's verdict, and the samples' differences."""
    losses = {init: np.array([curve.losses for curve in runs]) for init, runs in curves.items()}
    steps = curves["identity"][0].steps
    return {
        "steps": steps,
        "image_model_loss": curves["identity"][0].image_model_loss,
        "loss": {
            init: {"mean": rows.mean(0).tolist(), "lowest": rows.min(0).tolist(), "highest": rows.max(0).tolist()}
            for init, rows in losses.items()
        },
        # "Holds": every seed's identity curve lies below every seed's other curve.
        "identity_is_below_at_steps": {
            init: [step for i, step in enumerate(steps) if losses["identity"][:, i].max() < losses[init][:, i].min()]
            for init in ("he", "tent")
        },
        "clips": data.config.dataset.name,
        "untrained_difference_to_image_model": differences(clips),
    }


def draw_curves(all_curves: dict[str, Curves]) -> Figure:
    """A panel for each data set: mean over the seeds as a line, their range as a band."""
    size = (5.5 * len(all_curves), 4)
    figure, axes = plt.subplots(1, len(all_curves), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, curves) in zip(axes[0], all_curves.items(), strict=True):
        for init, label in INITIALISATIONS.items():
            losses = np.array([curve.losses for curve in curves[init]])
            steps = curves[init][0].steps
            (line,) = axis.plot(steps, losses.mean(0), label=label, marker=".")
            axis.fill_between(steps, losses.min(0), losses.max(0), color=line.get_color(), alpha=0.2)
        axis.axhline(curves["identity"][0].image_model_loss, color="grey", linestyle="--", label="image model")
        axis.set(title=name, xlabel="training step", ylabel="validation loss", xscale="symlog", yscale="log")
        axis.set_xlim(left=0)
        axis.legend()
    return figure


def draw_samples(clips: dict[str, Clip]) -> Figure:
    """One row of frames for each clip."""
    frames = len(next(iter(clips.values())))
    size = (0.8 * (frames + 2), 0.85 * len(clips) + 0.3)
    figure, axes = plt.subplots(len(clips), frames, figsize=size, layout="constrained")
    for row, (label, clip) in zip(axes, clips.items(), strict=True):
        for axis, image in zip(row, to_uint8(clip), strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(textwrap.fill(label, 14), fontsize=7, rotation=0, ha="right", va="center")
    for number, axis in enumerate(axes[0]):
        axis.set_title(f"frame {number}", fontsize=7)
    return figure


def write_losses(path: pathlib.Path, all_curves: dict[str, Curves]) -> None:
    """One row for each measurement."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("data", "initialisation", "seed", "step", "validation_loss"))
        for name, curves in all_curves.items():
            for init, runs in curves.items():
                for seed, curve in enumerate(runs):
                    table.writerows((name, init, seed, *point) for point in curve.points())


def report(name: str, facts: dict[str, Any]) -> str:
    """The summary of one data set, to read."""
    lines = [f"\n{name}: validation loss, mean (lowest to highest) of the seeds"]
    lines.append(f"  {'image model, frame by frame':32s} {facts['image_model_loss']:.4f}")
    for init, losses in facts["loss"].items():
        columns = list(zip(facts["steps"], losses["mean"], losses["lowest"], losses["highest"], strict=True))
        shown = (columns[0], columns[len(columns) // 2], columns[-1])
        values = (f"step {step}: {mean:.4f} ({low:.4f} to {high:.4f})" for step, mean, low, high in shown)
        lines.append(f"  {INITIALISATIONS[init]:32s} {'   '.join(values)}")
    for init, steps in facts["identity_is_below_at_steps"].items():
        lines.append(
            f"  identity below {init}, all seeds, at {len(steps)} of {len(facts['steps'])} measurements: {steps}"
        )
    for label, errors in facts["untrained_difference_to_image_model"].items():
        values = ", ".join(f"{frames} {error:.4f}" for frames, error in errors.items())
        lines.append(f"  untrained {label}: difference to the image model's frames: {values}")
    return "\n".join(lines)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("videos", "", "A folder of real clips; default: moving_shapes alone.")
    flags.DEFINE_bool("quick", False, "A few steps, to see that everything runs; the numbers mean nothing.")
    flags.DEFINE_string("output", "workdir/initialization", "Tables, pictures and the image models' runs.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(FLAGS.output)
    image_steps, steps, seeds = (20, 6, 2) if FLAGS.quick else (700, 160, 3)
    folders = {"moving_shapes": ""} | ({"real_clips": FLAGS.videos} if FLAGS.videos else {})
    all_curves: dict[str, Curves] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, videos in folders.items():
        try:
            data = short_training.prepare(name, short_training.ablation_config(videos, image_steps), output)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        clips = untrained_samples(data)
        draw_samples(clips).savefig(output / f"untrained_{name}.png", dpi=150)
        all_curves[name] = train_all(data, steps=steps, seeds=seeds)
        facts[name] = summary(data, all_curves[name], clips)
        # Written after each data set: what is there stays if the rest is stopped.
        write_losses(output / "losses.csv", all_curves)
        draw_curves(all_curves).savefig(output / "curves.png", dpi=150)
        (output / "summary.json").write_text(json.dumps(facts, indent=2) + "\n")
    print("\n".join(report(name, rows) for name, rows in facts.items()))
    print(f"\npictures and tables: {output}")
    if not FLAGS.videos:
        print("real clips were left out: --videos=DIR names a folder of them")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    app.run(main)
