"""Raw videos to a prepared data set: cut, pack, join. What is done stays done, however the run ends.

    output/host-00000-of-00001/parts/     a video's records, and what became of it
    output/host-00000-of-00001/plan.json  what became of all videos, and which parts make which shard
    output/host-00000-of-00001/shards/    shards; their parts are deleted
    output/                               the shards under TFDS's names, metadata, report.json; no more host-*

Each step begins when the one before is whole, and finds what an earlier start left of it.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tqdm

from lumiere_jax.data.clip_extraction import ClipSettings
from lumiere_jax.data.parallel_map import Map, map_in_processes, map_with_beam
from lumiere_jax.data.prepared_clips import (
    NAME,
    PrepareVideo,
    Shard,
    WriteShard,
    digest,
    plan_shards,
    rejection,
    shard_path,
    write_json,
    write_metadata,
)
from lumiere_jax.data.source_videos import Sources, SourceVideo
from lumiere_jax.data.video_io import VideoError

REPORT = "report.json"
SHARD_BYTES = 256 << 20

_PLAN = "plan.json"
_JOINING = "joining.json"
_REASONS_SHOWN = 20


def prepare_clips(
    sources: Sources,
    output: str | os.PathLike,
    settings: ClipSettings,
    *,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
    shard_bytes: int = SHARD_BYTES,
    beam_options: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Prepares a data set, or goes on with it; does nothing where it is there.

    What is written does not depend on `workers`, `beam_options`, or on where earlier runs were stopped. With several
    hosts the records are the same, in another order.

    Args:
        sources: all videos, the same on every host.
        output: the directory of the data set; on several hosts one that all see, or one each, whose `host-*` are
            brought together for `join_hosts`.
        settings: of the clips.
        workers: processes; 0: none but this one.
        host: number of this host, 0 to hosts - 1; it takes every `hosts`-th video.
        hosts: number of hosts. With more than one, `join_hosts` ends the work.
        shard_bytes: a shard is closed when it is as large.
        beam_options: prepare through Apache Beam with these options; its workers must see videos and `output`.

    Returns:
        The report: of the data set, or with several hosts of this host's share.

    Raises:
        ValueError: arguments out of range, or `output` holds something else, or another run is at work in it.
        VideoError: every video was rejected.
        OSError: the output cannot be written; started again, the run goes on.
    """
    if not 0 <= host < hosts or workers < 0 or shard_bytes < 1:
        raise ValueError(
            "needs 0 <= host < hosts, workers >= 0 and shard_bytes >= 1; got "
            f"host={host}, hosts={hosts}, workers={workers}, shard_bytes={shard_bytes}"
        )
    output = pathlib.Path(output)
    share = output / f"host-{host:05d}-of-{hosts:05d}"
    prepare = PrepareVideo(os.fspath(share / "parts"), settings)
    made_from = digest([prepare.key(video) for video in sources.videos])
    if finished := read_report(output):
        if finished["made_from"] != made_from:
            raise ValueError(
                f"output: {output} holds a data set made of other videos, captions or settings "
                f"({finished['settings']}): choose another directory, or delete it"
            )
        _remove_working_files(output)  # where the last run was stopped at its very end
        return finished
    if (output / "dataset_info.json").is_file() and not (output / _JOINING).is_file():
        raise ValueError(f"output: {output} holds another data set: choose another directory")
    if beam_options is None:
        run: Map = functools.partial(map_in_processes, workers=workers)
    else:
        run = functools.partial(map_with_beam, options=beam_options)
    with _locked(share):
        plan = _read_plan(share)
        if plan is None or plan["made_from"] != made_from:
            outcomes = _prepare_videos(sources.videos[host::hosts], share, prepare, run)
            plan = _write_plan(share, sources, outcomes, prepare, made_from, shard_bytes)
        if not _is_joining(output, made_from, hosts):  # then shards are there, or moved already
            _write_shards(_shards(plan), WriteShard(prepare, os.fspath(share / "shards")), run)
    return join_hosts(output) if hosts == 1 else _merge([plan])


