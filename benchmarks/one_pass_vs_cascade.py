"""The paper's central claim (section 1, Fig. 2): all frames in one pass, or keyframes and the frames between them?

    pip install -e .
    python -m benchmarks.one_pass_vs_cascade [--image_model=RUN] [--seeds=3] [--i3d=FILE] [--quick]

Trains, over one frozen image model and for each of three seeds, a Space-Time U-Net (configs/stunet.py) and a cascade
(configs/keyframe_cascade.py) for the same clips: 13 frames of moving_shapes at 8 fps, of which the cascade's first
network makes every fourth. Each of the cascade's two networks has as many temporal parameters as the Space-Time U-Net,
and half of the FLOPs (by XLA's count) that its training takes. Samples the same prompts with each and measures what
`evaluate` does, and a Fréchet distance from clips that are rendered from the prompts' scenes, in I3D's features where
--i3d has its weights and in those of a network that was trained to tell moving_shapes' attributes (shapes_features).
What is there already, runs and clips, is taken. Writes into --output:

    one_pass_vs_cascade.json    protocol, costs, and all measures, of all prompts and of those whose motion is periodic
    slices.png                  Fig. 2: X-T slices of periodic motion, rendered, in one pass, and of the cascade
    clips/METHOD/seed_N         the clips, for `python -m lumiere_jax.user_study`
"""

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import ml_collections
import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS
from matplotlib.figure import Figure

from benchmarks.machine import machine
from benchmarks.shapes_features import train_features
from configs import keyframe_cascade, stunet
from lumiere_jax.abstract_model import abstract_model
from lumiere_jax.abstract_program import step_flops
from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.data.video_io import write_mp4
from lumiere_jax.diffusion.condition_masks import KEYFRAME_STRIDE
from lumiere_jax.distributed import platform
from lumiere_jax.evaluation import material as materials
from lumiere_jax.evaluation.clip_files import read_clip
from lumiere_jax.evaluation.frechet_video_distance import Features, FeatureStatistics, frechet_distance
from lumiere_jax.evaluation.material import Material
from lumiere_jax.evaluation.measures import Row, measures_without_networks, over_repeats
from lumiere_jax.evaluation.network_measures import NetworkMeasures
from lumiere_jax.evaluation.result import protocol_of
from lumiere_jax.evaluation.result_table import table
from lumiere_jax.evaluation.seams import neighbour_mse, seam_ratio
from lumiere_jax.evaluation.xt_slice import xt_slice
from lumiere_jax.models import parameter_partition
from lumiere_jax.pipelines.keyframe_cascade import sample_cascade
from lumiere_jax.pipelines.text_to_video import Videos, sample_videos
from lumiere_jax.train import train

ONE_PASS, CASCADE = "one pass", "cascade"
PERIODIC = ("bouncing", "circling", "swinging")
DISTANCE = "Fréchet distance"
_BATCH = 8  # prompts that are sampled at once
VERSIONS = ("jax", "jaxlib", "flax", "numpy")

Sample = Callable[[Sequence[str], int], Videos]  # prompts, number of the first


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and sampled: whole, or quick."""

    variant: str
    image_steps: int
    steps: int  # of the one pass
    seeds: int
    prompts: int
    sampling_steps: int
    feature_steps: int


WHOLE = Size("demo", 2000, 400, 3, 24, 12, 600)
QUICK = Size("test", 4, 4, 1, 4, 2, 2)


# ---------------------------------------------------------------- Training, at equal FLOPs


class Plan(NamedTuple):
    """The configs of the one pass and of the cascade's two stages, and what each costs."""

    configs: dict[str, ml_collections.ConfigDict]
    costs: dict[str, dict[str, float]]  # temporal parameters, steps and FLOPs of training


