"""What is in a data set, and how fast this machine reads it.

    python -m lumiere_jax.inspect_data --data=prepared [--output=DIR --step_time=SECONDS --batch_size=8]

Writes to `--output` (default: `inspection` in the data set's directory)

    contact_sheet.png  a row of frames per clip
    xt_slices.png      one line of pixels over time per clip: motion is slanted, a cut is a break
    histograms.png     frame rate, length and size of the original videos (where they are not known: of the clips)
    captions.txt       the captions of these clips
    summary.json       all numbers

and prints how many clips a second the training's loader gives, and how many such machines feed a step time.
"""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from absl.flags import FLAGS
from PIL import Image, ImageDraw

from lumiere_jax.data.clip_sampling import center_crop_resize
from lumiere_jax.data.input_pipeline import Record, make_batches
from lumiere_jax.data.preparation import read_report
from lumiere_jax.data.prepared_clips import open_prepared
from lumiere_jax.data.video_io import decode_video, write_contact_sheet
from lumiere_jax.evaluation.xt_slice import xt_slice

_SHOWN_SIZE = 128  # pixels, largest side of a shown frame
_COLUMNS = 8


def inspect_data(
    data: str | os.PathLike,
    output: str | os.PathLike,
    *,
    split: str = "train",
    clips: int = 8,
    batch_size: int = 8,
    threads: int = 2,
    seconds: float | int = 10,
    step_time: float | int | None = None,
) -> dict[str, Any]:
    """Draws and measures a data set.

    Args:
        data: directory of a prepared data set, or of another TFDS data set of clips.
        output: where to write, see the top of this file.
        split: of the data set.
        clips: how many are shown, evenly spaced over the data set.
        batch_size: clips in the global batch of training.
        threads: that decode.
        seconds: how long to read for the measurement.
        step_time: seconds of a training step, to say how many machines feed it.

    Returns:
        The content of `summary.json`.

    Raises:
        FileNotFoundError: no data set.
        ValueError: no such split, or arguments out of range.
    """
    if clips < 1 or not seconds > 0 or (step_time is not None and not step_time > 0):
        raise ValueError(
            f"needs clips >= 1, seconds > 0, step_time > 0; got clips={clips}, seconds={seconds}, step_time={step_time}"
        )
    source = _open(data, split)
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    records = [source[int(index)] for index in np.linspace(0, len(source) - 1, min(clips, len(source)))]
    decoded = [decode_video(record["clip"], name=f"clip {n}")[0] for n, record in enumerate(records)]
    _draw_clips(output, decoded)
    captions = [record["caption"].decode() for record in records]
    (output / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    of_what, facts = _facts(data, records, decoded)
    draw_histograms(output / "histograms.png", of_what, facts)

    stored = {"frames": len(decoded[0]), "fps": float(records[0]["fps"]), "size": min(decoded[0].shape[1:3])}
    rate = measure_loader(source, batch_size=batch_size, threads=threads, seconds=seconds, **stored)
    summary = {
        "split": split,
        "clips": len(source),
        "stored": stored,
        of_what: {name: _spread(values) for name, values in facts.items()},
        "captions": captions,
        "loader": {"clips_per_second": rate, "threads": threads, "batch_size": batch_size},
    }
    if step_time:
        summary["loader"] |= {"step_time": step_time, "machines": machines_needed(batch_size, step_time, rate)}
    (output / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
    return summary


def measure_loader(
    source: Sequence[Record],
    *,
    frames: int,
    fps: float | int,
    size: int,
    batch_size: int,
    threads: int,
    seconds: float | int,
) -> float:
    """Clips per second that training's input pipeline gives, without the first batch.

    Args:
        source: the records.
        frames: per clip; likewise
        fps: and
        size: as training asks for them.
        batch_size: clips per batch.
        threads: that decode.
        seconds: to measure for.
    """
    batches = make_batches(
        source, batch_size=batch_size, frames=frames, fps=fps, size=size, seed=0, num_threads=threads
    )
    next(batches)  # sets up threads; the read-ahead that it leaves is at most two batches
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or not count:
        next(batches)
        count += batch_size
    return count / passed


def machines_needed(batch_size: int, step_time: float | int, clips_per_second: float) -> int:
    """How many machines like this one give `batch_size` clips every `step_time` seconds."""
    return math.ceil(batch_size / step_time / clips_per_second)


# Pictures --------------------------------------------------------------------------------------------------


def _draw_clips(output: pathlib.Path, clips: Sequence[np.ndarray]) -> None:
    side = min(_SHOWN_SIZE, *(side for clip in clips for side in clip.shape[1:3]))
    small = [center_crop_resize(clip, side) for clip in clips]
    write_contact_sheet(output / "contact_sheet.png", small, columns=_COLUMNS)
    scale = max(1, 64 // max(len(clip) for clip in clips))
    slices = [xt_slice(clip, scale=scale) for clip in small]
    height, gap = max(len(picture) for picture in slices), 4
    rows = []
    for start in range(0, len(slices), _COLUMNS):
        row = [np.pad(picture, ((0, height - len(picture)), (0, gap), (0, 0))) for picture in slices[start:][:_COLUMNS]]
        row += [np.zeros_like(row[0])] * (min(_COLUMNS, len(slices)) - len(row))
        rows.append(np.pad(np.concatenate(row, axis=1), ((0, gap), (0, 0), (0, 0))))
    Image.fromarray(np.concatenate(rows)).save(output / "xt_slices.png")


def draw_histograms(
    path: str | os.PathLike, title: str, facts: Mapping[str, Sequence[float | int]], bins: int = 20
) -> None:
    """Writes histograms as PNG, one below the other.

    Args:
        path: where.
        title: above them all.
        facts: values by their name.
        bins: bars in each.
    """
    width, height, margin = 640, 180, 24
    image = Image.new("RGB", (width, margin + height * len(facts)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((margin, 6), title, "black", font_size=14)
    for number, (name, values) in enumerate(facts.items()):
        values = np.asarray(values, np.float64)
        # Equal values have no width: a bar around them, rather than numpy's of width 1.
        low, high = values.min(), values.max()
        counts, edges = np.histogram(values, bins, (low, high) if high > low else (low * 0.95, high * 1.05 + 1e-9))
        bottom = margin + height * (number + 1) - 34
        for index, count in enumerate(counts):
            left = margin + index * (width - 2 * margin) / bins
            top = bottom - (height - 70) * count / counts.max()
            draw.rectangle((left, top, left + (width - 2 * margin) / bins - 2, bottom), "steelblue")
        draw.line((margin, bottom, width - margin, bottom), "black")
        draw.text((margin, bottom + 4), f"{edges[0]:.4g}", "black", font_size=12)
        draw.text((width - margin, bottom + 4), f"{edges[-1]:.4g}", "black", anchor="ra", font_size=12)
        facts_line = f"{name}: {len(values)}, median {np.median(values):.4g}, highest bar {counts.max()}"
        draw.text((margin, bottom - height + 42), facts_line, "black", font_size=12)
    image.save(path, format="PNG")


# Data ------------------------------------------------------------------------------------------------------


def _open(data: str | os.PathLike, split: str) -> Sequence[Record]:
    builder = open_prepared(data)
    if split not in builder.info.splits:
        raise ValueError(f"split={split!r}: {data} has {', '.join(sorted(builder.info.splits))}")
    missing = {"clip", "caption", "fps"} - set(builder.info.features)
    if missing:
        raise ValueError(f"data: records of {data} lack {', '.join(sorted(missing))}")
    return builder.as_data_source(split=split)


def _facts(
    data: str | os.PathLike, records: Sequence[Record], clips: Sequence[np.ndarray]
) -> tuple[str, dict[str, list[float]]]:
    report = read_report(data)
    if report is not None:
        videos = list(report["videos"].values())
        names = {"fps": "frames per second", "seconds": "length, s", "height": "height, px", "width": "width, px"}
        return "original videos", {name: [float(video[key]) for video in videos] for key, name in names.items()}
    return "clips shown", {
        "frames per second": [float(record["fps"]) for record in records],
        "length, s": [len(clip) / float(record["fps"]) for clip, record in zip(clips, records, strict=True)],
        "height, px": [float(clip.shape[1]) for clip in clips],
        "width, px": [float(clip.shape[2]) for clip in clips],
    }


def _spread(values: Sequence[float | int]) -> dict[str, float | int]:
    return {"count": len(values), "min": min(values), "median": float(np.median(values)), "max": max(values)}


# Command line ----------------------------------------------------------------------------------------------


def _show(summary: Mapping[str, Any], output: str | os.PathLike) -> str:
    loader, stored = summary["loader"], summary["stored"]
    lines = [
        f"{summary['clips']} clips of {stored['frames']} frames at {stored['fps']:g} fps, {stored['size']} px",
        *(f"  {caption[:110]}" for caption in summary["captions"]),
        f"loader: {loader['clips_per_second']:.1f} clips/s on this machine with {loader['threads']} threads",
    ]
    if "machines" in loader:
        lines.append(
            f"  {loader['batch_size']} clips every {loader['step_time']:g} s: {loader['machines']} such machine(s)"
        )
    return "\n".join([*lines, f"pictures: {output}"])


def define_flags() -> None:
    """The command line; defined by the entry point alone, so that several can be imported side by side."""
    flags.DEFINE_string("data", None, "The directory of the data set.", required=True)
    flags.DEFINE_string("output", None, "Where pictures go; default: inspection in the data set's directory.")
    flags.DEFINE_string("split", "train", "Of the data set.")
    flags.DEFINE_integer("clips", 8, "How many are shown.", 1)
    flags.DEFINE_integer("batch_size", 8, "Clips in the global batch of training.", 1)
    flags.DEFINE_integer("threads", os.cpu_count(), "That decode.", 1)
    flags.DEFINE_float("seconds", 10.0, "How long to read for the measurement.")
    flags.DEFINE_float("step_time", None, "Seconds of a training step, to say how many such machines feed it.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    output = FLAGS.output or os.path.join(FLAGS.data, "inspection")
    try:
        summary = inspect_data(
            FLAGS.data,
            output,
            split=FLAGS.split,
            clips=FLAGS.clips,
            batch_size=FLAGS.batch_size,
            threads=FLAGS.threads,
            seconds=FLAGS.seconds,
            step_time=FLAGS.step_time,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(_show(summary, output))


if __name__ == "__main__":
    define_flags()
    app.run(main)