def join_hosts(output: str | os.PathLike) -> dict[str, Any]:
    """Makes one data set of the shares of all hosts: moves their shards, writes metadata and the report.

    Returns:
        The report.

    Raises:
        ValueError: shares are missing, not finished, or of other videos or settings.
        VideoError: every video was rejected; the report is written nevertheless.
    """
    output = pathlib.Path(output)
    shares = _find_shares(output)
    plans = [_read_plan(share) for share in shares]
    unfinished = [share.name for share, plan in zip(shares, plans, strict=True) if plan is None]
    if unfinished:
        raise ValueError(f"output: {', '.join(unfinished)} in {output} not finished: run these hosts again first")
    if len({plan["made_from"] for plan in plans}) > 1:
        raise ValueError(f"output: the hosts in {output} prepared other videos, captions or settings from each other")
    report = _merge(plans)
    if not report["clips"]:
        write_json(output / REPORT, report)
        _remove_working_files(output)
        reasons = list(report["rejected"].values())
        more = [f"... {len(reasons) - _REASONS_SHOWN} more: {output / REPORT}"] if len(reasons) > _REASONS_SHOWN else []
        raise VideoError("no video can be used:\n  " + "\n  ".join(reasons[:_REASONS_SHOWN] + more))
    _move_shards(output, shares, plans)
    write_metadata(output, [shard for plan in plans for shard in _shards(plan)])
    write_json(output / REPORT, report)  # from here on the data set is there
    _remove_working_files(output)
    return report


def read_report(output: str | os.PathLike) -> dict[str, Any] | None:
    """The report of a finished data set, None where there is none; see `_merge` for its fields."""
    output = pathlib.Path(output)
    if not (output / REPORT).is_file() or not (output / "dataset_info.json").is_file():
        return None
    return json.loads((output / REPORT).read_text(encoding="utf-8"))


# Step 1: the part of each video, and the plan --------------------------------------------------------------


def _prepare_videos(
    videos: Sequence[SourceVideo], share: pathlib.Path, prepare: PrepareVideo, run: Map
) -> list[tuple[SourceVideo, dict[str, Any]]]:
    _clear(share, {prepare.key(video) for video in videos})
    outcomes = {video: outcome for video in videos if (outcome := prepare.outcome(video))}
    clips = sum(outcome.get("clips", 0) for outcome in outcomes.values())
    rejected = sum("rejected" in outcome for outcome in outcomes.values())
    # By bytes, so that the time left is right for videos of any length.
    total, done = sum(video.size for video in videos), sum(video.size for video in outcomes)
    with tqdm.tqdm(total=total, initial=done, unit="B", unit_scale=True, desc="videos") as bar:
        for video, outcome in run(prepare, [video for video in videos if video not in outcomes], died=_died):
            outcomes[video] = outcome
            clips, rejected = clips + outcome.get("clips", 0), rejected + ("rejected" in outcome)
            bar.set_postfix(videos=f"{len(outcomes)}/{len(videos)}", clips=clips, rejected=rejected, refresh=False)
            bar.update(video.size)
    return [(video, outcomes[video]) for video in videos]


def _died(video: SourceVideo) -> dict[str, Any]:
    # Only returned, not put down: another run tries again.
    return rejection(video, "the process that decoded it died, twice: a crash of the decoder, or out of memory")


def _clear(share: pathlib.Path, keys: set[str]) -> None:
    """Deletes what is of other videos or settings, or was not finished."""
    (share / _PLAN).unlink(missing_ok=True)
    shutil.rmtree(share / "shards", ignore_errors=True)
    (share / "shards").mkdir()
    (share / "parts").mkdir(exist_ok=True)
    for file in (share / "parts").iterdir():
        if file.name.split(".")[0] not in keys or file.suffix == ".partial":
            file.unlink()


def _write_plan(
    share: pathlib.Path,
    sources: Sources,
    outcomes: Sequence[tuple[SourceVideo, Mapping[str, Any]]],
    prepare: PrepareVideo,
    made_from: str,
    shard_bytes: int,
) -> dict[str, Any]:
    shards = plan_shards([(video, prepare.key(video), outcome) for video, outcome in outcomes], shard_bytes)
    plan = {
        "made_from": made_from,
        "settings": dataclasses.asdict(prepare.settings),
        "outcomes": {video.name: outcome for video, outcome in outcomes},
        "shards": [dataclasses.asdict(shard) for shard in shards],
        "rejected": sources.rejected,
        "caption_problems": sources.caption_problems,
        "other_files": sources.other_files,
    }
    write_json(share / _PLAN, plan)
    return plan


# Step 2: parts to shards -----------------------------------------------------------------------------------


def _write_shards(shards: Sequence[Shard], write: WriteShard, run: Map) -> None:
    for partial in pathlib.Path(write.directory).glob("*.partial"):
        partial.unlink()

    def died(shard: Shard) -> None:
        raise OSError(f"the process that wrote {shard.name} in {write.directory} died, twice: out of memory?")

    with tqdm.tqdm(total=sum(shard.bytes for shard in shards), unit="B", unit_scale=True, desc="shards") as bar:
        for shard, _ in run(write, shards, died=died):
            bar.update(shard.bytes)


