"""What `benchmarks.sampling` and `benchmarks.training_step` share: their command line, tables and pictures."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
from absl import app, flags
from absl.flags import FLAGS
from matplotlib.figure import Figure

from benchmarks import peer_networks
from benchmarks.machine import machine, versions
from benchmarks.model_sizes import with_tables
from benchmarks.peer_networks import IMAGE_PEER, MODES, OURS, PEERS, Row, Task
from configs import stunet
from lumiere_jax.checkpoints.deepfloyd_if import diffusers_config
from lumiere_jax.models.unet2d_config import UNet2DConfig

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "performance.md"
_DISTRIBUTIONS = ("jax", "jaxlib", "flax", "numpy", "torch", "diffusers", "lumiere-pytorch", "x-transformers")
CONFIGS = ("demo", "small", "if_m", "if_l", "test")


def run(name: str, programs: dict[str, str]) -> None:
    """Runs a benchmark as a command.

    Args:
      name: of the benchmark, its files and its table in docs/performance.md.
      programs: for each network what is measured.
    """
    define_flags()
    app.run(lambda _argv: benchmark(name, programs))


def define_flags() -> None:
    """The command line."""
    define_task_flags()
    flags.DEFINE_integer("rounds", 7, "In which ours and a peer take one turn each.", 1)
    flags.DEFINE_float("seconds", 1.0, "Of a turn, about.", 0.0)


def define_task_flags() -> None:
    """What is done, in which modes, and where the results go: `peer_profile` has these, too."""
    flags.DEFINE_enum("config", "demo", CONFIGS, "Variant of configs/stunet.py; --quick takes test.")
    flags.DEFINE_integer("frames", 0, "Of a clip; 0: the config's. The image network gets as many pictures.", 0)
    flags.DEFINE_integer("size", 0, "Pixels; 0: the config's.", 0)
    flags.DEFINE_integer("clips", 2, "In a batch.", 1)
    flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "cpu: float32. gpu: the config's type of computation.")
    flags.DEFINE_integer("threads", min(2, os.cpu_count()), "Of each library.", 1)
    flags.DEFINE_multi_enum("mode", list(MODES), MODES, "How PyTorch runs its networks.")
    flags.DEFINE_string("output", None, "Folder for the results.", required=True)
    flags.DEFINE_bool("write_docs", False, "Also puts the table into docs/performance.md, and the picture beside.")
    flags.DEFINE_bool("quick", False, "Tiny networks, two short rounds, eager: shows that it runs, says nothing else.")


def benchmark(name: str, programs: dict[str, str]) -> None:
    """Measures what the flags say, prints the table and writes the files."""
    peer_networks.check_threads(FLAGS.threads)
    facts = machine(_DISTRIBUTIONS)
    rounds, seconds, modes = (2, 0.1, MODES[:1]) if FLAGS.quick else (FLAGS.rounds, FLAGS.seconds, FLAGS.mode)
    rows = []
    with tempfile.TemporaryDirectory() as weights:
        tasks = list(tasks_of_flags(programs, weights))
        missing = [peer for task in tasks for peer in PEERS[task.network] if not is_installed(peer, task)]
        if missing:
            print(f"not installed, left out: {', '.join(missing)} (pip install '.[peers]')")
        for task in tasks:
            rows += peer_networks.measure(task, modes, rounds=rounds, seconds=seconds)
            result = "\n\n".join([table(rows), *goals(rows), conditions(facts, task, f"median of {rounds} rounds")])
            measured = {"tasks": [dataclasses.asdict(task) | {"weights": ""} for task in tasks], "rounds": rounds}
            measured |= {
                "seconds of a turn": seconds,
                "quick": FLAGS.quick,
                "rows": list(map(dataclasses.asdict, rows)),
            }
            write(pathlib.Path(FLAGS.output), name, facts | measured, rows, result)  # after each, as it takes long
    print(result)
    if FLAGS.write_docs:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), {name: result}))
        picture = pathlib.Path(FLAGS.output, f"{name}.png")
        shutil.copy(picture, DOCUMENT.parent / "pictures" / f"peers_{picture.name}")


def is_installed(peer: str, task: Task) -> bool:
    """Whether a peer can be measured here."""
    return peer_networks.installed(peer, task.network)


def tasks_of_flags(programs: dict[str, str], weights: str) -> Iterator[Task]:
    """The tasks of the command line; writes the image network's weights into the folder `weights`, for all to read."""
    variant = "test" if FLAGS.quick else FLAGS.config
    config = stunet.get_config(variant)
    if peer_networks.installed(IMAGE_PEER, "image"):
        of_diffusers = diffusers_config(UNet2DConfig(**config.image_model.unet))
        pathlib.Path(weights, "config.json").write_text(json.dumps(of_diffusers, indent=2) + "\n")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            process.submit(_write_weights, weights).result()
    else:
        weights = ""
    for network, program in programs.items():
        yield Task(
            network=network,
            program=program,
            config=variant,
            frames=FLAGS.frames or config.clip.frames,
            size=FLAGS.size or config.clip.size,
            clips=FLAGS.clips,
            dtype="float32" if FLAGS.device == "cpu" else config.compute_dtype,
            device=FLAGS.device,
            threads=FLAGS.threads,
            weights=weights,
        )


