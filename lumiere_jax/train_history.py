"""The measured values of a run, kept in its directory: `metrics.jsonl`, one record a line.

A record is `{"step": 20, "time": 1732200000.0, "train/loss": 0.5, ...}`: `time` in seconds since 1970, the rest by the
names that TensorBoard shows them under; a value that is not finite is null. Whenever a run stops, the file is right for
the step at which it goes on: what came after that step is cut off, as is a last line that was half written.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence

Record = dict[str, float | int]


class History:
    """Appends records to a run's `metrics.jsonl`; those that are there already are in `records`."""

    def __init__(self, directory: str | os.PathLike[str], first_step: int):
        """Opens the history of a run that goes on after `first_step` updates.

        Raises:
          ValueError: the file has a line that is not a record.
        """
        self._path = path = pathlib.Path(directory) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        self.records = [record for record in _parse(path, text) if record["step"] <= first_step]
        kept = "".join(map(_line, self.records))
        if kept != text:
            partial = path.with_name(f"{path.name}.partial")
            partial.write_text(kept)
            partial.replace(path)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a record; it is with the operating system when this returns, so that kill -9 loses nothing."""
        record = {"step": step, "time": round(time.time(), 3), **values}
        with self._path.open("a") as file:
            file.write(_line(record))
        self.records.append(record)


def curve(records: Sequence[Record], name: str) -> tuple[list[float | int], list[float | int]]:
    """Steps and values of what was measured under `name`."""
    points = [(record["step"], record[name]) for record in records if name in record]
    return [step for step, _ in points], [value for _, value in points]


def _line(record: Record) -> str:
    finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
    return json.dumps(finite) + "\n"


def _parse(path: pathlib.Path, text: str) -> list[Record]:
    *lines, _torn = text.split("\n")  # a whole line ends in a newline: after the last one there is nothing
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records.append({name: math.nan if value is None else value for name, value in record.items()})
            record["step"]
        except (json.JSONDecodeError, AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is not a record: {line[:80]!r}; delete that line") from error
    return records
