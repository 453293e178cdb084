"""What became of the videos, on one screen."""

import collections
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

_LINES = 12
_WIDTH = 118


def show_report(report: Mapping[str, Any], directory: str | os.PathLike) -> str:
    """The report of `preparation.prepare_clips` as a table of reasons, the most frequent first.

    Args:
        report: the report.
        directory: what it is about.

    Returns:
        At most 25 lines.
    """
    clips, rejected = report["clips"], report["rejected"]
    total = len(clips) + len(rejected)
    seconds = report["settings"]["frames"] / report["settings"]["fps"]
    left_out = [part for parts in report["left_out"].values() for part in parts]
    lines = [
        f"{directory}: {sum(clips.values())} clips of {seconds:g} s from {len(clips)} of {total} files",
        *(
            f"  split {name}: {split['clips']} clips, {split['bytes'] / 2**20:.1f} MiB in {split['shards']} shards"
            for name, split in report["splits"].items()
        ),
    ]
    if left_out:
        lost = sum(end - start for start, end, _ in left_out)
        lines.append(f"  left out: {len(left_out)} parts of videos, {lost:.1f} s in all, shorter than a clip")
    if report["other_files"]:
        kinds = ", ".join(f"{count} {kind or 'without'}" for kind, count in sorted(report["other_files"].items()))
        lines.append(_fit(f"  not looked at, by their extension: {kinds}"))
    if rejected:
        lines += [f"  rejected: {len(rejected)} files", *_table(rejected)]
    if problems := report["caption_problems"]:
        lines += [f"  captions that were not used: {len(problems)} rows", *(_fit(f"    {row}") for row in problems[:3])]
    if rejected or problems or left_out:
        lines.append(f"  all of it, file by file: {pathlib.Path(directory, 'report.json')}")
    return "\n".join(lines)


def _table(rejected: Mapping[str, str]) -> list[str]:
    """Files with the same reason but for its numbers are one line."""
    kinds = collections.defaultdict(list)
    for file, reason in rejected.items():
        kinds[re.sub(r"\d+(\.\d+)?", "#", reason.removeprefix(f"{file}: "))].append(reason)
    by_count = sorted(kinds.values(), key=lambda reasons: (-len(reasons), reasons))
    lines = [
        _fit(f"  {len(reasons):6}  {reasons[0]}" + (" and likewise others" if len(reasons) > 1 else ""))
        for reasons in by_count[:_LINES]
    ]
    more = by_count[_LINES:]
    return lines + ([f"  {sum(map(len, more)):6}  for {len(more)} other reasons"] if more else [])


def _fit(line: str) -> str:
    line = line.replace("\n", " ")
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."