def _shards(plan: Mapping[str, Any]) -> list[Shard]:
    return [Shard(**(shard | {"captions": [tuple(entry) for entry in shard["captions"]]})) for shard in plan["shards"]]


# Step 3: the shares of all hosts to one data set -----------------------------------------------------------


def _find_shares(output: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(output.glob("host-*-of-*"))
    if not found:
        raise ValueError(f"output: {output} holds nothing to be joined: run with --shard=i/n first, on each host")
    counts = {int(re.search(r"of-(\d+)$", share.name)[1]) for share in found}
    if len(counts) > 1:
        raise ValueError(f"output: {output} holds shares of {sorted(counts)} hosts: delete those of an older run")
    count = counts.pop()
    shares = [output / f"host-{host:05d}-of-{count:05d}" for host in range(count)]
    missing = [share.name for share in shares if share not in found]
    if missing:
        raise ValueError(f"output: {output} lacks {', '.join(missing)}: run these hosts first")
    return shares


def _move_shards(output: pathlib.Path, shares: Sequence[pathlib.Path], plans: Sequence[Mapping[str, Any]]) -> None:
    by_split: dict[str, list[pathlib.Path]] = {}
    for share, plan in zip(shares, plans, strict=True):
        for shard in _shards(plan):
            by_split.setdefault(shard.split, []).append(share / "shards" / shard.name)
    moves = {
        source: shard_path(output, split, number, len(sources))
        for split, sources in by_split.items()
        for number, source in enumerate(sources)
    }
    if not _is_joining(output, plans[0]["made_from"], len(plans)):
        missing = [os.fspath(source) for source in moves if not source.is_file()]
        if missing:
            raise ValueError(f"output: not finished, {missing[0]} is missing: run this host again first")
        for stale in output.glob(f"{NAME}-*.array_record-*"):  # of a join that was stopped, of other videos
            stale.unlink()
        write_json(output / _JOINING, {"made_from": plans[0]["made_from"], "hosts": len(plans)})
    for source, target in moves.items():
        if source.is_file():  # else the run that was stopped has moved it
            source.replace(target)


def _is_joining(output: pathlib.Path, made_from: str, hosts: int) -> bool:
    """Whether the moves to `output` have begun."""
    marker = output / _JOINING
    return marker.is_file() and json.loads(marker.read_text()) == {"made_from": made_from, "hosts": hosts}


def _merge(plans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report.

    Returns:
        `made_from`, a hash of videos, captions and settings; `settings`; `splits` (clips, bytes, shards);
        by video `clips`, how many it gave, `left_out`, its parts that gave none (start, end, reason), and `videos`
        (fps, height, width, seconds); `rejected`, the reason by file; `caption_problems`; `other_files`, how many
        of each extension are no videos.
    """
    first = plans[0]
    outcomes = {name: outcome for plan in plans for name, outcome in plan["outcomes"].items()}
    good = {name: outcomes[name] for name in sorted(outcomes) if "rejected" not in outcomes[name]}
    bad = {name: outcome["rejected"] for name, outcome in outcomes.items() if "rejected" in outcome}
    splits: dict[str, dict[str, int]] = {}
    for shard in (shard for plan in plans for shard in _shards(plan)):
        split = splits.setdefault(shard.split, {"clips": 0, "bytes": 0, "shards": 0})
        split["clips"], split["bytes"] = split["clips"] + shard.clips, split["bytes"] + shard.bytes
        split["shards"] += 1
    return {
        "made_from": first["made_from"],
        "settings": first["settings"],
        "splits": splits,
        "clips": {name: outcome["clips"] for name, outcome in good.items()},
        "rejected": dict(sorted((first["rejected"] | bad).items())),
        "left_out": {name: outcome["left_out"] for name, outcome in good.items() if outcome["left_out"]},
        "videos": {name: outcome["video"] for name, outcome in good.items()},
        "caption_problems": first["caption_problems"],
        "other_files": first["other_files"],
    }


# Directories -----------------------------------------------------------------------------------------------


def _read_plan(share: pathlib.Path) -> dict[str, Any] | None:
    file = share / _PLAN
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _remove_working_files(output: pathlib.Path) -> None:
    (output / _JOINING).unlink(missing_ok=True)
    for share in output.glob("host-*-of-*"):
        shutil.rmtree(share)


@contextlib.contextmanager
def _locked(share: pathlib.Path) -> Iterator[None]:
    """Keeps a second run out of a share."""
    share.mkdir(parents=True, exist_ok=True)
    with open(share / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"output: another run is at work in {share}: wait for its end") from error
        yield
