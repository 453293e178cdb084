"""Where the processes of one run wait for each other, and how they end; they share a file system.

One process alone never waits.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process is the one that writes and prints what a run writes and prints once."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, once for all processes of a run."""
    if is_first():
        print(line, flush=True)


def wait_for_all(what: str) -> None:
    """Goes on when all processes have come here.

    Args:
      what: names the place: the same on all of them, or it is an error.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def first_process_first(what: str) -> Iterator[None]:
    """The first process goes through the block alone, and what it leaves on disk the others find when their turn comes.

    An error in the first process lets the others in all the same: they meet it themselves, rather than wait for ever.
    """
    if not is_first():
        wait_for_all(what)
    try:
        yield
    finally:
        if is_first():
            wait_for_all(what)


def check_same(what: str, value: Any) -> None:
    """Raises a ValueError, on all processes, where they were started with different things.

    Args:
      what: for people.
      value: a tree of arrays, of which each number counts, and of things whose `repr` does.
    """
    mine = np.frombuffer(digest(value), np.uint32)
    if jax.process_count() > 1 and len(np.unique(multihost_utils.process_allgather(mine), axis=0)) > 1:
        raise ValueError(f"{what} must be the same for all processes: start each with the same command")


def of_first(number: int) -> int:
    """The first process's number, on all of them: what it alone sees, on a disk that may be its own."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def digest(value: Any) -> bytes:
    """SHA-256 of a tree of arrays and of things that their `repr` tells."""
    leaves, structure = jax.tree.flatten(value)
    found = hashlib.sha256(repr(structure).encode())
    for leaf in leaves:
        # The repr of a large array leaves most of it out.
        if isinstance(leaf, np.ndarray):
            found.update(f"{leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
        else:
            found.update(repr(leaf).encode())
    return found.digest()


@contextlib.contextmanager
def ended_by_errors(*expected: type[Exception]) -> Iterator[None]:
    """Around an entry point's work: an error ends all processes, and an expected one is told in a line.

    Args:
      *expected: errors whose message is for people.
    """
    if jax.process_count() > 1:
        sys.excepthook = _end_after_traceback
    try:
        yield
    except expected as error:
        _end(str(error))
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        _end(f"{str(error)[:1000]}\nWhere another process of the run has ended, its output says why")


def _end(message: str) -> None:
    if jax.process_count() == 1:
        sys.exit(f"error: {message}")
    print(f"error: {message}", file=sys.stderr)
    _end_at_once()


def _end_after_traceback(*error: Any) -> None:
    sys.__excepthook__(*error)
    _end_at_once()


def _end_at_once() -> None:
    """For one of several processes: an orderly exit would wait, up to five minutes, for others that wait for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