def plan(size: Size, image_model: str) -> Plan:
    """What is trained: with as many steps as FLOPs allow.

    Args:
      size: `WHOLE` or `QUICK`.
      image_model: the run that all three inflate.
    """
    configs = {ONE_PASS: stunet.get_config(size.variant)}
    configs |= {stage: keyframe_cascade.get_config(f"{stage}_{size.variant}") for stage in keyframe_cascade.STAGES}
    keys = configs[keyframe_cascade.STAGES[0]].clip.frames
    configs[ONE_PASS].clip.frames = (keys - 1) * KEYFRAME_STRIDE + 1
    costs: dict[str, dict[str, float]] = {}
    for name, config in configs.items():
        parts = parameter_partition.split(abstract_model(config))
        flops = step_flops(config, parts, config.training.batch_size)
        if name == ONE_PASS:
            steps = size.steps
        else:
            share = costs[ONE_PASS]["training teraflops"] / len(keyframe_cascade.STAGES)
            steps = max(1, round(share * 1e12 / flops))
        config.init_from = image_model
        config.sampling.steps = size.sampling_steps
        config.training.update({"steps": steps, "checkpoint_every": steps, "validate_every": -(-steps // 4)})
        config.training.preview_every = 0
        costs[name] = {
            "trained parameters": parameter_partition.count(parts[1]),
            "steps": steps,
            "training teraflops": steps * flops / 1e12,
        }
    return Plan(configs, costs)


def train_all(configs: dict[str, ml_collections.ConfigDict], directory: pathlib.Path, seed: int) -> dict[str, Sample]:
    """Trains the three networks of a seed, or loads them: how each method samples."""
    runs = {}
    for name, config in configs.items():
        config = ml_collections.ConfigDict(config.to_dict())
        config.seed = seed
        workdir = directory / name.replace(" ", "_")
        train(config, workdir)
        runs[name] = load_run(workdir)
        jax.clear_caches()  # of compiled training programs: the next network's is another
    keyframes, between = (runs[stage] for stage in keyframe_cascade.STAGES)
    return {
        ONE_PASS: lambda prompts, first: sample_videos(runs[ONE_PASS], prompts, seed=seed, first_number=first),
        CASCADE: lambda prompts, first: sample_cascade(keyframes, between, prompts, seed=seed, first_number=first),
    }


# ---------------------------------------------------------------- Sampling and measuring


def clip_files(directory: pathlib.Path, sample: Sample, prompts: Sequence[str], fps: float) -> list[pathlib.Path]:
    """The clips of a method and a seed, as lossless mp4s; those that are there are not made again."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{number:05d}.mp4" for number in range(len(prompts))]
    for first in tqdm.trange(0, len(prompts), _BATCH, desc=str(directory), unit="batch"):
        batch = files[first : first + _BATCH]
        if all(file.exists() for file in batch):
            continue
        for file, video in zip(batch, sample(prompts[first : first + _BATCH], first), strict=True):
            write_mp4(file, video, fps, lossless=True)
    return files


def part_of(row: Row, clips: Sequence[int]) -> Row:
    """A row with some of the clips of each repeat."""
    return dataclasses.replace(row, repeats=[[repeat[clip] for clip in clips] for repeat in row.repeats])


def measured(row: Row, material: Material, features: Features) -> dict[str, dict[str, Any]]:
    """What `evaluate` measures without networks, the distance in `features`, and seams at keyframes."""
    found = measures_without_networks(row, material.scenes)
    statistics = [
        FeatureStatistics.of(features(np.stack([read() for read in repeat])))
        for repeat in (material.reference.repeats[0], *row.repeats)
    ]
    distances = [frechet_distance(statistics[0], each) for each in statistics[1:]]
    found["distribution"] = {DISTANCE: over_repeats(distances)}
    if len(next(row.clips())) > 2 * KEYFRAME_STRIDE:  # there are inner keyframes
        found["seams"] = {"at keyframes / elsewhere": over_repeats([keyframe_ratio(repeat) for repeat in row.repeats])}
    return found


def keyframe_ratio(repeat: Sequence[Callable[[], np.ndarray]]) -> float:
    """Mean difference of inner keyframes from their neighbours, over that of other neighbours (evaluation/seams)."""
    mse = np.mean([neighbour_mse(read()) for read in repeat], axis=0)
    pair = np.arange(len(mse))
    # Pair i is of frames i and i + 1.
    border = ((pair + 1) % KEYFRAME_STRIDE == 0) | (pair % KEYFRAME_STRIDE == 0)
    border[[0, -1]] = False
    inner = np.isin(pair, [0, len(mse) - 1], invert=True)
    return seam_ratio(mse, border, ~border & inner)


def draw_slices(rows: Sequence[Row], material: Material) -> Figure:
    """For the first clip of each periodic motion, columns (bouncing) or rows of pixels over time: a panel a method."""
    shown = [
        (motion, number, scene.objects[0])
        for motion in PERIODIC
        for number, scene in [next(found for found in enumerate(material.scenes) if _is_of(found[1], [motion]))]
    ]
    figure, axes = plt.subplots(len(shown), len(rows), figsize=(2.2 * len(rows), 2.2 * len(shown)), squeeze=False)
    for line, (motion, number, thing) in zip(axes, shown, strict=True):
        for axis, row in zip(line, rows, strict=True):
            clip = row.repeats[0][number]()
            size = clip.shape[1]
            across = {"column": int(thing.x * size)} if motion == "bouncing" else {"row": int(thing.y * size)}
            axis.imshow(xt_slice(clip, **across), aspect="auto", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{row.name}: {motion}", fontsize=8)
        line[0].set_ylabel("time, downwards", fontsize=8)
    figure.tight_layout()
    return figure


def _is_of(scene: Any, motions: Sequence[str]) -> bool:
    return scene.objects[0].motion in motions


def compare(size: Size, image_model: str, networks: NetworkMeasures, output: pathlib.Path) -> dict[str, Any]:
    """Trains, samples and measures: what `one_pass_vs_cascade.json` holds."""
    configs, costs = plan(size, image_model)
    clip = configs[ONE_PASS].clip
    material = materials.moving_shapes(
        clips=size.prompts, seed=0, held_out=False, frames=clip.frames, fps=clip.fps, size=clip.size
    )
    files: dict[str, list[list[pathlib.Path]]] = {ONE_PASS: [], CASCADE: []}
    for seed in range(size.seeds):
        samplers = train_all(configs, output / f"seed_{seed}", seed)
        for method, sample in samplers.items():
            directory = output / "clips" / method.replace(" ", "_") / f"seed_{seed}"
            files[method].append(clip_files(directory, sample, material.prompts, clip.fps))
    rows = [
        Row(method, [[functools.partial(read_clip, file) for file in repeat] for repeat in repeats], clip.fps)
        for method, repeats in files.items()
    ]
    features = train_features(frames=clip.frames, fps=clip.fps, size=clip.size, steps=size.feature_steps)
    periodic = [number for number, scene in enumerate(material.scenes) if _is_of(scene, PERIODIC)]
    part = dataclasses.replace(
        material,
        scenes=[material.scenes[number] for number in periodic],
        reference=part_of(material.reference, periodic),
    )
    results = {row.name: measured(row, material, features.features) for row in (material.reference, *rows)}
    if networks.facts():
        for row in rows:
            results[row.name]["networks"] = networks.measure(row, material.reference, material.prompts)
    draw_slices((material.reference, *rows), material).savefig(output / "slices.png", dpi=150)
    protocol = protocol_of(material, rows[0], 0, clip.frames, clip.fps, (clip.size, clip.size), networks)
    return {
        "protocol": dataclasses.asdict(protocol),
        "costs": costs,
        "features tell": features.accuracy,
        "all prompts": results,
        "periodic motion": {row.name: measured(part_of(row, periodic), part, features.features) for row in rows},
    }


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("image_model", None, "The --workdir of configs/text_to_image.py; default: it is trained first.")
    flags.DEFINE_string("i3d", None, "I3D's weights, for the Fréchet video distance: see docs/evaluation.md.")
    flags.DEFINE_integer("seeds", None, "How often both are trained; default: three times.", 1)
    flags.DEFINE_bool("quick", False, "A few steps, to see that everything runs; the numbers mean nothing.")
    flags.DEFINE_string("output", "workdir/one_pass_vs_cascade", "Runs, clips, numbers and the picture.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.FATAL)
    facts, size = machine(VERSIONS), QUICK if FLAGS.quick else WHOLE
    size = dataclasses.replace(size, seeds=FLAGS.seeds or size.seeds)
    output = pathlib.Path(FLAGS.output, *(["quick"] if FLAGS.quick else []))
    try:
        networks = NetworkMeasures(**({"i3d": FLAGS.i3d} if FLAGS.i3d else {}))
        image_model = FLAGS.image_model
        if not image_model:
            config = stunet.get_config(size.variant).image_model
            config.training.update({"steps": size.image_steps, "preview_every": 0})
            image_model = str(output / "image_model")
            train(config, image_model)
        result = compare(size, image_model, networks, output)
    except (CheckpointError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    text = json.dumps(result | {"machine": facts}, indent=1)
    (output / "one_pass_vs_cascade.json").write_text(text + "\n", encoding="utf-8")
    for part in ("all prompts", "periodic motion"):
        print(f"\n{part}\n{table(result[part])}")
    print(f"\nnumbers and picture: {output}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    app.run(main)
