"""A pod's command, which must not count as done when it was only asked to end."""

import pathlib
import signal
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch/in_pod.sh"


def start(*command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["bash", SCRIPT, *command], **pipes)


@pytest.mark.parametrize("code", [0, 1, 137])
def test_ends_as_the_command_does(code):
    pod = start("sh", "-c", f'echo "$1"; exit {code}', "sh", "a b")
    output, _ = pod.communicate(timeout=60)
    assert (pod.returncode, output) == (code, "a b\n")


@pytest.mark.parametrize(("code", "expected"), [(0, 143), (1, 1)])
def test_asked_to_end(code, expected):
    """The command gets the signal once, has its time to save, and is not counted as done."""
    script = f"trap 'echo asked; sleep 1; echo saved; exit {code}' TERM; echo ready; while true; do sleep 0.1; done"
    pod = start("sh", "-c", script)
    assert pod.stdout.readline() == "ready\n"
    pod.send_signal(signal.SIGTERM)
    output, _ = pod.communicate(timeout=60)
    assert output == "asked\nsaved\n"
    assert pod.returncode == expected


def test_without_a_command():
    pod = start()
    assert "usage: launch/in_pod.sh COMMAND" in pod.communicate(timeout=60)[1]
    assert pod.returncode == 2
