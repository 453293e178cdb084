"""Ending a run when it is asked to: a cloud's notice that it takes a machine back, a scheduler's time limit, Ctrl-C.

All of them send SIGTERM (Ctrl-C: SIGINT), to one host of many at times. The run then saves at the end of its step, on
all hosts at the same step, and ends well; the same command continues it.
"""

import itertools
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

# JAX's service agrees on a number that all processes reach: it must grow, also from one stage of a run to the next.
_calls = itertools.count()


class Preempted(Exception):
    """The run was asked to end: its state is saved, and the same command continues it."""


class PreemptionNotice:
    """A context in which a request to end is noted rather than obeyed at once.

    In a run of one process the first SIGTERM or SIGINT is noted, a second one acts as it would otherwise. In a run of
    several processes JAX's preemption service does it, for SIGTERM to any of them. Outside of the main thread no
    signal can be caught: a run there (in a notebook's widget, say) ends as the signal says.
    """

    def __init__(self):
        self._asked = False
        self._before: dict[signal.Signals, object] = {}

    def reached(self) -> bool:
        """Whether to save and end now; in a run of several processes all of them call it after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_calls))
        return self._asked

    def __enter__(self) -> "PreemptionNotice":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
