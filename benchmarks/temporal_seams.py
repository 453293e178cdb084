"""Paper Fig. 14: do clips jump where the windows of super-resolution meet, and does MultiDiffusion mend it?

    pip install -e .
    python -m benchmarks.temporal_seams [--videos=DIR] [--quick] [--output=DIR]

Trains a small super-resolution model that must invent much, as its clips are 8 times larger than the noisy ones that it
is given: on moving_shapes and, where --videos names a folder, on real clips. Super-resolves held-out clips (of real
ones: other videos) in windows of 8 frames: side by side, overlapping by 2 with the overlap overwritten as in Show-1, or
averaged by MultiDiffusion. Then the same across spatial tiles. Writes into --output:

    slices_DATA.png       X-T slices of one clip (paper Fig. 14, left)
    curves.png            difference of neighbouring frames over time (paper Fig. 14, right)
    measurements.csv      one row for each clip, seed, method and set of frame pairs
    summary.json          the numbers that docs/super_resolution.md quotes
"""

import csv
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import ml_collections
import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from configs import ssr
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.data import moving_shapes
from lumiere_jax.data.clip_extraction import ClipSettings
from lumiere_jax.data.clip_loader import ClipLoader, as_text
from lumiere_jax.data.open_dataset import open_dataset
from lumiere_jax.data.preparation import prepare_clips
from lumiere_jax.data.source_videos import find_sources
from lumiere_jax.data.video_io import to_float
from lumiere_jax.diffusion.low_resolution import downsample
from lumiere_jax.distributed import platform
from lumiere_jax.evaluation.seams import borders, elsewhere_of, neighbour_mse, seam_ratio
from lumiere_jax.evaluation.xt_slice import xt_slice
from lumiere_jax.pipelines.super_resolution import prepare
from lumiere_jax.train import train
from lumiere_jax.train_config import check_config

FPS, SIZE, CROP = 16, 64, 32
FRAMES, WINDOW = 56, 8  # windows side by side and windows that overlap by 2 both end with the clip


@dataclasses.dataclass(frozen=True)
class Joining:
    """How a clip is cut into windows (or a frame into tiles), and how these are joined."""

    overlap: int
    weights: str


METHODS = {
    "disjoint windows": Joining(0, "uniform"),
    "overlap 2, overwritten (Show-1)": Joining(2, "latest"),
    "overlap 2, averaged (the paper)": Joining(2, "uniform"),
    "overlap 2, feathered": Joining(2, "feathered"),
}
TILES = {
    "whole frames": None,
    "disjoint tiles": Joining(0, "uniform"),
    "overlap 8, averaged": Joining(8, "uniform"),
    "overlap 8, feathered": Joining(8, "feathered"),
}
TRUTH, ANY = "real clip", "any method's"
GOAL = {"disjoint windows": 1.5, "averaged": 1.05}  # at least; at most

