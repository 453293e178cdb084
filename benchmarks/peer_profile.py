"""Where the time of a call goes: ours beside PyTorch's compiler, by kind of work.

    pip install '.[peers]'
    python -m benchmarks.peer_profile --output=DIR [--config=small --frames=16 --size=32]

Why `benchmarks/sampling.py` and `training_step.py` find what they find. One thread, on which nothing overlaps, so that
the times of a program's parts add up to the time of a call, which stands beside their sum. Parts are what each library
tells: XLA's instructions, by the compiled program's text, and PyTorch's operators, of which its compiler's own code is
one. Writes `peer_profile.json` and `.md`, and with `--write_docs` the table in docs/performance.md.
"""

import collections
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Mapping

from absl import app
from absl.flags import FLAGS

from benchmarks import peer_networks
from benchmarks.machine import machine
from benchmarks.peer_networks import IMAGE_PEER, LUMIERE, OURS, Competitor, Task

# Of a program: convolutions with their gradients; products of matrices, attention among them; copies in another order
# of axes, with whatever XLA computes while it copies; the rest: normalisations, activations, sums.
KINDS = ("convolutions", "products", "other order", "the rest")
_PEERS = {"image": IMAGE_PEER, "video": LUMIERE}
_CALLS = 10
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][a-z\-]*)\(")
_SOURCE = re.compile(r'op_name="(?:[^"]*/)?([^"/]*)"')
# PyTorch's operators by the beginning of their name; what its compiler made itself is "the rest".
_OPERATORS = {
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution", "aten::_convolution", "mkldnn::_convolution"),
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product", "mkl::"),
    "other order": ("aten::copy_", "aten::clone", "aten::contiguous"),
}


@dataclasses.dataclass(frozen=True)
class Profile:
    """Of one call: milliseconds by kind, and as measured without a profiler."""

    kinds: Mapping[str, float]
    call: float


def in_a_process(task: Task, competitor: Competitor) -> Profile:
    """The profile of a competitor, which has the process for itself."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_profile, task, competitor).result()


def _profile(task: Task, competitor: Competitor) -> Profile:
    with tempfile.TemporaryDirectory() as folder:
        if competitor.name == OURS:  # before XLA starts; a program from the cache would have no text
            dump = f"--xla_dump_to={folder}/hlo --xla_dump_hlo_as_text"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dump}".strip()
            os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        peer_networks.prepare(task, competitor)
        seconds = min(peer_networks.take_turn(task, competitor, _CALLS) for _ in range(3))
        call = peer_networks.program_of(task, competitor).call
        parts = _parts_in_jax if competitor.name == OURS else _parts_in_torch
        kinds = parts(lambda: [call() for _ in range(_CALLS)], pathlib.Path(folder))
    return Profile({kind: 1e3 * kinds[kind] / _CALLS for kind in KINDS}, 1e3 * seconds)


def _parts_in_jax(run: Callable[[], object], folder: pathlib.Path) -> Mapping[str, float]:
    import jax  # here: the other library's process does not need it

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder / "trace"), profiler_options=options):
        run()
    (traced,) = (folder / "trace").rglob("*.xplane.pb")
    seconds: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for plane in jax.profiler.ProfileData.from_file(str(traced)).planes:
        for line in plane.lines:
            for event in line.events:
                facts = dict(event.stats)
                if "hlo_op" in facts:
                    seconds[facts["hlo_module"]][facts["hlo_op"]] += event.duration_ns / 1e9
    module = max(seconds, key=lambda name: seconds[name].total())
    programs = (folder / "hlo").glob(f"*.{module}.cpu_after_optimizations.txt")
    kinds = kinds_of_instructions(max(programs, key=lambda file: file.stat().st_size).read_text())
    found: collections.Counter = collections.Counter()
    for name, of_it in seconds[module].items():
        found[kinds[name]] += of_it
    return found


def kinds_of_instructions(hlo: str) -> dict[str, str]:
    """The kind of each instruction, by its name, of a program that XLA compiled for a CPU."""
    kinds = {}
    for line in hlo.splitlines():
        if match := _INSTRUCTION.match(line):
            name, operation = match.groups()
            source = _SOURCE.search(line)
            # A 1x1 convolution is compiled as a product.
            if operation == "convolution" or (source and source[1] == "conv_general_dilated" and operation == "dot"):
                kinds[name] = "convolutions"
            elif operation == "dot" or (source and source[1] == "dot_general"):
                kinds[name] = "products"
            else:
                kinds[name] = "other order" if "transpose" in name or "copy" in name else "the rest"
    return kinds


def _parts_in_torch(run: Callable[[], object], _folder: pathlib.Path) -> Mapping[str, float]:
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    found: collections.Counter = collections.Counter()
    for event in profiler.key_averages():
        found[kind_of_operator(event.key)] += event.self_cpu_time_total / 1e6
    return found


def kind_of_operator(name: str) -> str:
    """The kind of one of PyTorch's operators."""
    return next((kind for kind, starts in _OPERATORS.items() if name.startswith(starts)), "the rest")


def row(task: Task, competitor: Competitor, found: Profile) -> str:
    """A line of the table."""
    name = f"{competitor.name}, {competitor.mode}"
    numbers = [*(found.kinds[kind] for kind in KINDS), sum(found.kinds.values()), found.call]
    return f"| {task.network} {task.program.replace('_', ' ')} | {name} | {' | '.join(f'{n:.0f}' for n in numbers)} |"


def main(_argv: list[str]) -> None:
    """Entry point."""
    if FLAGS.device != "cpu" or FLAGS.threads != 1:
        sys.exit(f"error: --device={FLAGS.device} --threads={FLAGS.threads}: parts add up on one thread of a CPU alone")
    if missing := [peer for network, peer in _PEERS.items() if not peer_networks.installed(peer, network)]:
        sys.exit(f"error: not installed: {', '.join(missing)} (pip install '.[peers]')")
    facts, output = machine(["jax", "jaxlib", "torch", "diffusers", "lumiere-pytorch"]), pathlib.Path(FLAGS.output)
    columns = ["program", "network", *KINDS, "sum", "a call"]
    lines, found = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"], []
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as weights:
        for programs in ({"image": "forward", "video": "forward"}, {"image": "gradient", "video": "training_step"}):
            for task in peer_report.tasks_of_flags(programs, weights):
                peers = [Competitor(_PEERS[task.network], mode) for mode in FLAGS.mode]
                for competitor in (Competitor(OURS), *peers):
                    of_it = in_a_process(task, competitor)
                    lines.append(row(task, competitor, of_it))
                    print(lines[-1], flush=True)
                    found.append(dataclasses.asdict(task) | dataclasses.asdict(competitor) | dataclasses.asdict(of_it))
    result = "\n".join(
        [
            *lines,
            "",
            peer_report.conditions(facts, task, f"{_CALLS} calls"),
        ]
    )
    (output / "peer_profile.json").write_text(json.dumps(facts | {"profiles": found}, indent=2) + "\n")
    (output / "peer_profile.md").write_text(result + "\n")
    if FLAGS.write_docs:
        peer_report.DOCUMENT.write_text(with_tables(peer_report.DOCUMENT.read_text(), {"peer_profile": result}))


if __name__ == "__main__":
    # Not at the top: the processes that are measured import this file, too, and shall have their own library alone.
    from benchmarks import peer_report
    from benchmarks.model_sizes import with_tables

    peer_report.define_task_flags()
    FLAGS.set_default("threads", 1)
    FLAGS.set_default("mode", ["compile"])
    app.run(main)
