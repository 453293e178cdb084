"""One function over many items: in processes of this machine, or as an Apache Beam pipeline.

The functions put down what they have done under their own names, so that a call that is repeated costs nothing.
"""

import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Map = Callable[..., Iterator[tuple[Item, Result]]]
"""`(function, items, died=...)` -> (item, result) for each item."""


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    died: Callable[[Item], Result],
) -> Iterator[tuple[Item, Result]]:
    """Calls a function for each item, on several processes side by side.

    An exception ends the iteration; calls that run then are still finished.

    Args:
        function: can be pickled, and so can its results.
        items: what it is called with.
        workers: processes. 0: no process of its own, so that a crash of the decoder ends this one.
        died: gives the result of an item whose process ended without one, twice: a crash, or out of memory.

    Returns:
        (item, result) in the order in which they are ready.
    """
    if not workers:
        for item in items:
            yield item, function(item)
        return
    own = _OwnProcess(function, died)
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        # Each thread has one process, so that it is known which item ended it.
        running: dict[concurrent.futures.Future, Item] = {}
        waiting = iter(items)
        try:
            while True:
                for item in itertools.islice(waiting, 2 * workers - len(running)):
                    running[threads.submit(own.call, item)] = item
                if not running:
                    return
                for future in concurrent.futures.wait(running, return_when="FIRST_COMPLETED").done:
                    yield running.pop(future), future.result()
        finally:
            own.stop()
            threads.shutdown(cancel_futures=True)


class _OwnProcess:
    """Calls a function in a process of the calling thread's own."""

    def __init__(self, function: Callable[[Item], Result], died: Callable[[Item], Result]):
        self._function, self._died = function, died
        self._local = threading.local()
        self._executors: list[concurrent.futures.ProcessPoolExecutor] = []
        self._stopping = False
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([function.__class__.__module__])

    def call(self, item: Item) -> Result:
        for _ in range(2):
            try:
                return self._executor().submit(self._function, item).result()
            except BrokenProcessPool:
                self._local.executor = None
                if self._stopping:
                    raise
        return self._died(item)

    def stop(self) -> None:
        self._stopping = True
        for executor in self._executors:
            executor.shutdown(wait=False, cancel_futures=True)

    def _executor(self) -> concurrent.futures.ProcessPoolExecutor:
        if getattr(self._local, "executor", None) is None:
            self._local.executor = concurrent.futures.ProcessPoolExecutor(
                1, mp_context=self._context, initializer=_set_up_process
            )
            self._executors.append(self._local.executor)
        return self._local.executor


def _set_up_process() -> None:
    """Ends this process when its parent is killed, which would leave it waiting for ever; and not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the parent too, which waits for what runs

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def map_with_beam(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    options: Sequence[str],
    died: Callable[[Item], Result] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Calls a function for each item as an Apache Beam pipeline.

    Args:
        function: can be pickled; puts its result down itself, on storage that all workers and this machine see, and
            returns it when called again.
        items: what it is called with.
        options: of the pipeline, as on Beam's command line, e.g. `["--runner=DirectRunner"]`.
        died: not used: Beam's runners try again, and fail the pipeline, themselves.

    Returns:
        (item, result), when the pipeline has ended.

    Raises:
        ImportError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ImportError("Apache Beam is not installed: pip install 'lumiere-jax[beam]'") from error
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        # Reshuffled, as a runner may otherwise keep all items on the worker that made the list.
        _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(function)
    for item in items:
        yield item, function(item)
