"""What a clip of 5 seconds costs, from the prompt to 80 frames of 1024x1024 pixels: the table in docs/performance.md.

    python -m benchmarks.clip_budget
    python -m benchmarks.clip_budget --measure

Nothing is run and no weights are made: FLOPs are counted on shapes, a minute a stage, and divided by half of what a
device can at best. That is a budget, no measurement: how near to half a program comes is what a device must show.
`--measure` shows it, on the machine that it runs on, of the model that ships with this repository: seconds of a clip
once all is compiled, and its share of the rate at which the same machine multiplies two large matrices.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import tqdm
from absl import app, flags
from absl.flags import FLAGS

from benchmarks.machine import machine, versions
from benchmarks.model_sizes import with_tables
from benchmarks.super_resolution_cost import ROOT, Stage, work_of
from configs import ssr, stunet
from lumiere_jax.abstract_program import forward_flops
from lumiere_jax.checkpoints.trained_run import load_run
from lumiere_jax.distributed import platform
from lumiere_jax.distributed.model_flops import PEAK_FLOPS
from lumiere_jax.pipelines import super_resolution
from lumiere_jax.pipelines.generation import sampling_settings
from lumiere_jax.pipelines.text_to_video import sample_videos

DOCUMENT = ROOT / "docs" / "performance.md"
BASE_STEPS = 25  # guided, of DPM-Solver++(2M)
SHARE = 0.5  # of the peak
DEVICES = {"one H200": PEAK_FLOPS["NVIDIA H200"], "v5e:4x4": 16 * PEAK_FLOPS["TPU v5e"]}

_TO_1024 = Stage("256 → 1024", "ssr:efficient_4x", 1024)
_IN_ONE = Stage("128 → 1024", "ssr:efficient", 1024)
PIPELINES = (
    (Stage("base", "stunet:if_m", 128), (Stage("128 → 256", "ssr:if_ii_m", 256), _TO_1024)),
    (Stage("base", "stunet:if_l", 128), (Stage("128 → 256", "ssr:if_ii_l", 256), _TO_1024)),
    (Stage("base", "stunet:if_l", 128), (_IN_ONE,)),
    (Stage("base", "stunet:if_xl", 128), (Stage("128 → 256", "ssr:if_ii_l", 256), _TO_1024)),
)


def row(base: Stage, enlarging: Sequence[Stage]) -> str:
    """One pipeline: FLOPs and seconds of the base clip, and of all."""
    of_base = work_of(base).a_step * BASE_STEPS
    works = [work_of(stage) for stage in enlarging]
    everything = of_base + sum(work.a_step * work.steps for work in works)
    names = " → ".join(f"`{stage.config}`" for stage in (base, *enlarging))
    steps = " + ".join(map(str, (BASE_STEPS, *(work.steps for work in works))))
    cells = [names, steps]
    for flops in (of_base, everything):
        cells += [f"{flops / 1e15:,.1f}", *(f"{flops / (SHARE * peak):,.0f}" for peak in DEVICES.values())]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """One row a pipeline."""
    columns = ["networks", "steps"]
    for clip in ("80×128×128", "80×1024×1024"):
        columns += [f"{clip}, PFLOP", *(f"s on {device}" for device in DEVICES)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(row(*pipeline) for pipeline in tqdm.tqdm(PIPELINES, unit="pipeline"))])


# ---------------------------------------------------------------------------------------------- measured

SHIPPED = ROOT / "pretrained" / "lumiere_shapes"
_PROMPT = "a small purple star drifting towards the lower left on a black background"
_TIMES = 3  # after the one that compiles
_MATRIX = 2048


def measured_table() -> str:
    """One row a stage of the shipped model."""
    rate = matmul_rate()
    columns = ("stage", "steps", "TFLOP", "s", "GFLOP/s", "share of the matmul rate")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [measured_row(*stage, rate) for stage in stages()]
    facts = machine(["jax", "jaxlib"])
    conditions = (
        f"float32, medians of {_TIMES}; two matrices of {_MATRIX} rows and columns are multiplied at {rate / 1e9:,.0f} "
        f"GFLOP/s. {facts['processor']}, {facts['cores']} cores; {versions(facts)}."
    )
    return "\n".join([*lines, "", conditions])


def stages() -> Iterator[tuple[str, int, float, float]]:
    """Of each stage what it makes, its steps, FLOPs and seconds of a clip."""
    base, larger = load_run(SHIPPED / "base"), load_run(SHIPPED / "super_resolution")
    settings, clip = sampling_settings(base.config), base.config.clip
    seconds = seconds_of(lambda: sample_videos(base, [_PROMPT]))
    flops = forward_flops(stunet.get_config("shapes")) * settings.calls * settings.evaluations_a_call
    yield f"prompt → {clip.frames}×{clip.size}×{clip.size}", settings.steps, flops, seconds

    small = sample_videos(base, [_PROMPT])
    ready = super_resolution.prepare(larger, small.shape[1:4])
    seconds = seconds_of(lambda: ready.videos(small, [_PROMPT]))
    windows = len(ready.cut.corners)
    flops = forward_flops(ssr.get_config("demo")) * windows * ready.settings.calls * ready.settings.evaluations_a_call
    frames, height, width = ready.cut.clip
    yield f"→ {frames}×{height}×{width}, in {windows} windows", ready.settings.steps, flops, seconds


def seconds_of(make: Callable[[], object]) -> float:
    """Of a call, compilation apart."""
    make()
    seconds = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        make()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def matmul_rate() -> float:
    """FLOP/s of multiplying two large matrices of float32."""
    matrix = jnp.ones((_MATRIX, _MATRIX))
    multiply = jax.jit(jnp.matmul)
    return 2 * _MATRIX**3 / seconds_of(lambda: jax.block_until_ready(multiply(matrix, matrix)))


def measured_row(name: str, steps: int, flops: float, seconds: float, rate: float) -> str:
    """A stage's line."""
    cells = (name, str(steps), f"{flops / 1e12:.2f}", f"{seconds:.1f}", f"{flops / seconds / 1e9:.0f}")
    return f"| {' | '.join(cells)} | {100 * flops / seconds / rate:.0f} % |"


def main(_argv: list[str]) -> None:
    """Entry point."""
    name, made = ("measured_clip", measured_table()) if FLAGS.measure else ("clip_budget", table())
    print(made)
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), {name: made}))


if __name__ == "__main__":
    flags.DEFINE_bool("measure", False, "Run the shipped model, and measure it, rather than count.")
    platform.configure()
    app.run(main)
