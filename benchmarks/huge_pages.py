"""Huge pages for what XLA allocates on a CPU: how much faster is a step, and why?

    python -m benchmarks.huge_pages [--rounds=5]

XLA takes the memory of a program's intermediate results from malloc at each call and gives it back after it. glibc
hands it to the system and takes it again, in pages of 4 KiB that the system must find and clear one by one. With
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, set before a process starts, glibc asks for pages of 2 MiB (Linux, glibc 2.35 or
later, where /sys/kernel/mm/transparent_hugepage/enabled is `madvise` or `always`).

Two processes take turns with the same program, one with that setting and one without: the ratio of their times, the
page faults of a call, and the share of the processors' time that the system took. Into docs/performance.md.
"""

import concurrent.futures
import dataclasses
import math
import multiprocessing
import os
import resource
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from absl import app, flags
from absl.flags import FLAGS

from benchmarks.machine import machine, versions
from benchmarks.model_sizes import with_tables
from benchmarks.peer_networks import OURS, Competitor, Prepared, Task, prepare, take_turn
from benchmarks.super_resolution_cost import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
TUNABLE = "glibc.malloc.hugetlb=1"
PROGRAMS = (("image", "forward"), ("image", "gradient"), ("video", "forward"), ("video", "training_step"))
_SECONDS = 2.0  # of a turn
_FRAMES, _SIZE, _CLIPS = 16, 32, 2


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one process did in its turn; all for one call."""

    seconds: float
    faults: float  # pages of memory that the system had to find
    system: float  # share of the processors' time


def turn(task: Task, competitor: Competitor, calls: int) -> Turn:
    """In the process that is measured: so many calls."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds = take_turn(task, competitor, calls)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    return Turn(seconds, (after.ru_minflt - before.ru_minflt) / calls, system / (system + user))


@contextmanager
def _process(tunables: str) -> Iterator[Callable]:
    """A process with these GLIBC_TUNABLES (empty: none), as a function that runs others in it."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        os.environ["GLIBC_TUNABLES"] = tunables
        executor.submit(os.getpid).result()  # a process has the settings that hold when it starts
        del os.environ["GLIBC_TUNABLES"]
        yield lambda function, *arguments: executor.submit(function, *arguments).result()


def measure(task: Task, rounds: int) -> list[tuple[Turn, Turn]]:
    """Turns without and with huge pages."""
    ours = Competitor(OURS)
    with ExitStack() as stack:
        small, huge = (stack.enter_context(_process(tunables)) for tunables in ("", TUNABLE))
        prepared: Prepared = small(prepare, task, ours)
        huge(prepare, task, ours)
        calls = max(1, math.ceil(_SECONDS / prepared.seconds))
        return [(small(turn, task, ours, calls), huge(turn, task, ours, calls)) for _ in range(rounds)]


def row(task: Task, turns: Sequence[tuple[Turn, Turn]]) -> str:
    """A program's line of the table: medians, and the range of the ratios."""
    ratios = [small.seconds / huge.seconds for small, huge in turns]
    cells = [f"{task.network} {task.program.replace('_', ' ')}"]
    for which in zip(*turns, strict=True):
        milliseconds, faults, system = (
            statistics.median(getattr(each, field) for each in which) for field in ("seconds", "faults", "system")
        )
        cells += [f"{1000 * milliseconds:.0f}", f"{faults:,.0f}", f"{100 * system:.0f} %"]
    cells += [f"{statistics.median(ratios):.2f} x", f"{min(ratios):.2f}–{max(ratios):.2f}"]
    return f"| {' | '.join(cells)} |"


def main(_argv: list[str]) -> None:
    """Entry point."""
    if not sys.platform.startswith("linux"):
        sys.exit(f"error: GLIBC_TUNABLES is of Linux with glibc, this is {sys.platform}")
    facts = machine(["jax", "jaxlib"])
    each = ("ms", "page faults", "system")
    columns = ["program", *each, *(f"{name}, huge pages" for name in each), "faster", "over the rounds"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for network, program in PROGRAMS:
        threads = len(os.sched_getaffinity(0))
        task = Task(network, program, "demo", _FRAMES, _SIZE, _CLIPS, "float32", "cpu", threads)
        lines.append(row(task, measure(task, FLAGS.rounds)))
        print(lines[-1], flush=True)
    lines += ["", f"{facts['cores']} cores of {facts['processor']}; {FLAGS.rounds} rounds; {versions(facts)}."]
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), {"huge_pages": "\n".join(lines)}))


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 5, "Turns of each process.", 1)
    app.run(main)
