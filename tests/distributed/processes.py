"""Several JAX processes on this machine, connected as the hosts of one run are."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile


def answer(line: str) -> None:
    """One line of what `run_processes` returns.

    Not by standard output: Gloo's threads print there, too, also in the middle of another's line.
    """
    with open(os.environ["ANSWERS"], "a") as file:
        print(line, file=file)


def run_processes(file: pathlib.Path, *arguments: str, count: int = 2, devices: int = 2) -> list[list[str]]:
    """The lines that each of `count` processes of `file` gave to `answer`; each has `devices` virtual CPU devices."""
    with tempfile.TemporaryDirectory() as directory:
        answers = [pathlib.Path(directory, f"{index}.txt") for index in range(count)]
        _run(file, *arguments, answers=answers, devices=devices)
        return [path.read_text().splitlines() for path in answers]


def _run(file: pathlib.Path, *arguments: str, answers: list[pathlib.Path], devices: int) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(len(answers)),
        "PYTHONPATH": str(file.parents[2]),
    }
    own = [{"JAX_PROCESS_ID": str(index), "ANSWERS": str(path)} for index, path in enumerate(answers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, file, *arguments], env=environment | one, **pipes) for one in own]
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, errors
