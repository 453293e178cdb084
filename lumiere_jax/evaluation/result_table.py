"""An evaluation's numbers as text: rows of clips against measures, with 95 % intervals."""

from collections.abc import Mapping
from typing import Any


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of clips against what was measured of them, a block for each kind of measure; 95 % intervals in brackets."""
    width = max(map(len, results)) + 2
    blocks = []
    for kind in dict.fromkeys(kind for row in results.values() for kind in row):
        of_kind = {name: row[kind] for name, row in results.items() if kind in row}
        measures = dict.fromkeys(measure for row in of_kind.values() for measure in row)
        lines = [f"{kind:{width}}" + "".join(f"{measure:>28}" for measure in measures)]
        for name, row in of_kind.items():
            cells = (cell(row[measure]) if measure in row else "" for measure in measures)
            lines.append(f"{name:{width}}" + "".join(f"{each:>28}" for each in cells))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def cell(entry: Mapping[str, Any]) -> str:
    """A value and its interval, for people."""
    value = entry["accuracy"] if "accuracy" in entry else entry["mean"]
    if value is None:
        return "not measured"
    if entry["low"] is None:
        return f"{value:.4g}"
    digits = 2 if "accuracy" in entry else max(0, 3 - len(f"{abs(value):.0f}".strip("0")))
    return f"{value:.{digits}f} ({entry['low']:.{digits}f} to {entry['high']:.{digits}f})"
