"""Full-size programs compiled for TPU slices, ahead of time: docs/tpu_slices.json, and the table in docs/scaling.md.

    python -m benchmarks.tpu_slices [--only=NAME,...] [--effort=-1]

No TPU is needed; libtpu is (`pip install -e '.[tpu]'`). Each program takes minutes to compile, and gigabytes of memory;
a result is written as soon as it is there, in place of the one that was there before. With `--effort=-1` all take a
fraction of the time: what is needed, kept and sent is then right, the seconds are not.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import tqdm
from absl import app, flags
from absl.flags import FLAGS

from benchmarks.model_sizes import with_tables

_ROOT = pathlib.Path(__file__).parent.parent
RESULTS = _ROOT / "docs" / "tpu_slices.json"
DOCUMENT = _ROOT / "docs" / "scaling.md"


@dataclasses.dataclass(frozen=True)
class Case:
    """One program on one slice; `clips` in all."""

    variant: str
    topology: str
    clips: int
    rows: int
    block: str = "products"  # config.remat.block
    full_blocks: int = 0  # config.remat.full_blocks
    program: str = "train"

    @property
    def name(self) -> str:
        """For `--only`."""
        return f"{self.program}-{self.variant}-{self.topology}"

    def flags(self) -> list[str]:
        """Of `compile_for_tpu`."""
        return [
            f"--config=configs/stunet.py:{self.variant}",
            f"--topology={self.topology}",
            f"--program={self.program}",
            f"--config.training.batch_size={self.clips}",
            f"--config.mesh.rows={self.rows}",
            f"--config.remat.block={self.block}",
            f"--config.remat.full_blocks={self.full_blocks}",
        ]


CASES = (
    Case("if_m", "v5e:4x4", 4, 4),
    Case("if_l", "v5e:2x2", 1, 4),
    Case("if_l", "v5e:4x4", 4, 4, full_blocks=2),
    Case("if_l", "v5e:8x8", 16, 4, full_blocks=2),
    Case("if_l", "v5e:16x16", 64, 4, full_blocks=2),
    Case("if_l", "v6e:8x8", 16, 4),
    Case("if_l", "v5p:4x4x4", 64, 1),
    Case("if_xl", "v5e:16x16", 32, 8, "full"),
    Case("if_xl", "v5p:4x4x4", 16, 4),
    Case("if_l", "v5e:4x4", 4, 4, program="sample"),
)


def compiled(case: Case, effort: float) -> dict:
    """The report of a case, from a process of its own: what libtpu took of memory is given back.

    Raises:
      RuntimeError: it could not be compiled, for another reason than memory.
    """
    with tempfile.TemporaryDirectory() as directory:
        output = pathlib.Path(directory, "report.json")
        command = [sys.executable, "-m", "lumiere_jax.compile_for_tpu", f"--output={output}", f"--effort={effort}"]
        done = subprocess.run([*command, *case.flags()], cwd=_ROOT, capture_output=True, text=True, check=False)
        if not output.exists():
            raise RuntimeError(f"{case.name} failed:\n{done.stderr[-2000:]}")
        return json.loads(output.read_text())


def table(reports: dict[str, dict]) -> str:
    """One row a case, in the order of `CASES`."""
    columns = ("program", "slice", "mesh", "clips", "remat", "GiB a chip", "needed, TFLOP", "sent, GB a chip")
    columns += ("s a step", "+ communication", "utilisation", "days for 30M clips", "chip-hours", "effort")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for case in CASES:
        if report := reports.get(case.name):
            lines.append(f"| {' | '.join(_cells(case, report))} |")
    return "\n".join(lines)


def _cells(case: Case, report: dict) -> list[str]:
    mesh = f"{report['mesh']['data']} × {report['mesh']['rows']}"
    remat, full = (report["remat"][field] for field in ("block", "full_blocks"))
    remat += f", the first {full} full" if full else ""
    cells = [f"{case.program} `{case.variant}`", f"{case.topology}", mesh, str(case.clips), remat]
    if not report["fits"]:
        missing = report["memory"]["missing"] / 2**30
        return [*cells, f"does not fit: {missing:.2f} missing", *["—"] * 7, f"{report['effort']:g}"]
    is_estimate = report["effort"] >= 0
    seconds, both = report["seconds_a_step"], report["seconds_with_communication"]
    # The paper trains on 30M clips; how often it sees them it does not say: here once.
    hours = seconds / case.clips * 30e6 / 3600 if case.program == "train" else None
    return [
        *cells,
        f"{report['memory']['peak'] / 2**30:.1f}",
        f"{report['needed_flops'] / 1e12:,.0f}",
        f"{sum(report['sent'].values()) / 1e9:.1f}",
        f"{seconds:.2f}" if is_estimate else "—",
        f"{both:.2f}" if is_estimate else "—",
        f"{100 * report['utilisation']:.0f} %" if is_estimate else "—",
        f"{hours / 24:.1f}" if is_estimate and hours is not None else "—",
        f"{hours * report['chips']:,.0f}" if is_estimate and hours is not None else "—",
        f"{report['effort']:g}",
    ]


def main(_argv: list[str]) -> None:
    """Entry point."""
    chosen = [case for case in CASES if not FLAGS.only or case.name in FLAGS.only]
    if unknown := set(FLAGS.only) - {case.name for case in CASES}:
        sys.exit(f"error: --only={','.join(sorted(unknown))}: use {', '.join(case.name for case in CASES)}")
    reports = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for case in (bar := tqdm.tqdm(chosen)):
        bar.set_postfix_str(case.name)
        reports[case.name] = compiled(case, FLAGS.effort)
        RESULTS.write_text(json.dumps(reports, indent=1) + "\n")
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), {"slices": table(reports)}))
    print(table(reports))


if __name__ == "__main__":
    flags.DEFINE_list("only", [], "Names of the cases to compile; default: all.")
    flags.DEFINE_float("effort", 0.0, "The compiler's, see compile_for_tpu.", -1.0, 1.0)
    app.run(main)
