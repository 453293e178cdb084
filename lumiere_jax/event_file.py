"""TensorBoard's event file, without TensorFlow.

Written at once: tensorboardX's own `SummaryWriter` writes in a thread, which a full disk ends; from then on the
training would wait for it for ever.
"""

import os
import time

from tensorboardX import summary as summaries
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class EventFile:
    """A new event file in a run's directory; what it cannot write is an OSError here."""

    def __init__(self, directory: str | os.PathLike[str], first_step: int):
        """Opens the file.

        Args:
          directory: of the run; is made.
          first_step: TensorBoard passes over what earlier files have of this step and later ones.
        """
        os.makedirs(directory, exist_ok=True)
        self._writer = EventsWriter(os.path.join(directory, "events"))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """A point of a curve."""
        self.add_summary(summaries.scalar(name, value), step)

    def add_summary(self, summary: Summary, step: int) -> None:
        """Anything else: what the functions of `tensorboardX.summary` make."""
        self._write(Event(step=step, summary=summary))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def flush(self) -> None:
        """Makes what was added visible to TensorBoard."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes, and ends the file."""
        self._writer.close()
