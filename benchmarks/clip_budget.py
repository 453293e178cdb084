"""What a clip of 5 seconds costs, from the prompt to 80 frames of 1024x1024 pixels: the table in docs/performance.md.

    python -m benchmarks.clip_budget

Nothing is run and no weights are made: FLOPs are counted on shapes, a minute a stage, and divided by half of what a
device can at best. That is a budget, no measurement: how near to half a program comes is what a device must show.
"""

from collections.abc import Sequence

import tqdm
from absl import app

from benchmarks.model_sizes import with_tables
from benchmarks.super_resolution_cost import ROOT, Stage, work_of
from lumiere_jax.distributed import platform
from lumiere_jax.distributed.model_flops import PEAK_FLOPS

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


def main(_argv: list[str]) -> None:
    """Entry point."""
    made = table()
    print(made)
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), {"clip_budget": made}))


if __name__ == "__main__":
    platform.configure()
    app.run(main)