def _write_weights(directory: str) -> None:
    # Here, as PyTorch need not be installed.
    from benchmarks import networks_in_torch

    networks_in_torch.write_weights(directory)


# ---------------------------------------------------------------------------------------------- what came out


def table(rows: Sequence[Row]) -> str:
    """A Markdown table with one row a competitor."""
    columns = (
        "program",
        "network",
        "mode",
        "ms",
        "ours is",
        "over the rounds",
        "peak memory, MB",
        "of it libraries, MB",
    )
    columns += ("parameters", "trained", "forward, GFLOP")
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *map(_table_row, rows)])


def _table_row(row: Row) -> str:
    what = f"{row.network} {row.program.replace('_', ' ')}"
    if row.reason:
        reason = row.reason.replace("|", "\\|")
        return f"| {what} | {row.name} | {row.mode} | {reason} | | | | | | | |"
    ratio = spread = ""
    if row.ratios:
        ratio = f"{statistics.median(row.ratios):.2f} x"
        spread = f"{min(row.ratios):.2f}–{max(row.ratios):.2f}"
    cells = (what, row.name, row.mode, f"{1e3 * statistics.median(row.seconds):.1f}", ratio, spread)
    cells += (*map(_megabytes, (row.memory, row.idle_memory)), f"{row.parameters:,}", f"{row.trained:,}")
    return f"| {' | '.join(cells)} | {row.forward_flops / 1e9:.2f} |"


def _megabytes(memory: int | None) -> str:
    return "not known" if memory is None else f"{memory / 1e6:.0f}"


def goals(rows: Sequence[Row]) -> list[str]:
    """For each peer whether ours is at least as fast as its fastest mode."""
    found = []
    for key in dict.fromkeys((row.network, row.program, row.name) for row in rows if row.ratios):
        of_peer = [row for row in rows if (row.network, row.program, row.name) == key and row.ratios]
        best = min(of_peer, key=lambda row: statistics.median(row.ratios))
        ratio = statistics.median(best.ratios)
        verdict = "reached" if ratio >= 1 else "**missed**"
        found.append(f"- {key[0]} {key[1]}, {key[2]}: {verdict}, {ratio:.2f} x its best mode ({best.mode})")
    return ["At least as fast as the peer's best mode:\n\n" + "\n".join(found)] if found else []


def conditions(facts: dict, task: Task, repeated: str) -> str:
    """What was measured on what, how often, in one paragraph."""
    return (
        f"`{task.config}`: {task.clips} clips of {task.frames} frames, or {task.frames} pictures, of {task.size}×"
        f"{task.size} pixels, {task.dtype}, {task.device}, {task.threads} threads each; {repeated}. "
        f"{facts['processor']}, {facts['cores']} cores, load {facts['load average at the start']:.1f} before "
        f"the start; Python {facts['python']}, {versions(facts)}."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """How many times as fast ours is: the median, and the range over the rounds."""
    measured = [row for row in rows if row.ratios][::-1]
    figure, axis = plt.subplots(figsize=(9, 1 + 0.35 * max(1, len(measured))), layout="constrained")
    medians = [statistics.median(row.ratios) for row in measured]
    below = [median - min(row.ratios) for median, row in zip(medians, measured, strict=True)]
    above = [max(row.ratios) - median for median, row in zip(medians, measured, strict=True)]
    labels = [f"{row.network} {row.program.replace('_', ' ')}: {row.name}, {row.mode}" for row in measured]
    axis.barh(labels, medians, xerr=(below, above), capsize=3, color="tab:blue", alpha=0.7)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xlabel(f"time of the peer / time of {OURS}\n(right of 1 ours is faster)")
    return figure


def write(output: pathlib.Path, name: str, facts: dict, rows: Sequence[Row], result: str) -> None:
    """Writes `name`.json, .md and .png."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
    (output / f"{name}.md").write_text(result + "\n")
    figure = plot(rows)
    figure.savefig(output / f"{name}.png", dpi=150)
    plt.close(figure)
