"""Which raw videos there are, with caption and split; every file that is none is in the result with its reason.

Decides by directory entries and captions alone, the same on every host: no video is opened, except those of equal
size, which may be copies.
"""

import collections
import dataclasses
import fnmatch
import hashlib
import os
import pathlib
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

from lumiere_jax.data.captions_file import Captions, caption_beside, caption_problem, is_utf8, read_captions, shown

EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")

# Bytes at the start of files of one size that are compared before all of them are.
_HEAD = 1 << 16


@dataclasses.dataclass(frozen=True)
class SourceVideo:
    """A raw video.

    Attributes:
        name: path relative to the folder searched, with `/`: what reports and captions call it.
        path: where to open it.
        caption: its text.
        split: which split its clips go to.
        size: bytes.
        changed: time of the last change, ns.
    """

    name: str
    path: str
    caption: str
    split: str
    size: int
    changed: int


@dataclasses.dataclass
class Sources:
    """What was found.

    Attributes:
        videos: sorted by name.
        rejected: reason by file, folder or caption that cannot be used.
        caption_problems: rows of the captions file that cannot be used.
        other_files: how many files of each extension are no videos by their name.
    """

    videos: list[SourceVideo] = dataclasses.field(default_factory=list)
    rejected: dict[str, str] = dataclasses.field(default_factory=dict)
    caption_problems: list[str] = dataclasses.field(default_factory=list)
    other_files: dict[str, int] = dataclasses.field(default_factory=dict)


def find_sources(
    videos: str | os.PathLike,
    *,
    captions: str | os.PathLike | None = None,
    default_caption: str | None = None,
    max_caption_length: int = 1000,
    splits: Mapping[str, float | int] | None = None,
) -> Sources:
    """Finds raw videos and their captions.

    Args:
        videos: a folder, searched with its sub-folders for `EXTENSIONS` in any letter case; a pattern with `*`, `?`,
            `[...]` and `**` for any number of folders; or a text file with a path per line, relative to its folder.
            Patterns and lists take any extension. Hidden files and folders are left out.
        captions: CSV or JSONL, see `captions_file.read_captions`; paths as `SourceVideo.name`. A video not named
            there takes its caption from a text file beside it (`a.mp4`, `a.txt`).
        default_caption: for videos without a caption, which otherwise are rejected.
        max_caption_length: characters; longer ones are rejected, not cut. Not from the paper.
        splits: share of the videos by name of the split, default all in `train`. A video's split follows from its
            name alone.

    Raises:
        FileNotFoundError: no such folder, list or captions file, or no file that could be a video.
        ValueError: a captions file of another form.
    """
    found = Sources()
    named = read_captions(captions) if captions is not None else Captions()
    found.caption_problems = named.problems
    paths = _find_paths(os.fspath(videos), found)
    if not paths and not found.rejected:
        raise FileNotFoundError(f"videos: {videos} holds no video ({', '.join(EXTENSIONS)})")
    for name, path in sorted(paths.items()):
        try:
            found.videos.append(_source(name, path, named, default_caption, max_caption_length, splits))
        except ValueError as error:
            found.rejected[shown(name, 1000)] = f"{shown(name, 1000)}: {error}"
        except OSError as error:
            file = shown(os.path.basename(error.filename or path), 1000)  # the video, or the caption beside it
            found.rejected[shown(name, 1000)] = f"{shown(name, 1000)}: {file} cannot be read ({error.strerror})"
    for name in sorted(set(named.by_file) - set(paths)):
        found.rejected[shown(name, 1000)] = f"{shown(name, 1000)}: has a caption, but no such video"
    _reject_copies(found)
    return found


