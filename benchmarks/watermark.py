"""How surely the watermark is found again after what happens to clips, and what it costs (lumiere_jax/provenance/).

    python -m benchmarks.watermark [--videos=DIR] [--clips=8] [--sizes=64,128,256] [--output=DIR]

Clips of 16 frames at 8 fps, of each size: rendered ones of `moving_shapes`, and with `--videos` the central squares of
real ones, each file cut into clips that do not overlap. All are marked with the public key, changed, and looked at; so
are the clips as they were, with the same key and with others. Writes

    watermark.json    shares of clips with their Wilson intervals, by clips, size and change; PSNR and SSIM; p-values
    watermark.md      the same as tables
    watermark.png     the shares
    change.png        of a clip of each kind a frame, the marked one, and their difference times 20
"""

import functools
import itertools
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.figure
import numpy as np
import scipy.ndimage
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS
from PIL import Image

from benchmarks.overfit import psnr
from lumiere_jax.data.area_resizing import resized_image
from lumiere_jax.data.clip_sampling import sample_by_time
from lumiere_jax.data.moving_shapes import prompts, render
from lumiere_jax.data.video_io import (
    VideoError,
    decode_video,
    encode_mp4,
    frame_to_rgb,
    open_video,
    to_float,
    to_uint8,
    write_contact_sheet,
    write_gif,
)
from lumiere_jax.evaluation.intervals import mean, share
from lumiere_jax.provenance.watermark import Watermark
from lumiere_jax.provenance.watermark_detection import detect_in_frames

FRAMES, FPS = 16, 8
PER_FILE = 3  # clips of a real video: more of the same scene say little more
OTHER_KEYS = 4
Change = Callable[[np.ndarray], np.ndarray]


# What happens to clips -------------------------------------------------------------------------------------


def h264(video: np.ndarray, crf: int) -> np.ndarray:
    """Encoded once more."""
    return decode_video(encode_mp4(video, FPS, crf=crf))[0]


def resized(video: np.ndarray, factor: float) -> np.ndarray:
    """At another size, as players and web sites do it."""
    size = [round(side * factor) for side in video.shape[2:0:-1]]
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in video])


def cropped(video: np.ndarray, part: float, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """A part of both sides, from `place` on: (0, 0) is the upper left corner, (1, 1) the lower right."""
    sides = [round(side * part) for side in video.shape[1:3]]
    top, left = (round((old - new) * at) for old, new, at in zip(video.shape[1:3], sides, place, strict=True))
    return video[:, top : top + sides[0], left : left + sides[1]]


def as_gif(video: np.ndarray) -> np.ndarray:
    """With a palette of 256 colours."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "clip.gif")
        write_gif(path, video, FPS)
        return decode_video(path)[0]


def changes() -> dict[str, Change]:
    """By name."""
    found: dict[str, Change] = {"none": lambda video: video}
    found |= {f"H.264 crf {crf}": functools.partial(h264, crf=crf) for crf in (18, 23, 28, 35)}
    found |= {f"resize {factor:g}": functools.partial(resized, factor=factor) for factor in (0.5, 0.75, 1.5)}
    for part, (name, place) in itertools.product((0.9, 0.75, 0.5), (("centre", (0.5, 0.5)), ("corner", (0.9, 0.1)))):
        found[f"crop {part:.0%} {name}"] = functools.partial(cropped, part=part, place=place)
    found["resize 0.5, crf 23"] = lambda video: h264(resized(video, 0.5), 23)
    found["crop 75% corner, crf 28"] = lambda video: h264(cropped(video, 0.75, (0.9, 0.1)), 28)
    found["GIF"] = as_gif
    found["one frame"] = lambda video: video[:1]
    return found


# Clips -----------------------------------------------------------------------------------------------------


def rendered_clips(count: int, size: int) -> list[np.ndarray]:
    """Clips of `moving_shapes`, uint8."""
    scenes = itertools.islice(prompts(count, 0, duration=FRAMES / FPS), count)
    return [render(scene, size, FRAMES, FPS) for _, scene in scenes]


def real_clips(files: list[pathlib.Path], size: int) -> list[np.ndarray]:
    """The central squares of videos, cut into clips, uint8; files that cannot be read are named, and left out."""
    found = []
    for file in files:
        try:
            found += list(_cut(file, size))[:PER_FILE]
        except VideoError as error:
            print(f"left out: {error}")
    return found


def _cut(file: pathlib.Path, size: int) -> Iterator[np.ndarray]:
    with open_video(file) as video:
        images = map(frame_to_rgb, sample_by_time(video.frames, (index / FPS for index in itertools.count())))
        squares = (resized_image(to_float(_square(image)), size, size) for image in images)
        while len(clip := list(itertools.islice(squares, FRAMES))) == FRAMES:
            yield to_uint8(np.stack(clip))


def _square(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


# Measures --------------------------------------------------------------------------------------------------


def ssim(video: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of the luminance (Wang et al., 2004), of uint8."""
    x, y = (each.astype(np.float64) @ [0.2126, 0.7152, 0.0722] for each in (video, other))
    smooth = functools.partial(scipy.ndimage.gaussian_filter, sigma=(0, 1.5, 1.5))
    mean_x, mean_y = smooth(x), smooth(y)
    variances = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    low, high = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + low) * (2 * covariance + high)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + low) * (variances + high))))


