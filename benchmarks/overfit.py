"""Does this set-up learn? `configs/stunet.py:overfit` against the losses that it is known to have (docs/overfit.md).

    python -m benchmarks.overfit --workdir=DIR          # trains the recipe in DIR, or takes the run that is there
    python -m benchmarks.overfit --record --workdir=DIR [--seeds=4]

The first says of each measured step whether its validation loss is inside the band, draws the run's curve over it
(DIR/overfit.png), and ends with an error where the curve left the band. The band is the range over the recorded seeds,
widened by `MARGINS` to both sides. The second trains the recipe with several seeds and writes a new band into docs/: do
it whenever the recipe changes.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import matplotlib.pyplot as plt
import ml_collections
import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS
from flax.traverse_util import flatten_dict
from matplotlib.figure import Figure

from benchmarks import initialization
from configs import stunet
from lumiere_jax.checkpoints.run_directory import RunDirectory
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.data.open_dataset import open_dataset
from lumiere_jax.distributed import platform
from lumiere_jax.pipelines.text_to_video import sample_videos
from lumiere_jax.train import train
from lumiere_jax.train_setup import batches_of, versions

DOCS = pathlib.Path(__file__).parent.parent / "docs"
BAND = DOCS / "overfit_band.json"
PICTURES = DOCS / "pictures"
STAGES = ("image_model", "stunet")
# Factor by which the seeds' range is widened to both sides (docs/overfit.md).
MARGINS = {"image_model": 1.4, "stunet": 1.4}
# Measurements before this step are not judged: they say how well untrained resamplers happen to suit an image model.
FIRST_JUDGED = {"image_model": 1, "stunet": 200}
_LABELS = {"image_model": "validation loss", "stunet": "validation loss / its image model's"}
Losses = dict[int, float]  # by step: what `compared_loss` makes of the validation losses

# Fields of the recipe in which a run may differ from the recorded ones: they say where and how it runs, not what.
_FREE = {
    *("name", "seed", "compute_dtype", "init_from"),
    *("mesh.data", "mesh.rows", "dataset.data_dir", "dataset.cache_bytes", "dataset.threads"),
    *("training.log_every", "training.checkpoint_every", "training.keep_checkpoints", "training.preview_every"),
}
_ADVICE = {
    "above": {
        "image_model": "The image model does not learn as it should. Look at the learning rate and the norm of the "
        "gradient, at whether captions belong to their clips, at the average of the parameters.",
        "stunet": "The image model is as it should be, so look at the temporal layers: are they trained, do they see "
        "the frames in their order?",
    },
    "below": {
        "image_model": "The recipe cannot be that good. Does the network see the clean picture? Look at the noise, at "
        "the weights of the loss, and at whether all pictures are the same.",
        "stunet": "The recipe cannot be that good. Does the network see the clean clip? Look at the noise, at the "
        "weights of the loss, and at whether all frames of a clip are the same.",
    },
}


@dataclasses.dataclass(frozen=True)
class Band:
    """The validation losses of one stage that a run of the recipe should have."""

    steps: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One validation loss of a run beside the band."""

    stage: str
    step: int
    loss: float
    lower: float
    upper: float

    @property
    def verdict(self) -> str:
        """inside, above (a loss that is not finite too) or below the band."""
        if not self.loss <= self.upper:
            return "above"
        return "inside" if self.loss >= self.lower else "below"


def band_of(curves: Iterable[Losses], margin: float) -> Band:
    """The range of several runs' losses at the steps of the first, from `lowest / margin` to `highest * margin`."""
    curves = list(curves)
    steps = tuple(sorted(curves[0]))
    losses = np.array([[curve[step] for step in steps] for curve in curves])
    return Band(steps, tuple((losses.min(0) / margin).tolist()), tuple((losses.max(0) * margin).tolist()))


def compare(stage: str, losses: Losses, band: Band) -> list[Measurement]:
    """A run's losses beside the band, as far as the run has come.

    Raises:
      ValueError: the run did not measure at one of the band's steps.
    """
    reached = max(losses, default=0)
    steps = [step for step in band.steps if step <= reached]
    missing = [step for step in steps if step not in losses]
    if missing:
        raise ValueError(
            f"{stage} has no validation loss at step {missing[0]}: leave training.validate_every as the recipe has it"
        )
    rows = zip(band.steps, band.lower, band.upper, strict=True)
    return [Measurement(stage, step, losses[step], low, high) for step, low, high in rows if step in steps]


def first_outside(measurements: Iterable[Measurement]) -> Measurement | None:
    """The first loss that is not inside the band."""
    return next((one for one in measurements if one.verdict != "inside"), None)


# ---------------------------------------------------------------- What is on disk


