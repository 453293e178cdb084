"""Prepared clips on disk: a TFDS data set in array_record shards, and the files that become its shards.

A video's records are written to a part file of their own, so that a stopped run repeats at most the videos that it
was at. Parts are joined to shards in the order of the videos' names. Each file appears under its name when it is
whole; what is in it follows from the videos and the settings alone.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from lumiere_jax.data.clip_extraction import Clip, ClipSettings, LeftOut, extract_clips
from lumiere_jax.data.source_videos import SourceVideo
from lumiere_jax.data.video_io import VideoError, encode_mp4

NAME = "video_clips"
VERSION = "1.2.0"

# Constant rate factor of the stored clips: above what eyes see lost. Not from the paper.
_CRF = 14
# One record a group: reading one does not read its neighbours, and H.264 does not compress.
_OPTIONS = "group_size:1,uncompressed"


def features() -> tfds.features.FeaturesDict:
    """What a record holds."""
    return tfds.features.FeaturesDict(
        {
            "clip": tfds.features.Scalar(np.object_),  # bytes of an mp4
            "caption": tfds.features.Text(),
            "fps": tfds.features.Scalar(np.float32),
            "source": tfds.features.Text(),  # the video, relative to the folder searched
            "start": tfds.features.Scalar(np.float32),  # seconds into the video
            "end": tfds.features.Scalar(np.float32),
            "source_fps": tfds.features.Scalar(np.float32),  # average; 0 where the header does not say
            "source_height": tfds.features.Scalar(np.int32),  # of the upright frame, pixels
            "source_width": tfds.features.Scalar(np.int32),
        }
    )


def open_prepared(directory: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set; `as_data_source(split=...)` gives its records.

    Raises:
        FileNotFoundError: the directory holds none, or one that is not finished.
    """
    directory = pathlib.Path(directory)
    if not (directory / "dataset_info.json").is_file():
        unfinished = " The run that makes it is not finished: start it again." if list(directory.glob("host-*")) else ""
        raise FileNotFoundError(
            f"{directory} holds no prepared data set.{unfinished} Make one: python -m lumiere_jax.prepare_data "
            "--videos=DIR --captions=FILE --output=DIR (docs/data.md)"
        )
    return tfds.builder_from_directory(os.fspath(directory))