def _source(
    name: str,
    path: str,
    named: Captions,
    default_caption: str | None,
    max_caption_length: int,
    splits: Mapping[str, float | int] | None,
) -> SourceVideo:
    """The video, or a ValueError or OSError that says why it cannot be used."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no regular file")
    if not is_utf8(name):
        raise ValueError("its name is not UTF-8; rename it")
    if not status.st_size:
        raise ValueError("is empty, 0 bytes")
    caption = named.by_file.get(name) or caption_beside(path) or (default_caption or "")
    if problem := caption_problem(caption, max_caption_length):
        raise ValueError(problem)
    with open(path, "rb"):
        pass  # says now, and not when its turn comes, that it must not be read
    return SourceVideo(name, path, caption, split_of(name, splits), status.st_size, status.st_mtime_ns)


def split_of(name: str, splits: Mapping[str, float | int] | None) -> str:
    """The split of a video: by a hash of its name, so that other videos and hosts do not matter.

    Args:
        name: of the video.
        splits: share by split; they need not add up to 1. None: everything is `train`.
    """
    if not splits:
        return "train"
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64 * sum(splits.values())
    for split, share in splits.items():
        if place < share:
            return split
        place -= share
    return split  # rounding


# Where files are found -------------------------------------------------------------------------------------


def _find_paths(videos: str, found: Sources) -> dict[str, str]:
    """Path by name; what cannot be searched goes to `found.rejected`."""
    if os.path.isdir(videos):
        files = _walk(videos, found)
        return {name: path for name, path in files if _is_video(name, found)}
    if any(character in videos for character in "*?["):
        parts = pathlib.PurePath(videos).parts
        fixed = next(index for index, part in enumerate(parts) if any(character in part for character in "*?["))
        root = os.path.join(*parts[:fixed]) if fixed else "."
        if not os.path.isdir(root):
            raise FileNotFoundError(f"videos: {root} of the pattern {videos} is no directory")
        files = _walk(root, found)
        return {name: path for name, path in files if _matches(name.split("/"), parts[fixed:])}
    if os.path.isfile(videos) and not videos.lower().endswith(EXTENSIONS):
        return _read_list(pathlib.Path(videos), found)
    raise FileNotFoundError(f"videos: {videos} is no directory, no list of videos and no pattern with * or ?")


def _is_video(name: str, found: Sources) -> bool:
    extension = os.path.splitext(name)[1].lower()
    if extension not in EXTENSIONS:
        found.other_files[shown(extension)] = found.other_files.get(shown(extension), 0) + 1
    return extension in EXTENSIONS


def _walk(root: str, found: Sources) -> Iterator[tuple[str, str]]:
    """(name, path) of the files below a folder; links are followed, each folder is entered once."""

    def reject(error: OSError) -> None:
        name = shown(os.path.relpath(error.filename, root), 1000)
        found.rejected[name] = f"{name}: folder cannot be read ({error.strerror})"

    entered: dict[tuple[int, int], str] = {}
    for folder, subfolders, files in os.walk(root, onerror=reject, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        status = os.stat(folder)
        first = entered.setdefault((status.st_dev, status.st_ino), folder)
        if first != folder:
            name = shown(os.path.relpath(folder, root), 1000)
            found.rejected[name] = f"{name}: is the folder {shown(os.path.relpath(first, root), 1000)}, by a link"
            subfolders.clear()
            continue
        for file in files:
            if not file.startswith("."):
                path = os.path.join(folder, file)
                yield pathlib.PurePath(os.path.relpath(path, root)).as_posix(), path


def _matches(parts: list[str], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _read_list(file: pathlib.Path, found: Sources) -> dict[str, str]:
    paths: dict[str, str] = {}
    lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = pathlib.PurePath(line.strip()).as_posix()
        if name in paths:
            entry = f"{shown(name, 1000)} (line {number})"
            found.rejected[entry] = f"{entry}: is named twice in {file.name}"
            continue
        paths[name] = os.path.join(file.parent, name)
    return paths


# Copies ----------------------------------------------------------------------------------------------------


def _reject_copies(found: Sources) -> None:
    """Keeps the first of the files of equal content. Reads only files of equal size, and first only their heads."""
    kept: dict[str, SourceVideo] = {video.name: video for video in found.videos}
    for by_size in _groups(found.videos, lambda video: video.size):
        for by_head in _groups(by_size, lambda video: _hash(video, _HEAD)):
            for first, *copies in _groups(by_head, _hash):
                for copy in copies:
                    found.rejected[copy.name] = f"{copy.name}: duplicate of {first.name}"
                    del kept[copy.name]
    found.videos = list(kept.values())


def _groups(videos: Iterable[SourceVideo], key: Callable[[SourceVideo], Hashable]) -> Iterator[list[SourceVideo]]:
    """The videos that share a key with another."""
    groups = collections.defaultdict(list)
    for video in videos:
        groups[key(video)].append(video)
    return (group for group in groups.values() if len(group) > 1)


def _hash(video: SourceVideo, length: int | None = None) -> bytes | str:
    try:
        with open(video.path, "rb") as file:
            if length is not None:
                return hashlib.sha256(file.read(length)).digest()
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return video.name  # equal to no other: that it cannot be read is said when its turn comes
