"""Where the processes of one run wait for each other; they share a file system. One process alone never waits."""

import contextlib
from collections.abc import Iterator

import jax
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
