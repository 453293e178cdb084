"""A folder of real videos as a TFDS data set of short, uniform, captioned clips.

Every video is cut by time stamp into clips of `frames / fps` seconds, cropped and scaled, and encoded once as
small H.264 files, so that training decodes little. Files that cannot be used are reported by name and reason.

    builder = prepare("my_videos", "data", frames=80, fps=16, size=128, captions="my_videos/captions.csv")
    source = builder.as_data_source(split="train")
"""

import csv
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from av.video.reformatter import VideoReformatter

from lumiere_jax.data.clip_sampling import center_crop_resize, sample_by_time
from lumiere_jax.data.video_io import VideoError, encode_mp4, frame_to_rgb, open_video

EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")

# Constant rate factor of the stored clips: above what eyes see lost. Not from the paper.
_CRF = 14


@dataclasses.dataclass(kw_only=True)
class VideoFolderConfig(tfds.core.BuilderConfig):
    """What to make of which folder; see `prepare`, which fills `name` with a hash of it all.

    Attributes:
        videos_dir: the folder.
        captions_by_file: caption of each file, by path relative to the folder; files that have none are absent.
        frames: frames per clip.
        fps: frames per second of the clips.
        size: side of the square frames in pixels.
    """

    videos_dir: str
    captions_by_file: dict[str, str] = dataclasses.field(repr=False)  # TFDS logs the rest
    frames: int
    fps: float | int
    size: int