Clips = Float[np.ndarray, "clips frames height width 3"]
PairSets = dict[str, Bool[np.ndarray, " pairs"]]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Of one clip: how much neighbours differ at borders over elsewhere, and how much elsewhere."""

    data: str
    seed: int
    clip: int
    method: str
    pairs: str  # whose borders: a method's, or any method's
    ratio: float
    elsewhere: float  # mean squared difference of neighbours, in [-1, 1]
    error: float  # mean squared error against the real clip


# ---------------------------------------------------------------- Model and clips


def seams_config(image_steps: int, steps: int) -> ml_collections.ConfigDict:
    """`configs/ssr.py:demo_4x` made to invent more: 8 times larger, from a noisy small video, on crops of 32x32."""
    config = ssr.get_config("demo_4x")
    config.dataset.path = "one_object"
    for stage, count in ((config, steps), (config.image_model, image_steps)):
        stage.clip.update({"size": CROP, "crop_from": SIZE, "fps": float(FPS)})
        stage.diffusion.update({"low_res_factor": 8, "max_noise_level": 0.7, "max_blur": 0.0})
        stage.training.update({"steps": count, "checkpoint_every": 100, "validate_every": 100, "validation_clips": 16})
    config.image_model.training.update({"batch_size": 16, "learning_rate": 4e-3, "validation_clips": 32})
    config.training.update({"batch_size": 4, "learning_rate": 2e-3})
    # With noise at every step windows agree better (docs/super_resolution.md).
    config.sampling.update({"noise_level": 0.5, "steps": 24, "sampler": "dpm_solver_pp_2m_sde"})
    return config


def use_videos(config: ml_collections.ConfigDict, videos: str, output: pathlib.Path) -> None:
    """Prepares a folder of real videos, some of them held out whole, and points the config at the result.

    Raises:
      ValueError, OSError: a folder that cannot be used.
    """
    directory = output / "real_clips"
    sources = find_sources(videos, default_caption="a video", splits={"train": 0.7, "validation": 0.3})
    report = prepare_clips(sources, directory, ClipSettings(frames=FRAMES, fps=FPS, size=SIZE))
    missing = {"train", "validation"} - set(report["splits"])
    if missing:
        raise ValueError(f"--videos={videos}: no clip fell to the split {missing.pop()}: more videos are needed")
    config.dataset.update({"name": "prepared", "path": str(directory)})


def held_out(config: ml_collections.ConfigDict, count: int) -> tuple[Clips, list[str]]:
    """At most `count` clips of `FRAMES` whole frames that no training saw, and their captions."""
    if config.dataset.name == "moving_shapes":
        return rendered_clips(count, SIZE, FRAMES, FPS)
    records, loader = open_dataset(config.dataset)[1], ClipLoader(FPS, SIZE, 0)
    chosen = [records[int(i)] for i in np.unique(np.linspace(0, len(records) - 1, count).round())]
    frames = [loader.load((0, 0), record, FRAMES, np.random.default_rng(0)) for record in chosen]
    return to_float(np.stack(frames)), [as_text(record["caption"]) for record in chosen]


def rendered_clips(count: int, size: int, frames: int, fps: float) -> tuple[Clips, list[str]]:
    """Clips of `moving_shapes` of any length, of combinations of attributes that training has not, and captions."""
    pairs = moving_shapes.prompts(count, seed=1, held_out=True, duration=frames / fps)
    clips = [moving_shapes.render(scene, size, frames, fps) for _, scene in pairs]
    return to_float(np.stack(clips)), [caption for caption, _ in pairs]


def middle(clips: Clips) -> Clips:
    """The middle `CROP` x `CROP` pixels, the size that the model was trained at."""
    first = (SIZE - CROP) // 2
    return clips[:, :, first : first + CROP, first : first + CROP]


def super_resolved(
    run: Run, clips: Clips, captions: Sequence[str], joining: Joining | None, seeds: int, *, tiles: bool = False
) -> list[Clips]:
    """Real clips made small, and large again: for each seed.

    Args:
      run: a super-resolution run.
      clips: real ones, [-1, 1].
      captions: theirs.
      joining: of windows of `WINDOW` frames, or of tiles of `CROP` pixels; None: whole.
      seeds: how many.
      tiles: whether it is tiles that are joined.
    """
    config = ml_collections.ConfigDict(run.config.to_dict())
    config.multidiffusion.weights = joining.weights if joining else "uniform"
    cut = {}
    if joining:
        cut = {"tile": (CROP, joining.overlap)} if tiles else {"window": (WINDOW, joining.overlap)}
    small = np.asarray(downsample(jnp.asarray(clips), config.diffusion.low_res_factor))
    ready = prepare(dataclasses.replace(run, config=config), small.shape[1:4], clips=len(clips), **cut)
    return [ready.videos(small, captions, seed=seed) for seed in range(seeds)]


# ---------------------------------------------------------------- Measurement


def pair_sets(length: int, window: int, methods: Mapping[str, Joining | None]) -> PairSets:
    """The borders of each method, and of any of them."""
    cut = {label: joining for label, joining in methods.items() if joining}
    sets = {label: borders(length, window, joining.overlap, joining.weights) for label, joining in cut.items()}
    return sets | {ANY: ~elsewhere_of(list(sets.values()))}


def measure(
    data: str, real: Clips, made: Mapping[str, Sequence[Clips]], sets: PairSets, axes: Sequence[str]
) -> Iterator[Measurement]:
    """Every clip at every set of pairs, whatever method it was made by, beside the pairs that are no method's borders.

    Args:
      data: name of the clips.
      real: the real clips.
      made: of each method, for each seed.
      sets: from `pair_sets`.
      axes: those along which neighbours are looked at, together: of equal length.
    """
    masks = {name: np.tile(mask, len(axes)) for name, mask in sets.items()}
    for method, runs in ({TRUTH: [real]} | dict(made)).items():
        for seed, clips in enumerate(runs):
            for number, (clip, truth) in enumerate(zip(clips, real, strict=True)):
                mse = np.concatenate([neighbour_mse(clip, axis) for axis in axes])
                elsewhere, error = float(mse[~masks[ANY]].mean()), float(np.square(clip - truth).mean())
                for name, mask in masks.items():
                    ratio = seam_ratio(mse, mask, ~masks[ANY])
                    yield Measurement(data, seed, number, method, name, ratio, elsewhere, error)


def summary(measurements: Sequence[Measurement]) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each method and set of pairs: mean and spread over clips and seeds, beside the real clips' own.

    "ratio" is the figure of merit. "over_real" is each clip's ratio divided by its real clip's at the same pairs, as
    motion is not even; without clips whose neighbours do not differ there at all (rows of a plain background, at the
    border of tiles), which `compared` does not count. "elsewhere_over_real" tells whether a clip moves too little or
    flickers, which would hide seams.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    real = {(row.clip, row.pairs): row for row in measurements if row.method == TRUTH}
    for method in dict.fromkeys(row.method for row in measurements):
        for pairs in dict.fromkeys(row.pairs for row in measurements):
            rows = [row for row in measurements if (row.method, row.pairs) == (method, pairs)]
            beside = [real[row.clip, row.pairs] for row in rows]
            over_real = [row.ratio / one.ratio for row, one in zip(rows, beside, strict=True) if one.ratio > 0.0]
            found.setdefault(method, {})[pairs] = {
                "ratio": _mean_and_spread([row.ratio for row in rows]),
                "over_real": _mean_and_spread(over_real) if over_real else None,
                "compared": len(over_real),
                "elsewhere_over_real": _mean_and_spread(
                    [row.elsewhere / one.elsewhere for row, one in zip(rows, beside, strict=True)]
                ),
                "error": float(np.mean([row.error for row in rows])),
                "measured": len(rows),
            }
    return found


def _mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values)), "highest": float(np.max(values))}


def verdict(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Which methods reach the goal: of the means over clips and seeds, each method at its own borders."""
    first, _, *averaged = METHODS
    jump = found[first][first]["ratio"]["mean"]
    if jump < GOAL["disjoint windows"]:
        return f"no verdict: {first} show {jump:.2f}, below {GOAL['disjoint windows']}: there is little to mend"
    ratios = {label: found[label][label]["ratio"]["mean"] for label in averaged}
    said = ", ".join(
        f"{label} {ratio:.2f}, {'' if ratio <= GOAL['averaged'] else 'NOT '}reached" for label, ratio in ratios.items()
    )
    return f"goal of {GOAL['averaged']} where {first} show {jump:.2f}: {said}"


