"""Raw videos to a data set of short captioned clips, in one pass.

    python -m lumiere_jax.prepare_data --videos=DIR --captions=captions.csv --output=prepared
    python -m lumiere_jax.train --config=configs/stunet.py --config.dataset.name=prepared --config.dataset.path=prepared

Each video is cut by time stamp into clips of frames/fps seconds that cross no cut, cropped, scaled and encoded once
(H.264, a key frame every 16 frames). What cannot be used is reported by name and reason. Stopped in any way and started
again with the same command, it goes on. Several machines that share a file system:

    python -m lumiere_jax.prepare_data ... --output=prepared --shard=0/2   # on the first
    python -m lumiere_jax.prepare_data ... --output=prepared --shard=1/2   # on the second
    python -m lumiere_jax.prepare_data --output=prepared --join            # when both are done

docs/data.md has the rest. Not from the paper: all but 80 frames at 16 fps of 128x128 pixels.
"""

import os
import re
import sys

from absl import app, flags, logging
from absl.flags import FLAGS

from lumiere_jax.data.clip_extraction import ClipSettings
from lumiere_jax.data.preparation import SHARD_BYTES, join_hosts, prepare_clips
from lumiere_jax.data.preparation_report import show_report
from lumiere_jax.data.source_videos import find_sources


def parse_splits(text: str) -> dict[str, float]:
    """`train` or `train:0.95,validation:0.05` as shares by name.

    Raises:
        ValueError: another form, a share that is not positive, or a name given twice.
    """
    splits: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([a-z][a-z0-9_]*)(?::(\d*\.?\d+))?", part.strip())
        if not match or match[1] in splits or not float(match[2] or 1) > 0:
            raise ValueError(f"split={text!r}: give names, with positive shares, as train:0.95,validation:0.05")
        splits[match[1]] = float(match[2] or 1)
    return splits


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` as (i, n).

    Raises:
        ValueError: another form, or i not below n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"shard={text!r}: give the number of this machine and of all, 0/2 and 1/2 for two")
    return int(match[1]), int(match[2])


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    settings = ClipSettings()
    flags.DEFINE_string("videos", None, "A folder, a pattern ('DIR/**/*.mp4') or a text file with a path per line.")
    flags.DEFINE_string("captions", None, "A .csv or .jsonl with file and caption; default: .txt beside each video.")
    flags.DEFINE_string("default_caption", None, "For videos without a caption, which otherwise are rejected.")
    flags.DEFINE_integer("max_caption_length", 1000, "Characters; videos with longer captions are rejected.", 1)
    flags.DEFINE_string("output", None, "The directory of the data set.", required=True)
    flags.DEFINE_integer("frames", settings.frames, "Frames per clip.", 1)
    flags.DEFINE_float("fps", settings.fps, "Frames per second of the clips, whatever the rate of the videos.")
    flags.DEFINE_integer("size", settings.size, "Side of the square frames, pixels, even.", 2)
    flags.DEFINE_bool("scene_cuts", settings.scene_cuts, "Find cuts, and let no clip cross one.")
    flags.DEFINE_string("split", "train", "Name of the split, or shares of several: train:0.95,validation:0.05.")
    flags.DEFINE_integer("workers", os.cpu_count(), "Processes. 0: none but the command's own.", 0)
    flags.DEFINE_string("shard", "0/1", "i/n: prepare the i-th of n shares, each on a machine of its own.")
    flags.DEFINE_bool("join", False, "Join the shares that all machines have prepared in --output.")
    flags.DEFINE_integer("shard_bytes", SHARD_BYTES, "A shard is closed when it is as large.", 1)
    flags.DEFINE_multi_string(
        "beam_option", None, "Prepare through Apache Beam, with this option of its; may be repeated."
    )


def _prepare() -> None:
    if FLAGS.join:
        print(show_report(join_hosts(FLAGS.output), FLAGS.output))
        return
    if not FLAGS.videos:
        raise ValueError("videos is empty: give the folder of videos, --videos=DIR")
    splits, (host, hosts) = parse_splits(FLAGS.split), parse_shard(FLAGS.shard)
    settings = ClipSettings(frames=FLAGS.frames, fps=FLAGS.fps, size=FLAGS.size, scene_cuts=FLAGS.scene_cuts)
    sources = find_sources(
        FLAGS.videos,
        captions=FLAGS.captions,
        default_caption=FLAGS.default_caption,
        max_caption_length=FLAGS.max_caption_length,
        splits=splits,
    )
    report = prepare_clips(
        sources,
        FLAGS.output,
        settings,
        workers=FLAGS.workers,
        host=host,
        hosts=hosts,
        shard_bytes=FLAGS.shard_bytes,
        beam_options=FLAGS.beam_option,
    )
    print(show_report(report, FLAGS.output))
    for split in sorted(set(splits) - set(report["splits"])):
        print(f"  note: no video fell to the split {split}")
    if hosts > 1:
        print(f"share {host} of {hosts} is ready; when all are: python -m lumiere_jax.prepare_data --join --output=DIR")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    try:
        _prepare()
    except (ValueError, ImportError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    except OSError as error:
        sys.exit(f"error: {error}\nWhat is done is kept: mend that and start the same command again.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
