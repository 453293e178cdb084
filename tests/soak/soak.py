"""Half an hour of bad luck: a training that is disturbed at random must end as an undisturbed one, bit by bit.

    python tests/soak/soak.py --minutes=30 --seed=0 --workdir=DIR

Not part of `make test`. Trains both stages of `configs/stunet.py:test` on two virtual CPU devices, of one process or of
two; every start is drawn one disturbance: kill -9 of all processes or of one of two, SIGTERM to one, a disk that fills
up, a newest checkpoint that is gone, or none. When a run has reached its end, its whole training state (parameters,
averages, optimiser, guards) is compared with the undisturbed one's, and the next run begins. Writes DIR/soak.json; exit
code 1 if anything was not as it should be. The full disk needs the right to mount a tmpfs: without it it is left out.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

sys.path[:0] = [str(pathlib.Path(__file__).parent.parent), str(pathlib.Path(__file__).parent.parent.parent)]

from small_runs import state_of  # noqa: E402
from training_processes import Training, TrainingServer, training_server  # noqa: E402

from lumiere_jax.checkpoints.checkpointing import tree_hash  # noqa: E402
from lumiere_jax.checkpoints.run_directory import RunDirectory  # noqa: E402

STEPS, CHECKPOINT_EVERY = 12, 2  # of each stage
DISK = 64 << 20  # bytes
PROGRESS = "step/s"  # what only the progress bar prints, once training has begun
# A process whose partner is gone must have ended after this many seconds; JAX's own limit is 100.
PATIENCE = 600.0
DISTURBANCES = ("kill", "kill one of two", "SIGTERM", "full disk", "newest checkpoint deleted", "none")


@dataclasses.dataclass
class Start:
    """What became of one start of the command."""

    run: int
    disturbance: str
    processes: int
    seconds_until: float  # the disturbance
    before: tuple[int, int] = (0, 0)  # newest complete step of the image model and of the video model
    after: tuple[int, int] = (0, 0)
    exit_codes: tuple[int, ...] = ()
    seconds: float = 0.0
    faults: list[str] = dataclasses.field(default_factory=list)


def command_line(workdir: pathlib.Path, data_dir: pathlib.Path) -> list[str]:
    """The training command's arguments."""
    fields = {"dataset.data_dir": data_dir}
    for training in ("training", "image_model.training"):
        fields |= {f"{training}.steps": STEPS, f"{training}.checkpoint_every": CHECKPOINT_EVERY}
        fields |= {f"{training}.preview_every": 0, f"{training}.validate_every": 0}
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config=configs/stunet.py:test", f"--workdir={workdir}", *options]


def newest_steps(workdir: pathlib.Path) -> tuple[int, int]:
    """The newest complete step of the image model and of the video model."""
    directories = RunDirectory(workdir / "image_model"), RunDirectory(workdir)
    image, video = (directory.checkpoints().latest_step() or 0 for directory in directories)
    return image, video


def start(server: TrainingServer, processes: int, arguments: list[str]) -> list[Training]:
    """Starts the command in one process of two devices, or in two of one."""
    return server.start_several(2, *arguments) if processes == 2 else [server.start(*arguments, devices=2)]


def wait(trainings: list[Training], seconds: float) -> bool:
    """Waits so long; whether all have ended by then."""
    deadline = time.monotonic() + seconds
    while any(training.poll() is None for training in trainings):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def disturb(entry: Start, trainings: list[Training], disk: pathlib.Path, draw: random.Random) -> None:
    """Does to the running processes what was drawn."""
    match entry.disturbance:
        case "kill" | "newest checkpoint deleted":
            for training in trainings:
                training.send(signal.SIGKILL)
        case "kill one of two":
            draw.choice(trainings).send(signal.SIGKILL)
        case "SIGTERM":
            draw.choice(trainings).send(signal.SIGTERM)
        case "full disk":
            fill(disk, draw.randrange(400_000))


def fill(disk: pathlib.Path, leave: int) -> None:
    """Fills a file system up to `leave` bytes."""
    with (disk / "filler").open("wb") as filler, contextlib.suppress(OSError):  # the training may be quicker
        filler.write(bytes(max(0, shutil.disk_usage(disk).free - leave)))


def judge(entry: Start, trainings: list[Training], has_ended: bool, is_early: bool) -> None:
    """Collects in `entry.faults` what was not as it should be."""
    printed = "".join(training.printed() for training in trainings)
    codes = set(entry.exit_codes)
    if not has_ended:
        entry.faults.append(f"still running {PATIENCE:.0f} s after the disturbance")
    if entry.after < entry.before:
        entry.faults.append("a complete checkpoint was lost")
    image, video = entry.before
    newest = video or image % STEPS  # an image model that is done is not gone back to
    is_in_loop = PROGRESS in trainings[0].printed()
    if newest and is_in_loop and f"continuing from step {newest}" not in printed:
        entry.faults.append("did not continue from the newest complete step")
    match entry.disturbance:
        case "none" if codes != {0}:
            entry.faults.append("ended badly without a disturbance")
        # A process that has not got as far as its notice ends as any does.
        case "SIGTERM" if codes != {0} and not is_early:
            entry.faults.append("SIGTERM was no orderly end")
        case "full disk" if codes != {0} and "no space is left" not in printed:
            entry.faults.append("a full disk without a clear message")


