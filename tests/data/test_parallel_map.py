import os
import signal
import subprocess
import sys
import time

import pytest

from lumiere_jax.data.parallel_map import map_in_processes, map_with_beam


class Square:
    """Squares; some numbers end the process, as a decoder does that crashes."""

    def __call__(self, number):
        if number == 3:
            os.abort()
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)  # out of memory
        if number == 7:
            raise OSError(28, "No space left on device")
        return number**2, os.getpid()


def died(number):
    return "died", None


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_item_has_its_result(workers):
    items = [number for number in range(20) if number not in (3, 5, 7)]
    results = dict(map_in_processes(Square(), items, workers, died))
    assert {item: square for item, (square, _) in results.items()} == {item: item**2 for item in items}
    processes = {process for _, process in results.values()}
    assert processes == {os.getpid()} if not workers else os.getpid() not in processes
    assert len(processes) <= max(workers, 1)


def test_a_process_that_dies_costs_its_own_item_alone():
    results = dict(map_in_processes(Square(), range(7), 2, died))
    assert {item: result for item, (result, _) in results.items()} == {
        0: 0,
        1: 1,
        2: 4,
        3: "died",
        4: 16,
        5: "died",
        6: 36,
    }


class DiesOnce:
    """Dies the first time, as under a memory that another program had filled."""

    def __init__(self, file):
        self._file = file

    def __call__(self, number):
        if not self._file.exists():
            self._file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_a_process_that_dies_once_is_started_again(tmp_path):
    assert list(map_in_processes(DiesOnce(tmp_path / "died"), [4], 1, died)) == [(4, 4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_ends_it(workers):
    with pytest.raises(OSError, match="No space left"):
        list(map_in_processes(Square(), range(7, 100), workers, died))


class Recorded:
    """Takes its time, and writes what it did to a file."""

    def __init__(self, file):
        self._file = file

    def __call__(self, number):
        with open(self._file, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(60)


def test_processes_end_when_their_parent_is_killed(tmp_path):
    log = tmp_path / "pids"
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from test_parallel_map import Recorded, died\n"
        "from lumiere_jax.data.parallel_map import map_in_processes\n"
        f"list(map_in_processes(Recorded({str(log)!r}), range(2), 2, died))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    while not log.exists() or len(log.read_text().split()) < 2:
        time.sleep(0.05)
    children = [int(pid) for pid in log.read_text().split()]
    parent.kill()
    parent.wait()
    for _ in range(600):
        if not any(is_running(pid) for pid in children):
            return
        time.sleep(0.05)
    pytest.fail("the processes go on without their parent")


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or before it was read
        return False


def test_beam_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match=r"pip install 'lumiere-jax\[beam\]'"):
        list(map_with_beam(Square(), [1], ["--runner=DirectRunner"]))
