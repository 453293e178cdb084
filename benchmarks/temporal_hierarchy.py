"""Does down-sampling in time pay? The same U-Net with other temporal layers, each given the same number of FLOPs.

    pip install -e .
    python -m benchmarks.temporal_hierarchy [--quick] [--output=DIR]

Trains an image model on moving_shapes, then over it: (a) the STUNet, (b) the same without temporal down- and
up-sampling, (c) the STUNet with temporal attention at all levels in place of convolutions, (d) both: attention at all
levels at the full frame rate, which is AnimateDiff's form. Every variant stops when it has used the FLOPs (by XLA's
count) that the STUNet needs for its steps, and its learning rate is scheduled for as many steps as that gives it.
Writes into --output:

    losses.csv, curves.png   validation loss at fixed noise levels against FLOPs and against seconds
    summary.json             the numbers that docs/ablations.md quotes
"""

import csv
import dataclasses
import json
import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS
from matplotlib.figure import Figure

from benchmarks import short_training
from benchmarks.short_training import Curve, Data
from lumiere_jax.distributed import platform
from lumiere_jax.models import parameter_partition

VARIANTS: dict[str, dict[str, Any]] = {
    "STUNet": {},
    "no temporal down-sampling": {"strides": (1, 1, 1)},
    "attention at all levels": {"attention_levels": "all"},
    "attention at all levels, no temporal down-sampling": {"attention_levels": "all", "strides": (1, 1, 1)},
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """One variant: what a step of it costs, and a curve for each seed."""

    parameters: int  # temporal
    flops_per_step: float
    curves: list[Curve]

    @property
    def seconds_per_step(self) -> float:
        """Mean over the seeds."""
        return float(np.mean([curve.seconds_per_step for curve in self.curves]))


def train_all(data: Data, *, steps: int, seeds: int) -> dict[str, Trained]:
    """Trains every variant for the FLOPs of `steps` steps of the first."""
    one_batch = short_training.training_batches(data, 0, 1)[0]
    parameters, flops = {}, {}
    for label, temporal in VARIANTS.items():
        model, settings = short_training.inflated(data, 0, **temporal), short_training.step_settings(data.config, steps)
        parameters[label] = parameter_partition.count(parameter_partition.split(model)[1])
        flops[label] = short_training.flops_per_step(model, one_batch, settings)
    counts = {label: round(steps * flops["STUNet"] / flops[label]) for label in VARIANTS}
    curves: dict[str, list[Curve]] = {label: [] for label in VARIANTS}
    with tqdm.tqdm(total=seeds * sum(counts.values()), unit="step") as bar:
        for seed in range(seeds):
            batches = short_training.training_batches(data, seed, max(counts.values()))
            for label, temporal in VARIANTS.items():
                count = counts[label]
                curve = short_training.train_temporal(
                    short_training.inflated(data, seed, **temporal),
                    batches[:count],
                    data.validation,
                    short_training.step_settings(data.config, count),
                    seed=seed,
                    measure_at=sorted({round(count * share) for share in np.linspace(0.0, 1.0, 11)}),
                )
                curves[label].append(curve)
                bar.update(count)
                bar.set_postfix_str(f"{label}: {curve.losses[0]:.4f} -> {curve.losses[-1]:.4f}")
    return {label: Trained(parameters[label], flops[label], curves[label]) for label in VARIANTS}


def summary(results: dict[str, Trained]) -> dict[str, Any]:
    """What each variant reached with the budget, and what a step of it costs beside the STUNet's."""
    reference = results["STUNet"]
    rows = {}
    for label, trained in results.items():
        last = [curve.losses[-1] for curve in trained.curves]
        rows[label] = {
            "temporal_parameters": trained.parameters,
            "steps": trained.curves[0].steps[-1],
            "gigaflops_per_step": trained.flops_per_step / 1e9,
            "flops_ratio": trained.flops_per_step / reference.flops_per_step,
            "seconds_per_step": trained.seconds_per_step,
            "seconds_ratio": trained.seconds_per_step / reference.seconds_per_step,
            "final_loss": last,
        }
    return {"image_model_loss": reference.curves[0].image_model_loss, "variants": rows}


def draw_curves(results: dict[str, Trained]) -> Figure:
    """Loss against FLOPs, and against seconds; a line for the mean of the seeds, a band for their range."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for label, trained in results.items():
        losses = np.array([curve.losses for curve in trained.curves])
        steps = np.array(trained.curves[0].steps)
        for axis, unit in zip(axes, (trained.flops_per_step / 1e12, trained.seconds_per_step), strict=True):
            (line,) = axis.plot(steps * unit, losses.mean(0), label=label, marker=".")
            axis.fill_between(steps * unit, losses.min(0), losses.max(0), color=line.get_color(), alpha=0.2)
    image_model_loss = results["STUNet"].curves[0].image_model_loss
    for axis, unit in zip(axes, ("TFLOP of training", "seconds of training"), strict=True):
        axis.axhline(image_model_loss, color="grey", linestyle="--", label="image model, frame by frame")
        axis.set(xlabel=unit, yscale="log")
    axes[0].set(ylabel="validation loss")
    axes[0].legend(fontsize=7)
    return figure


def write_losses(path: pathlib.Path, results: dict[str, Trained]) -> None:
    """One row for each measurement."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("variant", "seed", "step", "validation_loss", "gigaflops", "seconds"))
        for label, trained in results.items():
            for seed, curve in enumerate(trained.curves):
                table.writerows(
                    (label, seed, step, loss, step * trained.flops_per_step / 1e9, step * curve.seconds_per_step)
                    for step, loss in curve.points()
                )


def report(facts: dict[str, Any]) -> str:
    """The summary, to read."""
    lines = [f"\nimage model, frame by frame: {facts['image_model_loss']:.4f}"]
    lines.append(f"{'variant':52s} {'steps':>6s} {'GFLOP/step':>11s} {'x':>5s} {'s/step':>7s} {'x':>5s}  final loss")
    for label, row in facts["variants"].items():
        losses = ", ".join(f"{loss:.4f}" for loss in row["final_loss"])
        lines.append(
            f"{label:52s} {row['steps']:6d} {row['gigaflops_per_step']:11.2f} {row['flops_ratio']:5.2f} "
            f"{row['seconds_per_step']:7.3f} {row['seconds_ratio']:5.2f}  {losses}"
        )
    return "\n".join(lines)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_bool("quick", False, "A few steps, to see that everything runs; the numbers mean nothing.")
    flags.DEFINE_string("output", "workdir/temporal_hierarchy", "Tables, picture and the image model's run.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(FLAGS.output)
    image_steps, steps, seeds = (20, 10, 1) if FLAGS.quick else (700, 400, 2)
    data = short_training.prepare("moving_shapes", short_training.ablation_config("", image_steps), output)
    results = train_all(data, steps=steps, seeds=seeds)
    facts = summary(results)
    write_losses(output / "losses.csv", results)
    draw_curves(results).savefig(output / "curves.png", dpi=150)
    (output / "summary.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{report(facts)}\n\npictures and tables: {output}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    app.run(main)