def one_start(
    server: TrainingServer, entry: Start, arguments: list[str], workdir: pathlib.Path, draw: random.Random
) -> None:
    """One start of the command, with its disturbance; fills `entry`."""
    if entry.disturbance == "newest checkpoint deleted":
        directory = workdir if newest_steps(workdir)[1] else workdir / "image_model"
        steps = sorted((p for p in directory.glob("checkpoints/*") if p.name.isdecimal()), key=lambda p: int(p.name))
        if len(steps) > 1:
            shutil.rmtree(steps[-1])
        else:
            entry.disturbance = "kill"
    entry.before, began = newest_steps(workdir), time.monotonic()
    trainings = start(server, entry.processes, arguments)
    is_early = False
    if entry.disturbance != "none" and not wait(trainings, entry.seconds_until):
        is_early = PROGRESS not in trainings[0].printed()
        disturb(entry, trainings, workdir.parent, draw)
    has_ended = wait(trainings, PATIENCE)
    for training in trainings:
        training.send(signal.SIGKILL)
        training.wait()
    (workdir.parent / "filler").unlink(missing_ok=True)
    entry.exit_codes = tuple(training.exit_code for training in trainings)
    entry.after, entry.seconds = newest_steps(workdir), round(time.monotonic() - began, 1)
    judge(entry, trainings, has_ended, is_early)
    for fault in entry.faults:
        print(f"FAULT: {fault}\n" + "\n".join(training.printed() for training in trainings), flush=True)


@contextlib.contextmanager
def small_disk(path: pathlib.Path) -> Iterator[bool]:
    """Mounts a small file system; whether that was allowed."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def undisturbed(server: TrainingServer, directory: pathlib.Path, draw: random.Random) -> tuple[str, float]:
    """The hash of the state in which every run must end, in one process and in two; seconds of a run in one."""
    whole = directory / "whole"
    for processes, workdir in ((1, whole), (2, directory / "whole_of_two"), (1, directory / "again")):
        entry = Start(0, "none", processes, 0.0)
        one_start(server, entry, command_line(workdir, directory / "data"), workdir, draw)
        print(describe(entry), flush=True)
        assert tree_hash(state_of(workdir)) == tree_hash(state_of(whole)), f"{processes} processes differ"
    return tree_hash(state_of(whole)), entry.seconds  # the last one compiles nothing


def soak(minutes: float, seed: int, directory: pathlib.Path) -> bool:
    """Trains under disturbances for so long; whether all was as it should be."""
    directory.mkdir(parents=True)
    draw, log, entries, runs = random.Random(seed), directory / "soak.json", [], []
    (directory / "logs").mkdir()
    with (
        small_disk(directory / "disk") as is_mounted,
        training_server(
            os.environ.get("JAX_COMPILATION_CACHE_DIR", directory / "compiled"), directory / "logs"
        ) as server,
    ):
        disturbances = [name for name in DISTURBANCES if is_mounted or name != "full disk"]
        expected, duration = undisturbed(server, directory, draw)
        end = time.monotonic() + 60 * minutes
        while True:
            is_over = time.monotonic() > end
            processes = draw.choice((1, 2))
            disturbance = "none" if is_over else draw.choice(disturbances)
            if disturbance == "kill one of two":
                processes = 2
            workdir = directory / "disk" / f"run_{len(runs)}"
            entry = Start(len(runs), disturbance, processes, round(draw.uniform(0, duration), 2))
            one_start(server, entry, command_line(workdir, directory / "data"), workdir, draw)
            entries.append(entry)
            print(f"{max(0.0, end - time.monotonic()) / 60:5.1f} min left: {describe(entry)}", flush=True)
            if entry.after == (STEPS, STEPS):
                runs.append(tree_hash(state_of(workdir)) == expected)
                print(f"run {len(runs)} is at its end: {'same' if runs[-1] else 'OTHER'} state", flush=True)
                shutil.rmtree(workdir)
            summary = summarise(entries, runs)
            log.write_text(
                json.dumps({"seed": seed, "summary": summary, "starts": [dataclasses.asdict(e) for e in entries]})
            )
            if is_over and (entry.after == (STEPS, STEPS) or entry.faults):
                break
    print(json.dumps(summary, indent=2))
    return summary["faults"] == 0 and summary["runs with another state"] == 0


def describe(entry: Start) -> str:
    """One line about a start."""
    return (
        f"{entry.disturbance} after {entry.seconds_until:.1f} s, {entry.processes} process(es): "
        f"{entry.before} -> {entry.after}, exit {entry.exit_codes}, {entry.seconds:.0f} s"
    )


def summarise(entries: list[Start], runs: list[bool]) -> dict:
    """Counts of what happened."""
    return {
        "starts": len(entries),
        "of two processes": sum(entry.processes == 2 for entry in entries),
        "disturbances": dict(collections.Counter(entry.disturbance for entry in entries)),
        "runs to their end": len(runs),
        "runs with another state": runs.count(False),
        "faults": sum(len(entry.faults) for entry in entries),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="must not exist yet")
    options = parser.parse_args()
    sys.exit(not soak(options.minutes, options.seed, options.workdir.absolute()))