# ---------------------------------------------------------------- Pictures and tables


def draw_slices(clips: Mapping[str, Float[np.ndarray, "frames height width 3"]], sets: PairSets) -> Figure:
    """X-T slices side by side, time downwards, a tick at each of the method's own borders."""
    figure, axes = plt.subplots(1, len(clips), figsize=(2.1 * len(clips), 4.2), layout="constrained")
    for axis, (label, clip) in zip(axes, clips.items(), strict=True):
        axis.imshow(xt_slice(clip), aspect="auto", interpolation="nearest")
        axis.set_title(label, fontsize=8)
        axis.set(xticks=[], yticks=np.flatnonzero(sets[label]) + 0.5 if label in sets else [])
        axis.tick_params(labelleft=False, length=6, width=1.5, color="red")
    axes[0].set_ylabel("time, downwards", fontsize=8)
    return figure


def draw_curves(curves: Mapping[str, Mapping[str, Float[np.ndarray, " pairs"]]], sets: PairSets) -> Figure:
    """Difference of neighbouring frames over time: of each data set a column, of each method a panel."""
    methods = [label for label in sets if label != ANY]
    size = (5.5 * len(curves), 1.8 * len(methods))
    figure, axes = plt.subplots(
        len(methods), len(curves), figsize=size, squeeze=False, sharex=True, layout="constrained"
    )
    for column, (data, lines) in zip(axes.T, curves.items(), strict=True):
        for axis, label in zip(column, methods, strict=True):
            later = np.arange(1, len(lines[label]) + 1)
            axis.plot(later, lines[TRUTH], color="grey", label=TRUTH)
            axis.plot(later, lines[label], label=label)
            for border in np.flatnonzero(sets[label]) + 1:
                axis.axvline(border, color="red", linewidth=0.5, linestyle=":")
            axis.set(ylabel="MSE to the\nframe before")
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=7, loc="upper right")
        column[0].set_title(data)
        column[-1].set_xlabel("frame")
    for column in axes.T:  # all methods of a data set to one scale
        highest = max(axis.get_ylim()[1] for axis in column)
        for axis in column:
            axis.set_ylim(top=highest)
    return figure


