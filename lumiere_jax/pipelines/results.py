"""What is written of a clip: mp4, gif, contact sheet, X-T slice, and a sidecar that says where it came from."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from lumiere_jax.checkpoints.checkpointing import tree_hash
from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.data import video_io
from lumiere_jax.evaluation.xt_slice import write_xt_slice
from lumiere_jax.models.int8_weights import Int8
from lumiere_jax.provenance.marks import Marks
from lumiere_jax.provenance.metadata import file_metadata, provenance

Videos = Float[np.ndarray, "prompts frames height width 3"]


# Animated GIFs and contact sheets show frames at most so wide or high, which browsers and people can take in.
_SHOWN_SIZE = 256
NO_MARKS = Marks()


@contextlib.contextmanager
def open_video_files(
    directory: str | os.PathLike[str], name: str, fps: float, sidecar: Mapping[str, Any], marks: Marks = NO_MARKS
) -> Iterator[Callable[[Float[np.ndarray, "height width 3"]], None]]:
    """Files `name`.mp4, .gif, _sheet.png, _xt.png and .json in `directory`, for a clip whose frames come one by one.

    The mp4 is written as they come, the rest when the block ends; gif and sheet show frames of more than 256 pixels
    reduced. After an error there is no file.

    Args:
      directory: made where missing.
      name: of the files, without suffix.
      fps: frames per second.
      sidecar: what to say of the clip's making, also in each file's own metadata (see `provenance`).
      marks: watermark and signature.

    Returns:
      a function that takes the next frame, in [-1, 1].
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    mp4, gif, sheet, xt, sidecar_file = video_files(directory, name)
    title, facts = str(sidecar.get("prompt", name)), provenance(sidecar) | marks.facts()
    metadata = file_metadata(title, facts)
    shown, lines, digest = [], [], hashlib.sha256()
    with video_io.open_mp4(mp4, fps, metadata=metadata) as add_to_mp4:

        def add(image: np.ndarray) -> None:
            image = marks.on_frame(video_io.to_uint8(image))
            add_to_mp4(image)
            digest.update(image.tobytes())
            lines.append(image[image.shape[0] // 2])
            factor = -(-max(image.shape[:2]) // _SHOWN_SIZE)
            shown.append(image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor)))

        yield add
    video_io.write_gif(gif, np.stack(shown), fps, metadata)
    video_io.write_contact_sheet(sheet, np.stack(shown), metadata=metadata)
    write_xt_slice(xt, np.stack(lines)[:, None], scale=max(1, lines[0].shape[0] // len(lines)), metadata=metadata)
    facts |= marks.check(mp4) | {"sha256 of pixels": digest.hexdigest()}
    for file in (mp4, gif, sheet, xt):
        marks.sign(file, title, facts)
    sidecar_file.write_text(json.dumps(facts, indent=2) + "\n")


def video_files(directory: str | os.PathLike[str], name: str) -> list[pathlib.Path]:
    """The files of a clip, as `open_video_files` names them; the mp4 is the first."""
    return [pathlib.Path(directory, name + end) for end in (".mp4", ".gif", "_sheet.png", "_xt.png", ".json")]


def write_video(
    directory: str | os.PathLike[str],
    name: str,
    video: Float[np.ndarray, "frames height width 3"],
    fps: float,
    sidecar: Mapping[str, Any],
    marks: Marks = NO_MARKS,
) -> list[pathlib.Path]:
    """Writes the files of a clip in [-1, 1], and returns them; the other arguments as of `open_video_files`."""
    with open_video_files(directory, name, fps, sidecar, marks) as add:
        for image in video:
            add(image)
    return video_files(directory, name)


def write_sheet(
    file: str | os.PathLike[str],
    clips: Sequence[video_io.Frames],
    title: str,
    settings: Mapping[str, Any],
    marks: Marks = NO_MARKS,
    columns: int = 8,
) -> None:
    """Writes a contact sheet of generated clips, one above the other, with metadata and signature; it has no watermark.

    Args:
      file: where to write.
      clips: of one size.
      title: such as the prompt.
      settings: how they were made, see `provenance`.
      marks: of these the signature.
      columns: frames of each clip.
    """
    facts = provenance(settings)
    video_io.write_contact_sheet(file, clips, columns, file_metadata(title, facts))
    marks.sign(file, title, facts)


def file_name(number: int, prompt: str) -> str:
    """`003_a_small_red_circle`: letters and digits of the prompt alone."""
    return f"{number:03d}_" + (re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60] or "empty_prompt")


def description(run: Run) -> dict[str, Any]:
    """What a sidecar says of a run: where it lies, how far it is trained, and the SHA-256 of its parameters."""
    kernel = run.model.unet.conv_out.kernel.get_value()
    kernels = "int8" if isinstance(kernel, Int8) else str(kernel.dtype)
    facts = {"path": str(run.path), "name": run.config.name, "step": run.step}
    return facts | {"kernels": kernels, "sha256": tree_hash(run.parameters())}


def library_versions() -> dict[str, str]:
    """The libraries that decide a clip's pixels."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", "av")}


def write_preview(directory: str | os.PathLike[str], run: Run, prompts: Sequence[str], videos: Videos) -> pathlib.Path:
    """Writes what a run generates at its present step: each clip, and `sheet.png` of all; returns where."""
    step_directory = pathlib.Path(directory) / f"step_{run.step:06d}"
    for number, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        write_video(step_directory, file_name(number, prompt), video, run.config.clip.fps, {"prompt": prompt})
    facts = {"prompts": list(prompts), "name": run.config.name, "step": run.step}
    write_sheet(step_directory / "sheet.png", list(videos), f"step {run.step}", facts)
    return step_directory