class PreparedClips(Sequence):
    """The records of one split. Its captions are known without reading a clip, of which there may be terabytes."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self._records = builder.as_data_source(split=split)
        self._captions_file = _captions_file(pathlib.Path(builder.data_path), split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[index]

    @functools.cached_property
    def captions(self) -> list[str]:
        """Of all records, in order.

        Raises:
            ValueError: the file of captions belongs to other records.
        """
        entries = json.loads(self._captions_file.read_text(encoding="utf-8"))
        captions = [caption for caption, clips in entries for _ in range(clips)]
        if len(captions) != len(self):
            raise ValueError(
                f"{self._captions_file} has {len(captions)} captions for {len(self)} clips: prepare the data again"
            )
        return captions


def _captions_file(directory: pathlib.Path, split: str) -> pathlib.Path:
    return directory / f"captions-{split}.json"


def rejection(video: SourceVideo, reason: str) -> dict[str, Any]:
    """The outcome of a video that cannot be used."""
    return {"rejected": f"{video.name}: {reason}"}


# Parts: one video each -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PrepareVideo:
    """The work on one video, as a function of it that can be sent to other processes and machines.

    Attributes:
        directory: where parts go.
        settings: of the clips.
    """

    directory: str
    settings: ClipSettings

    def key(self, video: SourceVideo) -> str:
        """Names the part: a hash of all that decides its content."""
        facts = [video.name, video.caption, video.split, video.size, video.changed]
        return digest([facts, dataclasses.asdict(self.settings), _CRF, VERSION])

    def outcome(self, video: SourceVideo) -> dict[str, Any] | None:
        """What became of a video, as returned by a call; None where that, or its part, is still to be made."""
        file = self._outcome_file(video)
        outcome = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        is_whole = outcome and ("rejected" in outcome or self.part(self.key(video)).is_file())
        return outcome if is_whole else None

    def __call__(self, video: SourceVideo) -> dict[str, Any]:
        """Writes the part of a video, unless that is done, and then what became of it.

        Returns:
            `clips`, `bytes`, `left_out` (start, end, reason) and `video` (fps, height, width, seconds); or
            `rejected`, the reason.

        Raises:
            OSError: the output cannot be written, which is not the video's fault.
        """
        if outcome := self.outcome(video):
            return outcome
        try:
            return self._put_down(video, self._write_part(video))
        except VideoError as error:
            return self._put_down(video, {"rejected": str(error)})
        except OSError as error:
            raise OSError(str(error)) from error  # PyAV's kind cannot be sent between processes
        # Whatever one video brings to light must not end a run over a million; the report shows it.
        except Exception as error:  # noqa: BLE001
            return self._put_down(video, rejection(video, f"unexpected {type(error).__name__}: {error}"))

    def part(self, key: str) -> pathlib.Path:
        """The file with a video's records."""
        return pathlib.Path(self.directory, f"{key}.array_record")

    def _outcome_file(self, video: SourceVideo) -> pathlib.Path:
        return pathlib.Path(self.directory, f"{self.key(video)}.json")

    def _put_down(self, video: SourceVideo, outcome: dict[str, Any]) -> dict[str, Any]:
        write_json(self._outcome_file(video), outcome)
        return outcome

    def _write_part(self, video: SourceVideo) -> dict[str, Any]:
        schema, left_out = features(), []
        clips = size = 0
        seconds = 0.0
        with write_records(self.part(self.key(video))) as write:
            for part in extract_clips(video.path, self.settings, name=video.name):
                seconds = part.end
                if isinstance(part, LeftOut):
                    reason = f"has {part.frames} of the {self.settings.frames} frames of a clip"
                    left_out.append([round(part.start, 3), round(part.end, 3), reason])
                    continue
                record = _serialize(schema, self._record(video, part))
                write(record)
                clips, size, last = clips + 1, size + len(record), part
        facts = {"fps": last.source_fps, "height": last.source_height, "width": last.source_width, "seconds": seconds}
        return {"clips": clips, "bytes": size, "left_out": left_out, "video": facts}

    def _record(self, video: SourceVideo, clip: Clip) -> dict[str, Any]:
        return {
            "clip": encode_mp4(clip.images, self.settings.fps, crf=_CRF),
            "caption": video.caption,
            "fps": self.settings.fps,
            "source": video.name,
            **{field.name: getattr(clip, field.name) for field in dataclasses.fields(clip) if field.name != "images"},
        }


def _serialize(schema: tfds.features.FeaturesDict, record: Mapping[str, Any]) -> bytes:
    # A record is a protobuf with a map, which TFDS writes in an order that changes from process to process.
    return tf_example_pb2.Example.FromString(schema.serialize_example(record)).SerializeToString(deterministic=True)