class VideoFolder(tfds.core.GeneratorBasedBuilder):
    """The data set; made by `prepare`."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, **kwargs):
        super().__init__(file_format="array_record", **kwargs)

    @property
    def report(self) -> dict[str, dict]:
        """What became of the files: `clips`, how many each gave; `rejected`, why each was."""
        return json.loads(pathlib.Path(self.data_dir, "report.json").read_text())

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Clips cut from a folder of videos.",
            features=tfds.features.FeaturesDict(
                {
                    "clip": tfds.features.Scalar(np.object_),  # bytes of an mp4
                    "caption": tfds.features.Text(),
                    "fps": tfds.features.Scalar(np.float32),
                    "source": tfds.features.Text(),  # file, relative to the folder
                    "start": tfds.features.Scalar(np.float32),  # seconds into the file
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        config = self.builder_config
        clips_by_file: dict[str, int] = {}
        rejected: dict[str, str] = {}
        hashes: dict[str, str] = {}
        for file in list_videos(config.videos_dir):
            try:
                clips = _read_file(file, config, hashes)
            except VideoError as error:
                rejected[file] = str(error)
                continue
            clips_by_file[file] = len(clips)
            for number, clip in enumerate(clips):
                yield (
                    f"{file}:{number:05d}",
                    {
                        "clip": clip,
                        "caption": config.captions_by_file[file],
                        "fps": config.fps,
                        "source": file,
                        "start": number * config.frames / config.fps,
                    },
                )
        for file in sorted(set(config.captions_by_file) - set(clips_by_file) - set(rejected)):
            rejected[file] = f"{file}: has a caption, but no such video"
        if not clips_by_file:
            reasons = "\n  ".join(rejected.values())
            raise VideoError(f"no video in {config.videos_dir} can be used:\n  {reasons}")
        # While examples are generated, data_dir is a temporary directory that becomes the data set's at the end.
        report = json.dumps({"clips": clips_by_file, "rejected": rejected}, indent=2, ensure_ascii=False)
        pathlib.Path(self.data_dir, "report.json").write_text(report)


def prepare(
    videos_dir: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    frames: int,
    fps: float | int,
    size: int,
    captions: str | os.PathLike | None = None,
    default_caption: str | None = None,
) -> VideoFolder:
    """Cuts a folder of videos into clips, unless that was done before.

    A changed folder (files, their sizes or times of change), other captions or other settings give another
    directory in `data_dir`. What became of each file is printed, and written there as `report.json`. On several
    hosts that share `data_dir`, prepare on one of them first.

    Args:
        videos_dir: folder of videos, searched with its sub-folders for `EXTENSIONS` in any letter case.
        data_dir: where data sets are kept.
        frames: frames per clip.
        fps: frames per second of the clips, whatever the rate of the videos. A slower video repeats frames.
        size: side of the square frames; the center of each frame, scaled down.
        captions: CSV (columns file, caption) or JSONL (keys file, caption) file, paths relative to
            `videos_dir`. A video not named there takes its caption from a text file beside it (`a.mp4`, `a.txt`).
        default_caption: for videos without a caption, which otherwise are rejected.

    Returns:
        The builder; `as_data_source(split="train")` gives records `clip` (mp4 bytes), `caption`, `fps`,
        `source`, `start`.

    Raises:
        FileNotFoundError: no such folder or captions file, or no videos in the folder.
        ValueError: settings out of range, or a captions file of another form.
        VideoError: every video was rejected; the message has each one's reason.
    """
    if frames < 1 or not fps > 0 or size < 1:
        raise ValueError(f"needs frames, fps and size above 0, got frames={frames}, fps={fps}, size={size}")
    if size % 2:
        raise ValueError(f"size must be even, for H.264's chroma; got {size}")
    captions_by_file = read_captions(videos_dir, captions, default_caption)
    digest = _digest(videos_dir, captions_by_file)
    config = VideoFolderConfig(
        name=f"{pathlib.Path(videos_dir).resolve().name}_{frames}x{size}px_{fps:g}fps_{digest}",
        videos_dir=os.fspath(videos_dir),
        captions_by_file=captions_by_file,
        frames=frames,
        fps=fps,
        size=size,
    )
    builder = VideoFolder(data_dir=os.fspath(data_dir), config=config)
    builder.download_and_prepare()  # does nothing where the data set is there
    clips, rejected = builder.report["clips"], builder.report["rejected"]
    print(f"{builder.data_dir}: {sum(clips.values())} clips from {len(clips)} videos, {len(rejected)} videos rejected")
    for reason in rejected.values():
        print(f"  rejected: {reason}", flush=True)
    return builder


def list_videos(videos_dir: str | os.PathLike) -> list[str]:
    """Paths of the videos in a folder and its sub-folders, relative to it, sorted; hidden files are left out.

    Raises:
        FileNotFoundError: no such folder, or no videos in it.
    """
    root = pathlib.Path(videos_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"videos_dir: {root} is no directory")
    files = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    ]
    if not files:
        raise FileNotFoundError(f"videos_dir: {root} holds no video ({', '.join(EXTENSIONS)})")
    return sorted(files)


def read_captions(
    videos_dir: str | os.PathLike, captions: str | os.PathLike | None, default_caption: str | None
) -> dict[str, str]:
    """Caption by file: from the captions file, else the text file beside the video, else the default.

    Raises:
        FileNotFoundError: no such captions file.
        ValueError: rows without file and caption, or a file named twice.
    """
    named = _read_manifest(pathlib.Path(captions)) if captions is not None else {}
    for file in list_videos(videos_dir):
        sidecar = pathlib.Path(videos_dir, file).with_suffix(".txt")
        if not named.get(file) and sidecar.is_file():
            named[file] = sidecar.read_text(encoding="utf-8").strip()
        if not named.get(file) and default_caption is not None:
            named[file] = default_caption
    return {file: caption for file, caption in sorted(named.items()) if caption}


def _read_manifest(path: pathlib.Path) -> dict[str, str]:
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"captions: {path} must be a .csv or .jsonl file")
    with open(path, encoding="utf-8-sig", newline="") as file:
        is_csv = path.suffix.lower() == ".csv"
        rows = list(csv.DictReader(file) if is_csv else (json.loads(line) for line in file if line.strip()))
    named: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not row.get("file") or row.get("caption") is None:
            raise ValueError(f"captions: row {number} of {path} needs file and caption, has {row}")
        file = pathlib.PurePath(row["file"]).as_posix()
        if file in named:
            raise ValueError(f"captions: {path} names {file} twice")
        named[file] = row["caption"].strip()
    return named


def _digest(videos_dir: str | os.PathLike, captions_by_file: dict[str, str]) -> str:
    """A short hash of the files, as far as their directory entries tell, and of the captions."""
    files = [(file, pathlib.Path(videos_dir, file).stat()) for file in list_videos(videos_dir)]
    state = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in files], sorted(captions_by_file.items()), _CRF
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]


def _read_file(file: str, config: VideoFolderConfig, hashes: dict[str, str]) -> list[bytes]:
    """The encoded clips of one file, all of it read before any is used: a file is good or rejected."""
    if file not in config.captions_by_file:
        raise VideoError(f"{file}: no caption; add one, or set default_caption")
    path = os.path.join(config.videos_dir, file)
    with open(path, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest in hashes:
        raise VideoError(f"{file}: duplicate of {hashes[digest]}")
    hashes[digest] = file
    return list(_cut_clips(path, file, config))


def _cut_clips(path: str, file: str, config: VideoFolderConfig) -> Iterator[bytes]:
    """Clips one behind the other from the start; a rest shorter than a clip is left."""
    times = (index / config.fps for index in itertools.count())
    reformatter = VideoReformatter()
    clip, complete = [], 0
    with open_video(path, name=file) as video:
        for frame in sample_by_time(video.frames, times):
            image = frame_to_rgb(frame, reformatter)
            clip.append(center_crop_resize(image[None], config.size, file)[0])
            if len(clip) == config.frames:
                yield encode_mp4(np.stack(clip), config.fps, crf=_CRF)
                clip, complete = [], complete + 1
    if not complete:
        raise VideoError(
            f"{file}: too short, gives {len(clip)} of the {config.frames} frames of a clip at {config.fps:g} fps"
        )