def recipe(seed: int = 0, data_dir: str = "") -> ml_collections.ConfigDict:
    """The config of the recipe; the seed is that of both stages."""
    config = stunet.get_config("overfit")
    config.seed = config.image_model.seed = seed
    config.dataset.data_dir = data_dir
    return config


def recipe_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields of one stage's config that decide its losses, by their dotted names."""
    fields = flatten_dict(json.loads(config.to_json_best_effort()), sep=".")
    of_stage = {name: value for name, value in fields.items() if not name.startswith(("image_model.", "sampling."))}
    return {name: value for name, value in of_stage.items() if name not in _FREE}


def directories(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
    """Where the two stages of a run lie."""
    return {"image_model": RunDirectory(workdir).image_model, "stunet": workdir}


def validation_losses(directory: pathlib.Path) -> Losses:
    """What is compared of a run, from its `metrics.jsonl` (`lumiere_jax.train_history`), also of one under way."""
    file = directory / "metrics.jsonl"
    *lines, _torn = (file.read_text() if file.exists() else "").split("\n")
    losses = {}
    for record in map(json.loads, lines):
        # What is not finite is null there.
        finite = {name: math.nan if value is None else value for name, value in record.items()}
        prefix = "validation/"
        measured = {name.removeprefix(prefix): value for name, value in finite.items() if name.startswith(prefix)}
        if measured:
            losses[record["step"]] = compared_loss(measured)
    return losses


def compared_loss(losses: Mapping[str, float]) -> float:
    """The loss; of an inflated model the share of its image model's, by which the luck of that one cancels out."""
    return losses["loss"] / losses.get("image_model_loss", 1.0)


def read_recorded(path: pathlib.Path = BAND) -> dict[str, Any]:
    """The committed record: `fields`, `made_with`, and `losses` of each stage and seed."""
    recorded = json.loads(path.read_text())
    for runs in recorded["losses"].values():
        for seed, losses in runs.items():
            runs[seed] = {int(step): loss for step, loss in losses.items()}
    return recorded


def fingerprint(recorded: Mapping[str, Any]) -> str:
    """SHA-256 of the band, which its picture carries: a picture of another band is found out."""
    stages = {stage: dataclasses.asdict(band) for stage, band in bands(recorded).items()}
    return hashlib.sha256(json.dumps(stages).encode()).hexdigest()


def bands(recorded: Mapping[str, Any]) -> dict[str, Band]:
    """The band of each stage."""
    return {stage: stage_band(stage, runs.values()) for stage, runs in recorded["losses"].items()}


def stage_band(stage: str, curves: Iterable[Losses]) -> Band:
    """The band of one stage, with its margin, over the steps that are judged."""
    judged = [{step: loss for step, loss in curve.items() if step >= FIRST_JUDGED[stage]} for curve in curves]
    return band_of(judged, MARGINS[stage])


def check_fields(stage: str, config: ml_collections.ConfigDict, recorded: Mapping[str, Any]) -> None:
    """Raises a ValueError that lists where a stage's config is not the one that the band was recorded with."""
    now, then = recipe_fields(config), recorded["fields"][stage]
    # Further fields are allowed: a run also has what it took over from its image model, and a field that is added to
    # the configs starts with a value that changes nothing.
    changed = [
        f"  {name}: {then[name]!r} in the record, {now.get(name)!r} here"
        for name in then
        if now.get(name) != then[name]
    ]
    if changed:
        raise ValueError(
            f"the band of {stage} was recorded with another config, and says nothing of this one. To check a set-up, "
            "run the recipe as it is; after a change of the recipe, record anew (python -m benchmarks.overfit "
            "--record):\n" + "\n".join(changed)
        )


# ---------------------------------------------------------------- Check


def check(workdir: pathlib.Path, recorded: Mapping[str, Any]) -> tuple[list[Measurement], bool]:
    """A run beside the band, and whether the run is finished.

    Raises:
      ValueError: no run, or one of another config.
    """
    measurements, stages = [], bands(recorded)
    for stage, directory in directories(workdir).items():
        config = RunDirectory(directory).read_config()
        if config is None:
            break
        check_fields(stage, config, recorded)
        measurements += compare(stage, validation_losses(directory), stages[stage])
    if not measurements:
        raise ValueError(f"{workdir} has no run of configs/stunet.py:overfit")
    return measurements, (measurements[-1].stage, measurements[-1].step) == ("stunet", stages["stunet"].steps[-1])


def report(measurements: Iterable[Measurement]) -> str:
    """One line for each measurement."""
    lines = [f"{'stage':12s} {'step':>5s} {'loss':>8s}   {'band':17s}"]
    for one in measurements:
        lines.append(f"{one.stage:12s} {one.step:5d} {one.loss:8.5f}   {one.lower:.5f}-{one.upper:.5f}   {one.verdict}")
    return "\n".join(lines)


def draw(stages: Mapping[str, Band], curves: Mapping[str, Mapping[str, Losses]]) -> Figure:
    """A panel for each stage: the band, and lines over it.

    Args:
      stages: the band of each.
      curves: of each stage, by label.
    """
    figure, axes = plt.subplots(1, len(stages), figsize=(5 * len(stages), 3.6), layout="constrained")
    for axis, (stage, band) in zip(axes, stages.items(), strict=True):
        axis.fill_between(band.steps, band.lower, band.upper, color="tab:green", alpha=0.2, label="band")
        for label, losses in curves.get(stage, {}).items():
            steps = sorted(losses)
            axis.plot(steps, [losses[step] for step in steps], label=label, marker=".")
        axis.set(title=stage.replace("_", " "), xlabel="training step", ylabel=_LABELS[stage], yscale="log")
        axis.legend(fontsize=7)
    return figure


# ---------------------------------------------------------------- Record


def record(workdir: pathlib.Path, seeds: int, data_dir: str) -> dict[str, Any]:
    """Trains the recipe with each seed, in a directory of its own, and returns what `read_recorded` returns."""
    losses: dict[str, dict[str, Losses]] = {stage: {} for stage in STAGES}
    for seed in range(seeds):
        run = workdir / f"seed_{seed}"
        train(recipe(seed, data_dir), run)
        for stage, directory in directories(run).items():
            losses[stage][str(seed)] = validation_losses(directory)
    config = recipe()
    fields = {"image_model": recipe_fields(config.image_model), "stunet": recipe_fields(config)}
    made_with = {**versions(), "device": jax.devices()[0].device_kind}
    return {"fields": fields, "made_with": made_with, "losses": losses}


def clips_and_samples(run: Run) -> dict[str, initialization.Clip]:
    """Each clip of the data set, and what the run samples for its caption."""
    _, dataset = open_dataset(run.config.dataset)
    batch = next(batches_of(run.config, None, dataset, len(dataset)))
    samples = sample_videos(run, batch["caption"])
    rows = {}
    for caption, clip, sampled in zip(batch["caption"], batch["video"], samples, strict=True):
        rows |= {caption: clip, f"sample {len(rows) // 2 + 1}, {psnr(clip, sampled):.1f} dB": sampled}
    return rows


def psnr(clip: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two clips in [-1, 1], dB."""
    return float(10 * np.log10(4 / np.square(clip - other).mean()))


def _rows(measurements: Iterable[Measurement], stage: str) -> Iterator[tuple[int, float]]:
    return ((one.step, one.loss) for one in measurements if one.stage == stage)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("workdir", "workdir/overfit", "The run; with --record, one for each seed.")
    flags.DEFINE_string("data_dir", "", "Where data sets are kept; default: TFDS's own, ~/tensorflow_datasets.")
    flags.DEFINE_bool("record", False, "Train with several seeds, and write the band and its pictures into docs/.")
    flags.DEFINE_integer("seeds", 4, "How many, with --record.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(FLAGS.workdir)
    if FLAGS.record:
        recorded = record(workdir, FLAGS.seeds, FLAGS.data_dir)
        BAND.write_text(json.dumps(recorded, indent=1) + "\n")
        labelled = {
            stage: {f"seed {seed}": losses for seed, losses in runs.items()}
            for stage, runs in recorded["losses"].items()
        }
        figure = draw(bands(recorded), labelled)
        figure.savefig(PICTURES / "overfit_band.png", dpi=110, metadata={"Description": fingerprint(recorded)})
        rows = clips_and_samples(load_run(workdir / "seed_0"))
        initialization.draw_samples(rows).savefig(PICTURES / "overfit_samples.png", dpi=80)
        print(f"\nwritten: {BAND}, {PICTURES}/overfit_band.png and overfit_samples.png. Look at them")
        return
    recorded = read_recorded()
    try:
        if all(RunDirectory(directory).read_config() is None for directory in directories(workdir).values()):
            train(recipe(data_dir=FLAGS.data_dir), workdir)
        measurements, is_finished = check(workdir, recorded)
    except ValueError as error:
        sys.exit(f"error: {error}")
    curves = {stage: {"this run": dict(_rows(measurements, stage))} for stage in STAGES}
    draw(bands(recorded), curves).savefig(workdir / "overfit.png", dpi=110)
    print(f"\n{report(measurements)}\n\npicture: {workdir / 'overfit.png'}")
    outside = first_outside(measurements)
    if outside:
        sys.exit(
            f"\n{outside.stage} left the band at step {outside.step}: {outside.loss:.5f} is {outside.verdict} it.\n"
            f"{_ADVICE[outside.verdict][outside.stage]}"
        )
    if not is_finished:
        sys.exit("\ninside the band as far as the run has come: it is not finished")
    print(f"inside the band: this set-up learns. The clips are in {workdir / 'previews'}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    app.run(main)