def write_measurements(path: pathlib.Path, measurements: Sequence[Measurement]) -> None:
    """One row for each."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in dataclasses.fields(Measurement)])
        table.writeheader()
        table.writerows(map(dataclasses.asdict, measurements))


def report(data: str, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The summary of one data set, to read: each method at its own borders, and at any method's."""
    lines = [f"\n{data}: neighbours at borders over elsewhere, mean +- deviation of clips and seeds"]
    lines.append(
        f"{'':34s} {'own borders':>14s} {'real, there':>14s} {'over real':>14s} {'any border':>14s}  motion  error"
    )
    for method, by_pairs in found.items():
        own, everywhere = by_pairs.get(method), by_pairs[ANY]
        columns = [f"{'':>14s}"] * 3
        if own:
            columns = [_shown(own["ratio"]), _shown(found[TRUTH][method]["ratio"]), _shown(own["over_real"])]
        columns += [
            _shown(everywhere["ratio"]),
            _shown(everywhere["elsewhere_over_real"]),
            f"{everywhere['error']:.4f}",
        ]
        lines.append(f"{method:34s} {' '.join(columns)}")
    return "\n".join(lines)


def _shown(value: Mapping[str, float] | None) -> str:
    if value is None:
        return f"{'—':>14s}"
    return f"{value['mean']:6.3f} +- {value['deviation']:.2f} "


# ---------------------------------------------------------------- The whole


def run_on(
    data: str, run: Run, *, count: int, seeds: int
) -> tuple[dict[str, list[Measurement]], dict[str, list[Clips]]]:
    """Super-resolves and measures held-out clips: (measurements of "windows" and "tiles", clips of each method)."""
    whole, captions = held_out(run.config, count)
    real, few = middle(whole), whole[:, :WINDOW]
    with tqdm.tqdm(total=len(METHODS) + len(TILES), desc=data, unit="method") as bar:
        made: dict[str, list[Clips]] = {}
        for label, joining in METHODS.items():
            made[label] = super_resolved(run, real, captions, joining, seeds)
            bar.update()
        tiled: dict[str, list[Clips]] = {}
        for label, joining in TILES.items():
            tiled[label] = super_resolved(run, few, captions, joining, 1, tiles=True)
            bar.update()
    measured = {
        "windows": list(measure(data, real, made, pair_sets(FRAMES, WINDOW, METHODS), ("frames",))),
        "tiles": list(measure(data, few, tiled, pair_sets(SIZE, CROP, TILES), ("height", "width"))),
    }
    return measured, {TRUTH: [real]} | made


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("videos", "", "A folder of real clips; default: moving_shapes alone.")
    flags.DEFINE_bool("quick", False, "A few steps, to see that everything runs; the numbers mean nothing.")
    flags.DEFINE_string("output", "workdir/temporal_seams", "Tables, pictures and the runs.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(FLAGS.output, *(["quick"] if FLAGS.quick else []))
    image_steps, steps, count, seeds = (10, 6, 2, 1) if FLAGS.quick else (400, 2000, 3, 2)
    configs = {data: seams_config(image_steps, steps) for data in ("moving_shapes", "real_clips")}
    try:
        if FLAGS.videos:
            use_videos(configs["real_clips"], FLAGS.videos, output)
        else:
            del configs["real_clips"]
        for config in configs.values():
            if FLAGS.quick:
                config.sampling.steps = 2
            check_config(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    sets = pair_sets(FRAMES, WINDOW, METHODS)
    all_measured: list[Measurement] = []
    facts: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, np.ndarray]] = {}
    for data, config in configs.items():
        train(config, output / f"ssr_{data}")
        measured, clips = run_on(data, load_run(output / f"ssr_{data}"), count=count, seeds=seeds)
        first = {label: runs[0][0] for label, runs in clips.items()}
        draw_slices(first, sets).savefig(output / f"slices_{data}.png", dpi=150)
        curves[data] = {
            label: np.mean([neighbour_mse(clip) for made in runs for clip in made], axis=0)
            for label, runs in clips.items()
        }
        all_measured += [row for rows in measured.values() for row in rows]
        # Written after each data set: what is there stays if the rest is stopped.
        draw_curves(curves, sets).savefig(output / "curves.png", dpi=150)
        write_measurements(output / "measurements.csv", all_measured)
        facts[data] = {cut: summary(rows) for cut, rows in measured.items()}
        (output / "summary.json").write_text(json.dumps(facts, indent=2) + "\n")
        print(report(f"{data}, windows of {WINDOW} frames", facts[data]["windows"]))
        print(verdict(facts[data]["windows"]))
        print(report(f"{data}, tiles of {CROP} pixels", facts[data]["tiles"]), flush=True)
    print(f"\npictures and tables: {output}")
    if not FLAGS.videos:
        print("real clips were left out: --videos=DIR names a folder of them")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    app.run(main)
