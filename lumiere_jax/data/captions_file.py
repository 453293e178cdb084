"""Captions of videos: from one file for all, from the text beside each, or one default.

Nothing here stops at a bad caption: what cannot be used is said, by file or by row.
"""

import csv
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass
class Captions:
    """Captions by file, as they were found.

    Attributes:
        by_file: the caption of each file that a captions file names; may be bad, see `caption_problem`.
        problems: rows that could not be used, with their reason.
    """

    by_file: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)


def read_captions(path: str | os.PathLike) -> Captions:
    """Reads a CSV (columns file, caption) or JSONL (keys file, caption) file.

    Bytes that are not UTF-8 are kept as surrogates, as in file names of Python, so that one bad row costs that row.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or no row in it that can be used.
    """
    path = pathlib.Path(path)
    rows = {".csv": _csv_rows, ".jsonl": _jsonl_rows}.get(path.suffix.lower())
    if rows is None:
        raise ValueError(f"captions: {path} must be a .csv or .jsonl file")
    captions = Captions()
    first_row: dict[str, int] = {}
    for number, row in rows(path):
        problem = _row_problem(row)
        file = "" if problem else pathlib.PurePath(row["file"]).as_posix()
        if not problem and file in first_row:
            problem = f"names {file} again, row {first_row[file]} counts"
        if problem:
            captions.problems.append(f"row {number} of {path.name} {problem}")
            continue
        first_row[file] = number
        captions.by_file[file] = row["caption"].strip()
    if not captions.by_file:
        first = captions.problems[0] if captions.problems else f"{path.name} is empty"
        raise ValueError(f"captions: {path} has no row with file and caption: {first}")
    return captions


def _csv_rows(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file)
        for number in itertools.count(1):
            try:
                yield number, next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, f"is no CSV: {error}"


def _jsonl_rows(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate((line for line in file if line.strip()), start=1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, f"is no JSON: {error}"


def _row_problem(row: Any) -> str | None:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict) or not isinstance(row.get("file"), str) or not row["file"]:
        return f"needs file and caption, has {shown(str(row))}"
    return None if isinstance(row.get("caption"), str) else f"needs file and caption, has {shown(str(row))}"


def caption_beside(video: str | os.PathLike) -> str:
    """The text of the `.txt` file beside a video, `""` where there is none; bad bytes as in `read_captions`.

    Raises:
        OSError: it is there and cannot be read.
    """
    text = pathlib.Path(video).with_suffix(".txt")
    return text.read_text(encoding="utf-8-sig", errors="surrogateescape").strip() if text.is_file() else ""


def caption_problem(caption: str, max_length: int) -> str | None:
    """Why a caption cannot be used, or None.

    Args:
        caption: any text, `""` for none.
        max_length: characters.
    """
    if not caption:
        return "no caption; add one, or set default_caption"
    if not is_utf8(caption):
        return f"its caption is not UTF-8: {shown(caption)}"
    if len(caption) > max_length:
        return f"its caption has {len(caption)} characters, more than max_caption_length={max_length}"
    return None


def is_utf8(text: str) -> bool:
    """Whether text read with surrogates for bad bytes has none."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(text: str, length: int = 80) -> str:
    """Any text as a short one that can be printed and stored."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= length else text[: length - 3] + "..."
