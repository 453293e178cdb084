"""Motion and style over alpha, the share of a style in the spatial layers (paper section 4.1).

    python -m benchmarks.style_alpha --checkpoint=STUNET --style=STYLE --images=IMAGES [--clips=8] [--output=DIR]

For each alpha the same prompts with the same noise. Motion is the mean squared difference of neighbouring frames, as it
is and after each frame's mean colour is taken away (a clip that flickers is no moving one); style is the distance of
patches to those of the images (lumiere_jax/evaluation/style_distance.py). The distance between two halves of the images
says how near one could come. Writes

    style_alpha.json    all of it
    style_alpha.png     both over alpha
    style_clips.png     a row of four frames of one clip for each alpha
"""

import json
import pathlib
import sys
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import tqdm
from absl import app, flags, logging
from absl.flags import FLAGS

from benchmarks.machine import machine
from lumiere_jax.checkpoints.checkpointing import CheckpointError
from lumiere_jax.checkpoints.trained_run import Run, load_run
from lumiere_jax.data import moving_shapes
from lumiere_jax.data.clip_sampling import center_crop_resize
from lumiere_jax.data.task_inputs import is_image, read_image
from lumiere_jax.data.video_io import to_float
from lumiere_jax.distributed import platform
from lumiere_jax.evaluation.seams import neighbour_mse
from lumiere_jax.evaluation.style_distance import style_distance
from lumiere_jax.pipelines.results import write_sheet
from lumiere_jax.pipelines.stylized_generation import check_style, stylized
from lumiere_jax.pipelines.text_to_video import sample_videos

VERSIONS = ("jax", "jaxlib", "flax", "numpy")


def read_images(path: pathlib.Path, size: int) -> np.ndarray:
    """Style images [images, size, size, 3] in [-1, 1], as their training saw them before it took parts of them.

    Raises:
      ValueError: there is none.
    """
    files = [path] if path.is_file() else sorted(filter(is_image, path.glob("*")))
    if not files:
        raise ValueError(f"--images={path}: there is no image")
    return np.stack([to_float(center_crop_resize(read_image(file)[None], size, file.name)[0]) for file in files])


def measure(
    run: Run, style: Run, images: np.ndarray, prompts: Sequence[str], alphas: Sequence[float]
) -> tuple[list[dict], list[np.ndarray]]:
    """A row of values for each alpha, and of each the first clip."""
    rows, shown = [], []
    for alpha in tqdm.tqdm(alphas, unit="alpha"):
        videos = sample_videos(stylized(run, style, alpha), prompts)
        level = videos - videos.mean((2, 3), keepdims=True)
        rows.append(
            {
                "alpha": alpha,
                "motion": float(np.mean([neighbour_mse(video).mean() for video in videos])),
                "motion without flicker": float(np.mean([neighbour_mse(video).mean() for video in level])),
                "style distance": float(np.mean([style_distance(video, images) for video in videos])),
            }
        )
        shown.append(videos[0])
    return rows, shown


def plot(rows: Sequence[dict], nearest: float, path: pathlib.Path) -> None:
    """Motion and style distance over alpha."""
    alphas = [row["alpha"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for name in ("motion", "motion without flicker"):
        left.plot(alphas, [row[name] for row in rows], marker="o", label=name)
    right.plot(alphas, [row["style distance"] for row in rows], marker="o", label="clips to style images")
    right.axhline(nearest, linestyle="--", color="grey", label="halves of the style images")
    for axis, label in ((left, "neighbouring frames: mean squared difference"), (right, "distance of patches")):
        axis.set(xlabel="alpha", ylabel=label, ylim=(0, None))
        axis.axvspan(0.5, 1.0, color="grey", alpha=0.1)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("checkpoint", None, "The --workdir of a Space-Time U-Net's training on moving_shapes.")
    flags.DEFINE_string("style", None, "The --workdir of a style's training.")
    flags.DEFINE_string("images", None, "What it was trained on: an image, or a folder of images.")
    flags.DEFINE_list("alphas", [f"{alpha:g}" for alpha in np.linspace(0, 1, 9)], "Shares of the style.")
    flags.DEFINE_integer("clips", 8, "For each alpha.", 1)
    flags.DEFINE_string("output", "workdir/style_alpha", "Values and pictures.")


def main(_argv: list[str]) -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    facts = machine(VERSIONS)
    try:
        run, style = load_run(FLAGS.checkpoint), load_run(FLAGS.style)
        check_style(run, style)
        images = read_images(pathlib.Path(FLAGS.images), style.config.clip.crop_from)
        alphas = list(map(float, FLAGS.alphas))
    except (CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    clip = run.config.clip
    prompts = [caption for caption, _ in moving_shapes.prompts(FLAGS.clips, 0, True, duration=clip.frames / clip.fps)]
    nearest = style_distance(*np.array_split(images, 2, axis=2))
    rows, shown = measure(run, style, images, prompts, alphas)
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    values = {"alphas": rows, "halves of the style images": nearest, "prompts": prompts, "machine": facts}
    (output / "style_alpha.json").write_text(json.dumps(values, indent=1) + "\n")
    plot(rows, nearest, output / "style_alpha.png")
    write_sheet(output / "style_clips.png", shown, "shares of a style", {"measured": rows}, columns=4)
    for row in rows:
        print("  ".join(f"{name} {value:.4f}" for name, value in row.items()))
    print(
        f"halves of the style images: {nearest:.4f}\n{output / 'style_clips.png'}: a row for each alpha: {prompts[0]!r}"
    )


if __name__ == "__main__":
    platform.configure()
    define_flags()
    flags.mark_flags_as_required(["checkpoint", "style", "images"])
    app.run(main)
