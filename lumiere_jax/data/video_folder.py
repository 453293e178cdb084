"""A folder of real videos, prepared on first use: `prepare_data` for those who just want to train.

builder = prepare("my_videos", "data", frames=80, fps=16, size=128, captions="my_videos/captions.csv")
source = builder.as_data_source(split="train")
"""

import os
import pathlib

import tensorflow_datasets as tfds

from lumiere_jax.data.clip_extraction import ClipSettings
from lumiere_jax.data.preparation import prepare_clips
from lumiere_jax.data.preparation_report import show_report
from lumiere_jax.data.prepared_clips import PrepareVideo, digest, open_prepared
from lumiere_jax.data.source_videos import find_sources


def prepare(
    videos_dir: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    frames: int,
    fps: float | int,
    size: int,
    captions: str | os.PathLike | None = None,
    default_caption: str | None = None,
    workers: int = 0,
) -> tfds.core.DatasetBuilder:
    """Cuts a folder of videos into clips, unless that was done before.

    A changed folder (files, their sizes or times of change), other captions or other settings give another
    directory in `data_dir`. What became of each file is printed, and written there as `report.json`. On several
    hosts that share `data_dir`, prepare on one of them first.

    Args:
        videos_dir: what `source_videos.find_sources` takes as `videos`; likewise
        captions: and
        default_caption:
        data_dir: where data sets are kept.
        frames: see `ClipSettings`; likewise
        fps: and
        size:
        workers: processes; 0: none but this one.

    Returns:
        The builder; `as_data_source(split="train")` gives the records of `prepared_clips.features`.

    Raises:
        FileNotFoundError: no such folder or captions file, or no videos in the folder.
        ValueError: settings out of range, or a captions file of another form.
        VideoError: every video was rejected; the message has each one's reason.
    """
    settings = ClipSettings(frames=frames, fps=fps, size=size)
    sources = find_sources(videos_dir, captions=captions, default_caption=default_caption)
    state = digest([PrepareVideo("", settings).key(video) for video in sources.videos])[:12]
    name = f"{pathlib.Path(videos_dir).resolve().name}_{frames}x{size}px_{fps:g}fps_{state}"
    directory = pathlib.Path(data_dir, "video_folder", name)
    report = prepare_clips(sources, directory, settings, workers=workers)
    print(show_report(report, directory), flush=True)
    return open_prepared(directory)
