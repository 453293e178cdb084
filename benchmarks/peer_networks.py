"""This project's networks beside their peers in PyTorch: who competes, in processes of their own, turn by turn.

Nothing here imports JAX or PyTorch: the processes that are measured import this file, and each only its own library.
`networks_in_jax.py` and `networks_in_torch.py` build what is measured; `peer_report.py` says what came out.

Of a network and a program ours stays in one process while its peers come one after the other into another, so that two
processes at most have memory. They take turns: ours, the peer, ours, the peer; who does not compute waits. Compilation
and the first calls are not measured.
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import gc
import importlib
import importlib.util
import math
import multiprocessing
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Literal

import ml_collections
import numpy as np

from configs import stunet

OURS = "lumiere_jax"
IMAGE_PEER = "diffusers UNet2DConditionModel"
LUMIERE, MOTION, UNET_3D = "lumiere-pytorch", "diffusers UNetMotionModel", "diffusers UNet3DConditionModel"
# Who competes, and what must be installed for it.
PEERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "image": {IMAGE_PEER: ("torch", "diffusers")},
    "video": {
        LUMIERE: ("torch", "diffusers", "lumiere_pytorch"),
        MOTION: ("torch", "diffusers"),
        UNET_3D: ("torch", "diffusers"),
    },
}
# How PyTorch runs a network. "channels last" is its memory format, often the faster one.
MODES = ("eager", "eager, channels last", "compile", "compile, channels last")
# Largest difference between two networks that compute the same, over the root mean square. Found in float32: 3e-6, the
# output of the demo's U-Net; the bound for bfloat16 has not been tried.
ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2}
_WARM_UP = 2  # calls, of which the first compiles
_MOST_CALLS = 100  # in one turn
_STATUS, _CLEAR_REFS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


class CannotRun(Exception):
    """A peer does not run a case; the message says why."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What all competitors do."""

    network: Literal["image", "video"]
    # forward: one evaluation. gradient: forward and backward, of all parameters. training_step: of the temporal
    # parameters alone, with noise, loss, clipping, AdamW and a moving average.
    program: Literal["forward", "gradient", "training_step"]
    config: str  # variant of configs/stunet.py
    frames: int  # of a clip; the image network gets as many pictures
    size: int  # pixels
    clips: int
    dtype: str  # of the computation
    device: Literal["cpu", "gpu"]
    threads: int
    weights: str = ""  # directory of the image network in diffusers' format; "": each its own, where no peer is there

    def get_config(self) -> ml_collections.ConfigDict:
        """The config of our model, with this task's clip, and an optimiser that both libraries have."""
        config = stunet.get_config(self.config)
        config.clip.update({"frames": self.frames, "size": self.size})
        config.compute_dtype = self.dtype
        config.training.update({"batch_size": self.clips, "optimizer": "adamw"})
        if self.device == "cpu":  # no peer computes anything again, and here all fits without
            config.remat.update({"block": "none", "attention": "whole", "inflation": "layers"})
        return config

    def inputs(self) -> dict[str, np.ndarray]:
        """The same for all: `video` [batch, frames, height, width, channels], `time` [batch], `text`, `target`."""
        config, rng = self.get_config(), np.random.default_rng(0)
        unet = config.image_model.unet
        batch, frames = (self.frames, 1) if self.network == "image" else (self.clips, self.frames)
        shape = (batch, frames, self.size, self.size)
        return {
            "video": rng.standard_normal((*shape, 3), np.float32),
            "time": rng.uniform(0, 1000, batch).astype(np.float32),
            "text": 0.1 * rng.standard_normal((batch, config.text.length, unet.text_dim), np.float32),
            "target": rng.standard_normal((*shape, unet.get("out_channels", 3)), np.float32),
        }


@dataclasses.dataclass(frozen=True)
class Competitor:
    """A network in one library, run in one way."""

    name: str
    mode: str = "jit"

    @property
    def module(self) -> str:
        """What builds it."""
        return "benchmarks.networks_in_jax" if self.name == OURS else "benchmarks.networks_in_torch"


