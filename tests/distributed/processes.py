"""Several JAX processes on this machine, connected as the hosts of one run are."""

import os
import pathlib
import socket
import subprocess
import sys


def run_processes(file: pathlib.Path, *arguments: str, count: int = 2, devices: int = 2) -> list[str]:
    """What each of `count` processes of `file` printed; each has `devices` virtual CPU devices."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "PYTHONPATH": str(file.parents[2]),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, file, *arguments], env=environment | {"JAX_PROCESS_ID": str(index)}, **pipes)
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in outputs]
