"""What super-resolution to 1024x1024 needs: memory by windows and tiles, FLOPs by stage; docs/super_resolution.md.

    python -m benchmarks.super_resolution_cost [--only=flops,memory]

Nothing is run and no weights are made. FLOPs are counted on shapes (a multiply-add is two), a minute a stage. Memory is
what libtpu says of the compiled program that denoises a window (`pip install -e '.[tpu]'`), compiled quickly, for its
memory alone: some minutes a size.
"""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import tempfile

import tqdm
from absl import app, flags
from absl.flags import FLAGS

from benchmarks.model_sizes import with_tables
from configs import ssr, stunet
from lumiere_jax.abstract_program import forward_flops
from lumiere_jax.diffusion.multidiffusion import Windows
from lumiere_jax.distributed import platform
from lumiere_jax.pipelines.window_memory import tiles_of

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "super_resolution.md"
RESULTS = ROOT / "docs" / "super_resolution_memory.json"

FRAMES, SIZE = 80, 1024
DEVICES = (16, 24, 40, 80, 141)  # GB: v5e or T4, L4, A100, H100, H200
# (side, overlap) of tiles, those that sampling tries; None: whole frames.
TILES = (None, *(tiles_of(SIZE, count, stride=16) for count in (2, 4, 8)))
CHIPS = 4  # of the smallest slice of v5p, which has 95 GB a chip: room for all of them, a window on each


@dataclasses.dataclass(frozen=True)
class Stage:
    """One network of the pipeline, as it is sampled: `size` pixels a side, `steps` of them guided `guided`."""

    name: str
    config: str  # FILE:VARIANT
    size: int


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage computes for a clip of 80 frames."""

    a_frame: float  # FLOPs of the network, of a window's frame
    a_window: float
    windows: int
    is_guided: bool
    steps: int

    @property
    def a_step(self) -> float:
        """FLOPs of one step of a clip."""
        return self.a_window * self.windows * (2 if self.is_guided else 1)


STAGES = (
    Stage("base", "stunet:if_l", 128),
    Stage("128 → 1024 in one network", "ssr:efficient", 1024),
    Stage("128 → 256", "ssr:if_ii_l", 256),
    Stage("256 → 1024", "ssr:efficient_4x", 1024),
)


def config_of(stage: Stage):
    """The stage's config, for one window of `stage.size` pixels a side."""
    file, variant = stage.config.split(":")
    config = {"stunet": stunet, "ssr": ssr}[file].get_config(variant)
    config.clip.size = stage.size
    return config


@functools.cache
def work_of(stage: Stage) -> Work:
    """Counted on shapes, sampled as its config says."""
    config = config_of(stage)
    window = forward_flops(config)
    windows = 1
    if "multidiffusion" in config:
        cut = Windows((config.clip.frames, config.multidiffusion.overlap)).of((FRAMES, stage.size, stage.size))
        windows = len(cut.corners)
    sampling = config.sampling
    return Work(window / config.clip.frames, window, windows, sampling.guidance != 1.0, sampling.steps)


def flops_row(stage: Stage) -> str:
    """What one stage computes for a clip of 80 frames."""
    work = work_of(stage)
    cells = (
        f"{stage.name} (`{stage.config}`)",
        str(work.windows),
        f"{work.a_frame / 1e12:.2f}",
        "yes" if work.is_guided else "no",
        f"{work.a_step / 1e12:,.0f}",
        str(work.steps),
        f"{work.a_step * work.steps / 1e15:,.1f}",
    )
    return f"| {' | '.join(cells)} |"


def flops_table() -> str:
    """One row a stage."""
    columns = ("stage", "windows", "TFLOP a frame", "guided", "TFLOP a step of a clip", "steps", "PFLOP a clip")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(flops_row(stage) for stage in tqdm.tqdm(STAGES, unit="stage"))])


def measure(tile: tuple[int, int] | None) -> dict:
    """libtpu's report of the program that denoises one window, or one tile of it, on each chip."""
    side, overlap = tile or (0, 0)
    with tempfile.TemporaryDirectory() as directory:
        output = pathlib.Path(directory, "report.json")
        command = [
            *(sys.executable, "-m", "lumiere_jax.compile_for_tpu", f"--output={output}", "--effort=-1"),
            *("--config=configs/ssr.py:efficient", "--topology=v5p:2x2x1", "--program=sample"),
            *(f"--config.clip.size={SIZE}", f"--config.training.batch_size={CHIPS}"),
            *(f"--config.multidiffusion.tile={side}", f"--config.multidiffusion.tile_overlap={overlap}"),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not output.exists():
            raise RuntimeError(f"tiles {tile} failed:\n{done.stderr[-2000:]}")
        return json.loads(output.read_text())


def memory_table(reports: dict[str, dict]) -> str:
    """One row a tile: how many of them, what they need, and on which devices they fit."""
    columns = ("tiles", "windows × tiles of a clip", "pixels computed over pixels of the clip", "GiB")
    columns += tuple(f"{size} GB" for size in DEVICES)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for tile in TILES:
        if report := reports.get(str(tile)):
            cut = Windows((8, 2), tile, tile).of((FRAMES, SIZE, SIZE))
            memory = report["memory"]
            needed = memory["peak"] if report["fits"] else memory["needed"]
            name = "whole frames" if tile is None else f"{tile[0]}×{tile[0]}, overlap {tile[1]}"
            cells = [name, str(len(cut.corners)), f"{cut.overhead:.2f}", f"{needed / 2**30:.1f}"]
            # A tenth is left for what else lies on a device.
            cells += ["fits" if needed < 0.9 * size * 1e9 else "—" for size in DEVICES]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(_argv: list[str]) -> None:
    """Entry point."""
    tables = {}
    if "flops" in FLAGS.only:
        tables["flops"] = flops_table()
    if "memory" in FLAGS.only:
        reports = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for tile in tqdm.tqdm(TILES[::-1], unit="size"):
            reports[str(tile)] = measure(tile)
            RESULTS.write_text(json.dumps(reports, indent=1) + "\n")
        tables["memory"] = memory_table(reports)
    print("\n\n".join(tables.values()))
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), tables))


if __name__ == "__main__":
    platform.configure()
    flags.DEFINE_list("only", ["flops", "memory"], "Which tables to make.")
    app.run(main)
