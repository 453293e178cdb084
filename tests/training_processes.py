"""Trainings (and samplings) in processes of their own, which can be signalled and killed.

What `python -m lumiere_jax.train` does takes seconds of imports first. A server makes them once and forks for every
start, before JAX has any device or thread: each start is a process as the command's is, and ends as it does.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

from lumiere_jax.checkpoints.run_directory import RunDirectory

ROOT = pathlib.Path(__file__).parent.parent


def command_line(workdir: str | os.PathLike[str], data_dir: str | os.PathLike[str], **training: object) -> list[str]:
    """Arguments that train the smallest image model, with some fields of `training` changed.

    The compiled program is the same for all: its learning rate does not depend on where the run ends.
    """
    fields = {"preview_every": 0, "validate_every": 0, "schedule": "constant", "ema_decays": "(0.9,0.5)"} | training
    options = [f"--config.training.{name}={value}" for name, value in fields.items()]
    config = "--config=configs/text_to_image.py:test"
    return [config, f"--workdir={workdir}", f"--config.dataset.data_dir={data_dir}", *options]


@dataclasses.dataclass
class Training:
    """One start of the training command."""

    server: subprocess.Popen
    pid: int
    log: pathlib.Path
    exit_code: int | None = None  # negative: ended by that signal

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.exit_code is None:
            self.exit_code = _ask(self.server, {"poll": self.pid})
        return self.exit_code

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 900.0) -> int:
        """Its exit code; kills it and raises a TimeoutError if it takes longer."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"still running after {timeout} s:\n{self.printed()}")
            time.sleep(0.02)
        return self.exit_code

    def printed(self) -> str:
        """All that it wrote to standard output and error so far."""
        return self.log.read_text(errors="replace")

    def wait_for_step(self, workdir: str | os.PathLike[str], step: int, timeout: float = 900.0) -> None:
        """Returns when the run in `workdir` has a complete checkpoint of this step or a later one."""
        checkpoints, deadline = RunDirectory(workdir).checkpoints(), time.monotonic() + timeout
        while (checkpoints.latest_step() or 0) < step:
            assert self.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.1)


class TrainingServer:
    """A process with the imports done."""

    def __init__(self, compilation_cache: str | os.PathLike[str], logs: pathlib.Path):
        self._logs, self._started = logs, 0
        environment = os.environ | {  # all that it needs: soak/soak.py has no conftest.py
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
            "PYTHONUNBUFFERED": "1",
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, **pipes)

    def start(
        self,
        *arguments: object,
        devices: int = 1,
        environment: Mapping[str, str] | None = None,
        module: str = "train",
    ) -> Training:
        """Starts the training command, or `sample`, with `arguments` on so many virtual CPU devices."""
        self._started += 1
        log = self._logs / f"start_{self._started:03d}.log"
        log.touch()
        flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"}
        request = {
            "start": [*map(str, arguments)],
            "module": f"lumiere_jax.{module}",
            "log": str(log),
            "environment": flags | dict(environment or {}),
        }
        return Training(self._server, _ask(self._server, request), log)

    def start_several(
        self, count: int, *arguments: object, more: Mapping[int, str] | None = None, module: str = "train"
    ) -> list[Training]:
        """Starts one run of `count` processes with one device each; some get one more argument, by their number."""
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        together = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
        return [
            self.start(
                *arguments,
                *((more[index],) if more and index in more else ()),
                environment=together | {"JAX_PROCESS_ID": str(index)},
                module=module,
            )
            for index in range(count)
        ]

    def close(self) -> None:
        """Ends the server; what still runs of its trainings is killed."""
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@contextlib.contextmanager
def training_server(compilation_cache: str | os.PathLike[str], logs: pathlib.Path) -> Iterator[TrainingServer]:
    """A server as long as the context lasts."""
    server = TrainingServer(compilation_cache, logs)
    try:
        yield server
    finally:
        server.close()


def _ask(server: subprocess.Popen, request: dict) -> int | None:
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve() -> dict | None:
    """Answers requests from standard input; returns in every process that is to become a training."""
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return request
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return None


if __name__ == "__main__":
    import lumiere_jax.sample
    import lumiere_jax.train  # noqa: F401

    if request := _serve():
        os.environ.update(request["environment"])
        with open(request["log"], "wb") as log, open(os.devnull) as nothing:
            for standard, file in ((0, nothing), (1, log), (2, log)):
                os.dup2(file.fileno(), standard)
        sys.argv = [request["module"], *request["start"]]
        del sys.modules[request["module"]]  # it is run as the command now
        runpy.run_module(request["module"], run_name="__main__")