@dataclasses.dataclass(frozen=True)
class Program:
    """A network that is ready to be measured, in its process."""

    call: Callable[[], None]  # once, to the end of the computation
    results: Callable[[], dict[str, np.ndarray]]  # what it computes: compared where two networks are the same
    parameters: int
    trained: int
    forward_flops: float
    device_peak: Callable[[], int] | None = None  # bytes on the accelerator


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a process says of its program when it is warm."""

    results: dict[str, np.ndarray]
    parameters: int
    trained: int
    forward_flops: float
    seconds: float  # of a call, roughly
    idle_memory: int | None  # bytes, before the network was built: the libraries


@dataclasses.dataclass(frozen=True)
class Row:
    """A competitor's measurements; of ours those of its rounds against all peers."""

    network: str
    program: str
    name: str
    mode: str
    seconds: tuple[float, ...] = ()  # of a call, one for each round
    ours: tuple[float, ...] = ()  # ... and ours just before
    memory: int | None = None  # bytes, the peak after the warm-up
    idle_memory: int | None = None
    parameters: int = 0
    trained: int = 0
    forward_flops: float = 0.0
    reason: str = ""  # why it was not measured

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times as fast ours is, for each round."""
        return tuple(theirs / ours for theirs, ours in zip(self.seconds, self.ours, strict=True)) if self.ours else ()


def installed(name: str, network: str) -> bool:
    """Whether a peer can be measured here."""
    return all(importlib.util.find_spec(module) is not None for module in PEERS[network][name])


# ---------------------------------------------------------------------------------------------- who is measured


def check_threads(threads: int) -> None:
    """Raises a ValueError where both libraries cannot be given so many threads."""
    available = len(_processors())
    if threads > available:
        raise ValueError(f"threads={threads}, but there are {available} processors to use: give no more than that")
    if threads < available and not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"threads={threads}: this system cannot limit XLA's threads, use threads={available}")


def _processors() -> list[int]:
    """The numbers of the processors that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count()))