# Shards ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard to be written.

    Attributes:
        name: of its file.
        split: which split it belongs to.
        parts: keys of the parts in it, in order.
        captions: caption and number of clips of each part.
        clips: number of records.
        bytes: size of the records.
    """

    name: str
    split: str
    parts: Sequence[str]
    captions: Sequence[tuple[str, int]]
    clips: int
    bytes: int


def plan_shards(videos: Iterable[tuple[SourceVideo, str, Mapping[str, Any]]], shard_bytes: int) -> list[Shard]:
    """Packs the parts of videos into shards, in order.

    Args:
        videos: each with the key of its part and its outcome; those rejected give nothing.
        shard_bytes: a shard is closed when it is as large; one video is never in two.
    """
    shards: list[Shard] = []
    by_split: dict[str, list[tuple[SourceVideo, str, Mapping[str, Any]]]] = {}
    for video, key, outcome in videos:
        if "rejected" not in outcome:
            by_split.setdefault(video.split, []).append((video, key, outcome))
    for split, parts in sorted(by_split.items()):
        keys, captions, size = [], [], 0
        for index, (video, key, outcome) in enumerate(parts, start=1):
            keys.append(key)
            captions.append((video.caption, outcome["clips"]))
            size += outcome["bytes"]
            if size >= shard_bytes or index == len(parts):
                name, clips = f"{split}-{len(shards):05d}.array_record", sum(clips for _, clips in captions)
                shards.append(Shard(name, split, keys, captions, clips, size))
                keys, captions, size = [], [], 0
    return shards


@dataclasses.dataclass(frozen=True)
class WriteShard:
    """Joins parts to a shard and deletes them; a function that can be sent like `PrepareVideo`.

    Attributes:
        prepare: what made the parts.
        directory: where the shard goes.
    """

    prepare: PrepareVideo
    directory: str

    def __call__(self, shard: Shard) -> None:
        """Writes the shard, unless it is there.

        Raises:
            OSError: it cannot be written; the parts are kept.
        """
        file = pathlib.Path(self.directory, shard.name)
        parts = [self.prepare.part(key) for key in shard.parts]
        if not file.is_file():
            with write_records(file) as write:
                for part in parts:
                    for record in read_records(part):
                        write(record)
        for part in parts:
            part.unlink(missing_ok=True)


def shard_path(directory: pathlib.Path, split: str, number: int, count: int) -> pathlib.Path:
    """Where TFDS looks for a shard."""
    return directory / f"{NAME}-{split}.array_record-{number:05d}-of-{count:05d}"


def write_metadata(directory: pathlib.Path, shards: Sequence[Shard]) -> None:
    """Makes shards, already in their places, a TFDS data set, with its captions once more for `PreparedClips`."""
    for split in sorted({shard.split for shard in shards}):
        captions = [list(entry) for shard in shards if shard.split == split for entry in shard.captions]
        write_json(_captions_file(directory, split), captions)
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.clips for shard in shards if shard.split == split],
            num_bytes=sum(shard.bytes for shard in shards if shard.split == split),
        )
        for split in sorted({shard.split for shard in shards})
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=os.fspath(directory),
        features=features(),
        split_infos=splits,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        version=VERSION,
        check_data=False,  # TFDS checks through TensorFlow
        description="Captioned clips cut from videos by lumiere_jax.prepare_data.",
    )


# Files -----------------------------------------------------------------------------------------------------


class _RecordsFile:
    """An array_record file being written; its library raises nothing but RuntimeError."""

    def __init__(self, file: pathlib.Path):
        self._file = file
        self._writer = self._checked(array_record_module.ArrayRecordWriter, os.fspath(file), _OPTIONS)

    def write(self, record: bytes) -> None:
        self._checked(self._writer.write, record)

    def close(self) -> None:
        self._checked(self._writer.close)

    def _checked(self, function: Callable, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except RuntimeError as error:
            raise OSError(f"{self._file} cannot be written: {error}") from error


@contextlib.contextmanager
def write_records(file: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that appends a record; the file appears when all are written, and not after an error.

    Raises:
        OSError: it cannot be written.
    """
    partial = _partial(file)
    try:
        records = _RecordsFile(partial)
        yield records.write
        records.close()
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def read_records(file: pathlib.Path) -> Iterator[bytes]:
    """The records of a file, one at a time."""
    reader = array_record_module.ArrayRecordReader(os.fspath(file), "readahead_buffer_size:0,max_parallelism:0")
    try:
        for index in range(reader.num_records()):
            yield reader.read([index])[0]
    finally:
        reader.close()


def write_json(file: pathlib.Path, content: Any) -> None:
    """Writes a whole JSON file or none."""
    partial = _partial(file)
    try:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def digest(content: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _partial(file: pathlib.Path) -> pathlib.Path:
    # Its own name for each process: one that outlived a killed run may still be at the same video.
    return file.with_name(f"{file.name}.{os.getpid()}.partial")