def measured(clips: list[np.ndarray], name: str) -> dict[str, Any]:
    """What is found in marked, changed clips; what it costs; and what is found where there is no mark."""
    found: dict[str, list[bool]] = {}
    quality: dict[str, list[float]] = {"PSNR": [], "SSIM": []}
    unmarked = []
    for clip in tqdm.tqdm(clips, unit="clip", desc=name):
        marked = np.stack([Watermark().marked(image) for image in clip])
        quality["PSNR"].append(psnr(to_float(clip), to_float(marked)))
        quality["SSIM"].append(ssim(clip, marked))
        for change, apply in changes().items():
            found.setdefault(change, []).append(detect_in_frames(apply(marked)).found)
        unmarked.append(detect_in_frames(clip).log10_p)
        unmarked.append(detect_in_frames(h264(clip, 28)).log10_p)
        unmarked += [detect_in_frames(marked, f"key {number}").log10_p for number in range(OTHER_KEYS)]
    return {
        "clips": len(clips),
        "found": {change: share(answers) for change, answers in found.items()},
        "quality": {measure: mean(np.array(values)) | {"least": min(values)} for measure, values in quality.items()},
        "without mark": {
            "looks": len(unmarked),
            **{f"p < 1e-{digits}": share([log10_p < -digits for log10_p in unmarked]) for digits in (1, 2, 6)},
            "least log10 p": min(unmarked),
        },
    }


# Tables and pictures ---------------------------------------------------------------------------------------


def tables(results: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    head = "| | " + " | ".join(f"{name} ({row['clips']} clips)" for name, row in results.items()) + " |"
    lines = [head, "|---" * (1 + len(results)) + "|"]
    for measure in ("PSNR", "SSIM"):
        of_each = (row["quality"][measure] for row in results.values())
        cells = (f"{each['mean']:.4g} (least {each['least']:.4g})" for each in of_each)
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    for change in next(iter(results.values()))["found"]:
        lines.append(f"| {change} | {' | '.join(_percent(row['found'][change]) for row in results.values())} |")
    for level in ("p < 1e-1", "p < 1e-2", "p < 1e-6"):
        cells = (_percent(row["without mark"][level]) for row in results.values())
        lines.append(f"| no mark: {level} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(found: dict[str, float]) -> str:
    return f"{found['accuracy']:.1%} ({found['low']:.1%} to {found['high']:.1%})"


def draw(results: dict[str, dict[str, Any]]) -> matplotlib.figure.Figure:
    """Shares with their intervals, a panel for each kind of clips."""
    kinds = list(dict.fromkeys(name.split(",")[0] for name in results))
    figure = matplotlib.figure.Figure(figsize=(4.6 * len(kinds) + 1.6, 5.6), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        rows = {name: row for name, row in results.items() if name.startswith(kind)}
        for number, (name, row) in enumerate(rows.items()):
            values = list(row["found"].values())
            places = np.arange(len(values)) + 0.25 * (number - (len(rows) - 1) / 2)
            rates = np.array([each["accuracy"] for each in values])
            errors = np.abs(np.array([[each["low"], each["high"]] for each in values]).T - rates)
            panel.errorbar(rates, places, xerr=errors, fmt="o", markersize=4, label=name.split(", ")[1])
        panel.set(title=kind, xlabel="share of clips in which it is found", xlim=(-0.02, 1.02))
        panel.set_yticks(range(len(values)), list(row["found"]))
        panel.grid(alpha=0.3)
    panels[0].invert_yaxis()
    panels[-1].legend(loc="lower left")
    return figure


def show_change(clips: dict[str, np.ndarray], file: pathlib.Path) -> None:
    """For each kind: a frame, the marked one, and their difference times 20."""
    rows = []
    for clip in clips.values():
        marked = Watermark().marked(clip[0])
        rows.append(np.stack([clip[0], marked, to_uint8((marked.astype(np.float32) - clip[0]) * 20 / 127.5)]))
    write_contact_sheet(file, rows)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_integer("clips", 8, "Rendered clips of each size.", 1)
    flags.DEFINE_string("videos", None, "A folder of real videos.")
    flags.DEFINE_list("sizes", ["64", "128", "256"], "Pixels of a side.")
    flags.DEFINE_string("output", "workdir/watermark", "Values and pictures.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    kinds = {"rendered": functools.partial(rendered_clips, FLAGS.clips)}
    if FLAGS.videos:
        kinds["real"] = functools.partial(real_clips, sorted(pathlib.Path(FLAGS.videos).iterdir()))
    results, shown = {}, {}
    for kind, size in itertools.product(kinds, map(int, FLAGS.sizes)):
        clips = kinds[kind](size=size)
        results[f"{kind}, {size} pixels"] = measured(clips, f"{kind}, {size} pixels")
        shown[kind] = clips[0]
        (output / "watermark.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "watermark.md").write_text(tables(results) + "\n")
    print(tables(results))
    draw(results).savefig(output / "watermark.png", dpi=110)
    show_change(shown, output / "change.png")


if __name__ == "__main__":
    define_flags()
    app.run(main)