def _set_up(threads: int, device: str) -> None:
    """The same processors for both libraries: XLA takes as many threads as it may use, PyTorch is told so."""
    check_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, _processors()[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu" if device == "cpu" else "cuda,cpu"  # the CPU counts FLOPs
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the peer is on the same accelerator


@functools.cache
def program_of(task: Task, competitor: Competitor) -> Program:
    """The competitor, built in this process the first time that it is asked for."""
    return importlib.import_module(competitor.module).build(task, competitor)


def prepare(task: Task, competitor: Competitor) -> Prepared:
    """Builds, compiles and warms up.

    Raises:
      CannotRun: a peer does not do it.
      ValueError: `task.threads` cannot be had.
    """
    _set_up(task.threads, task.device)
    try:
        module = importlib.import_module(competitor.module)
        module.start(task)
        idle = memory("VmRSS")
        program = program_of(task, competitor)
        for _ in range(_WARM_UP):
            start = time.perf_counter()
            program.call()
        seconds = time.perf_counter() - start
        results = program.results()
    except Exception as error:
        if competitor.name == OURS:
            raise
        # Whatever a peer raises is its own affair, and may not even pass from one process to another.
        raise CannotRun(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
    _forget_peak()
    return Prepared(results, program.parameters, program.trained, program.forward_flops, seconds, idle)


def take_turn(task: Task, competitor: Competitor, calls: int) -> float:
    """Seconds of a call, over so many calls."""
    program = program_of(task, competitor)
    start = time.perf_counter()
    for _ in range(calls):
        program.call()
    return (time.perf_counter() - start) / calls


def peak_memory(task: Task, competitor: Competitor) -> int | None:
    """Bytes at the peak since the warm-up: on the accelerator, or the resident memory of this process.

    None where the system does not tell. `ru_maxrss` is no such number: a process inherits its parent's.
    """
    program = program_of(task, competitor)
    return program.device_peak() if program.device_peak else memory("VmHWM")


def memory(field: str) -> int | None:
    """A field of /proc/self/status in bytes: VmRSS (now) or VmHWM (peak)."""
    if not _STATUS.is_file():
        return None
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _forget_peak() -> None:
    """What compilation took is given back, and no longer counts."""
    gc.collect()
    if _CLEAR_REFS.exists():
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR_REFS.write_text("5")


# ---------------------------------------------------------------------------------------------- who measures


class _Process:
    """A competitor in its own process."""

    def __init__(self, task: Task, competitor: Competitor, executor: concurrent.futures.Executor):
        self._arguments, self._executor = (task, competitor), executor
        self.prepared: Prepared = self.run(prepare)

    def run(self, function: Callable, *arguments: object):
        return self._executor.submit(function, *self._arguments, *arguments).result()

    def turn(self, seconds: float) -> float:
        """Seconds of a call, over about so many seconds."""
        calls = math.ceil(seconds / self.prepared.seconds)
        return self.run(take_turn, max(1, min(_MOST_CALLS, calls)))


@contextlib.contextmanager
def _started(task: Task, competitor: Competitor) -> Iterator[_Process]:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield _Process(task, competitor, executor)


def measure(
    task: Task, modes: Sequence[str], *, rounds: int, seconds: float, say: Callable[[str], None] = print
) -> list[Row]:
    """Ours, then every peer in every mode; one that is missing or does not run has a row with the reason.

    Args:
      task: what is done.
      modes: of `MODES`.
      rounds: in which ours and the peer take one turn each.
      seconds: of a turn.
      say: is told how it goes.

    Raises:
      ValueError: a peer that should compute the same as ours does not; a number of threads that cannot be had.
    """
    rows, of_ours = [], []
    with _started(task, Competitor(OURS)) as ours:
        of_ours += [ours.turn(seconds) for _ in range(rounds)]
        for name in PEERS[task.network]:
            if not installed(name, task.network):
                rows.append(Row(task.network, task.program, name, "", reason="not installed"))
                continue
            for mode in modes:
                row = _beside(ours, task, Competitor(name, mode), rounds, seconds)
                of_ours += row.ours
                rows.append(row)
                say(f"  {task.network} {task.program}, {name}, {mode}: {in_short(row)}")
        peak = ours.run(peak_memory)
        first = _row(task, Competitor(OURS), ours.prepared, memory=peak, seconds=tuple(of_ours))
    return [first, *rows]


def _beside(ours: _Process, task: Task, peer: Competitor, rounds: int, seconds: float) -> Row:
    try:
        with _started(task, peer) as theirs:
            if task.network == "image":
                check_same(peer, ours.prepared.results, theirs.prepared.results, ROUNDING[task.dtype])
            turns = [(ours.turn(seconds), theirs.turn(seconds)) for _ in range(rounds)]
            of_ours, of_theirs = zip(*turns, strict=True)
            peak = theirs.run(peak_memory)
            return _row(task, peer, theirs.prepared, memory=peak, seconds=of_theirs, ours=of_ours)
    except CannotRun as error:
        return Row(task.network, task.program, peer.name, peer.mode, reason=str(error))
    except BrokenProcessPool:
        reason = "its process was ended, perhaps for want of memory"
        return Row(task.network, task.program, peer.name, peer.mode, reason=reason)


def _row(task: Task, competitor: Competitor, prepared: Prepared, **measured: object) -> Row:
    facts = {field: getattr(prepared, field) for field in ("idle_memory", "parameters", "trained", "forward_flops")}
    return Row(task.network, task.program, competitor.name, competitor.mode, **facts, **measured)


def in_short(row: Row) -> str:
    """One line about a peer."""
    if row.reason:
        return row.reason
    return f"{1e3 * statistics.median(row.seconds):.1f} ms, ours is {statistics.median(row.ratios):.2f} x as fast"


def check_same(
    peer: Competitor, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], tolerance: float
) -> None:
    """Raises a ValueError where a peer that has our weights does not compute what ours does.

    Args:
      peer: for the message.
      ours, theirs: by name: the output, and of a gradient the loss and the gradient's norm.
      tolerance: of the largest difference, over the root mean square of ours.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"{peer.name} ({peer.mode}) gives {sorted(theirs)}, {OURS} gives {sorted(ours)}")
    for name, expected in ours.items():
        if expected.shape != theirs[name].shape:
            raise ValueError(f"{peer.name} ({peer.mode}): {name} is {theirs[name].shape}, of ours {expected.shape}")
        difference = np.abs(theirs[name] - expected).max() / np.sqrt(np.square(expected).mean())
        if not difference <= tolerance:
            raise ValueError(
                f"{peer.name} ({peer.mode}) does not compute what {OURS} does: {name} differs by {difference:.1e} of "
                f"its root mean square, rounding is {tolerance:.0e}. No measurement of it means anything"
            )
