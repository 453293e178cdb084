"""What sampling approximately costs and saves, beside sampling with fewer steps, which costs and saves, too.

    python -m benchmarks.approximations --checkpoint=RUN [--prompts=16] [--output=DIR]

RUN is the --workdir of a Space-Time U-Net's training on `moving_shapes`. All ways start from the same noise, for
captions that no training had; the error is the mean squared difference to the clips of 64 exact steps. The work is the
FLOPs of all calls of the network, as it is written: of RUN's, and of one at full size. Seconds are the median of three
turns, in each of which every way makes a batch. Writes

    approximations.json     all of it, with machine and versions
    approximations.png      error against work
    clips.png               a row for each way: middle frames of four clips, then last ones
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import ml_collections
import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS
from flax import nnx
from matplotlib.figure import Figure

from benchmarks.machine import machine
from configs import stunet
from lumiere_jax.abstract_model import abstract_model
from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.data import moving_shapes
from lumiere_jax.diffusion.approximations import Approximations
from lumiere_jax.distributed import platform
from lumiere_jax.distributed.model_flops import count_flops
from lumiere_jax.models.int8_weights import to_int8
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.generation import Settings, sampling_settings
from lumiere_jax.pipelines.results import write_sheet
from lumiere_jax.pipelines.text_to_video import Videos, sample_in_batches

SAMPLER, STEPS, REFERENCE_STEPS, TURNS = "dpm_solver_pp_2m", 25, 64, 3
FULL_SIZE = "if_l"  # the variant of configs/stunet.py whose work is counted, too


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to sample; `family` is a line of the picture."""

    family: str
    label: str
    steps: int = STEPS
    approximations: Approximations = dataclasses.field(default_factory=Approximations)
    int8: bool = False


WAYS = (
    *(Way("fewer steps", f"{steps} steps", steps) for steps in (STEPS, 18, 13, 10, 7)),
    *(
        Way(f"deep features, {n} shallow", f"all layers every {every}, else {n}", STEPS, Approximations(every, n))
        for n in (1, 2)
        for every in (2, 3, 5)
    ),
    *(
        Way("half rate", f"frames in pairs from t={first}", STEPS, Approximations(half_rate_from=first))
        for first in (0.9, 0.7, 0.5)
    ),
    Way("int8", "kernels as 8-bit integers", int8=True),
)


def choices(way: Way) -> dict[str, Any]:
    """Of `sampling_settings`."""
    return {"sampler": SAMPLER, "steps": way.steps, "approximations": way.approximations}


@functools.cache
def call_flops(model: TextToVideo, tokens: int, clip: tuple[int, int, int], shallow: int | None) -> float:
    """FLOPs of one evaluation of the network on one clip.

    Args:
      model: may be abstract.
      tokens: of the text.
      clip: (frames, height, width).
      shallow: None, or so many layers with deep features that are given.
    """
    graphdef, state = nnx.split(model)

    def call(parameters: dict, *inputs: jax.Array, **deep: Any) -> tuple[jax.Array, jax.Array]:
        return nnx.merge(graphdef, parameters).predict_with_deep_features(*inputs, **deep)

    scalar = jax.ShapeDtypeStruct((1,), jnp.float32)
    text = jax.ShapeDtypeStruct((1, tokens, model.unet.config.text_dim), model.dtype)
    inputs = (nnx.to_pure_dict(state), jax.ShapeDtypeStruct((1, *clip, 3), jnp.float32), scalar, text)
    if shallow is None:
        return count_flops(call, *inputs)
    _, deep = jax.eval_shape(functools.partial(call, shallow=shallow), *inputs)
    return count_flops(lambda deep, *inputs: call(*inputs, shallow=shallow, deep=deep), deep, *inputs)


def work(model: TextToVideo, config: ml_collections.ConfigDict, settings: Settings) -> float:
    """FLOPs of all calls of the network that sampling a clip takes."""
    frames, size = config.clip.frames, config.clip.size
    flops = functools.partial(call_flops, model, config.text.length)
    chosen, calls, whole = settings.approximations, settings.calls, flops((frames, size, size), None)
    left_out = 0.0
    if chosen.half_rate_from is not None:
        paired = int((np.asarray(settings.plan().t) >= chosen.half_rate_from).sum())
        left_out = paired * (whole - flops((frames // 2, size, size), None))
    if chosen.deep_features_every > 1:
        few = calls - -(-calls // chosen.deep_features_every)
        left_out = few * (whole - flops((frames, size, size), chosen.shallow_layers))
    return (calls * whole - left_out) * settings.evaluations_a_call


def measure(run: Run, captions: Sequence[str], batch_size: int) -> tuple[list[dict[str, Any]], dict[str, Videos]]:
    """Error, work and seconds of each way, and its clips, the reference's first."""
    integers = load_run(run.path)
    to_int8(integers.model.unet)

    def clips_of(way: Way, captions: Sequence[str]) -> Videos:
        sampler = functools.partial(sample_in_batches, integers if way.int8 else run, captions, seed=0)
        sampled = sampler(batch_size=batch_size, **choices(way))
        return np.concatenate([batch.videos for batch in sampled])

    reference = f"{REFERENCE_STEPS} steps"
    clips = {reference: clips_of(Way("", reference, REFERENCE_STEPS), captions)}
    for way in tqdm.tqdm(WAYS, unit="way"):
        clips[way.label] = clips_of(way, captions)
    seconds: dict[str, list[float]] = {way.label: [] for way in WAYS}
    for _ in tqdm.trange(TURNS, unit="turn"):
        for way in WAYS:
            began = time.perf_counter()
            clips_of(way, captions[:batch_size])
            seconds[way.label].append((time.perf_counter() - began) / batch_size)
    large = stunet.get_config(FULL_SIZE)
    large_model = abstract_model(large)
    large.unet = large.image_model.unet  # as a trained run has it
    rows = [
        dataclasses.asdict(way)
        | {"error": float(np.square(clips[way.label] - clips[reference]).mean())}
        | {"flops": work(run.model, run.config, sampling_settings(run.config, **choices(way)))}
        | {"seconds": float(np.median(seconds[way.label]))}
        | {FULL_SIZE: work(large_model, large, sampling_settings(large, **choices(way)))}
        for way in WAYS
    ]
    return rows, clips


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Error against work, a line for each family."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    exact = rows[0]["flops"]
    for family in dict.fromkeys(row["family"] for row in rows):
        points = sorted((row["flops"] / exact, row["error"]) for row in rows if row["family"] == family)
        axes.plot(*zip(*points, strict=True), "o-", label=family, color="black" if family == "fewer steps" else None)
    axes.set(xlabel=f"work, {STEPS} exact steps = 1", ylabel=f"squared difference to {REFERENCE_STEPS} exact steps")
    axes.set_yscale("log")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; work and seconds as ratios to the first row's."""
    ratios = ("flops", FULL_SIZE, "seconds")
    lines = [f"| | error | work | work of `{FULL_SIZE}` | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        relative = " | ".join(f"{row[name] / rows[0][name]:.2f}" for name in ratios)
        lines.append(f"| {row['label']} | {row['error']:.4f} | {relative} |")
    return "\n".join(lines)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("checkpoint", None, "The --workdir of a Space-Time U-Net's training on moving_shapes.")
    flags.DEFINE_integer("prompts", 16, "How many clips.", 1)
    flags.DEFINE_integer("batch_size", 4, "Clips that are sampled at once.", 1)
    flags.DEFINE_string("output", "workdir/approximations", "Where numbers and pictures go.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    facts = machine(("jax", "flax", "numpy"))
    try:
        run = load_run(FLAGS.checkpoint)
        if "temporal" not in run.config or run.config.diffusion.low_res_factor:
            raise ValueError(f"--checkpoint={run.path} is no Space-Time U-Net's run: {run.config.name}")
    except (CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    duration = run.config.clip.frames / run.config.clip.fps
    pairs = moving_shapes.prompts(FLAGS.prompts, seed=1, held_out=True, duration=duration)
    rows, clips = measure(run, [caption for caption, _ in pairs], min(FLAGS.batch_size, FLAGS.prompts))
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "approximations.json").write_text(json.dumps({"ways": rows, "machine": facts}, indent=1) + "\n")
    draw(rows).savefig(output / "approximations.png", dpi=110)
    middle = run.config.clip.frames // 2
    shown = [np.concatenate([videos[:4, middle], videos[:4, -1]]) for videos in clips.values()]
    write_sheet(output / "clips.png", shown, "clips with approximations", {"measured": rows})
    print(table(rows))
    print(f"\n{output / 'approximations.png'}; rows of {output / 'clips.png'}: {', '.join(clips)}")


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flags_as_required(["checkpoint"])
    app.run(main)
