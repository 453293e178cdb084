"""What each protocol measures: for which prompts clips are generated, and which real clips they are held against.

moving_shapes       prompts whose scene is known, against clips rendered from these scenes
ucf101_zero_shot    a sentence for each class of UCF101, in turn, against its training videos (paper Table 1)
folder              clips that are there already, against others
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence

from lumiere_jax.data import moving_shapes as shapes
from lumiere_jax.data.shapes_scene import Scene
from lumiere_jax.data.ucf101_prompts import PROMPTS
from lumiere_jax.data.video_io import to_float
from lumiere_jax.evaluation.clip_files import find_clips, read_clip
from lumiere_jax.evaluation.measures import Row
from lumiere_jax.evaluation.protocol import sha256_of_files

# Google's protocol that is documented best (VideoPoet, arXiv 2312.14125): the paper does not tell its own.
UCF101_CLIPS, UCF101_FRAMES, UCF101_FPS = 10_000, 16, 25.0


@dataclasses.dataclass(frozen=True)
class Material:
    """What is asked of a model, and what its clips are held against.

    Attributes:
      name: of the protocol.
      prompts: one for each clip of a repeat; none for clips without.
      prompts_from: where they are from.
      scenes: what the clips should show, where that is known.
      reference: real clips; None: there are none.
      reference_from: where they are from.
      reference_fps: at which they are seen; None: each at its own.
      reference_sha256: of their files' names and sizes.
    """

    name: str
    prompts: Sequence[str]
    prompts_from: str
    scenes: Sequence[Scene] | None = None
    reference: Row | None = None
    reference_from: str = ""
    reference_fps: float | None = None
    reference_sha256: str = ""


def moving_shapes(
    *, clips: int, seed: int, held_out: bool, two_objects: bool = False, frames: int, fps: float, size: int
) -> Material:
    """Prompts whose scene is known.

    Args:
      clips: how many prompts.
      seed: of the prompts.
      held_out: combinations of attributes that the training split does not have.
      two_objects: in each scene, rather than one.
      frames, fps, size: of the clips that the scenes are rendered to.

    Raises:
      ValueError: clips too short for motion to be read from them.
    """
    if frames < 4:
        raise ValueError(f"the model makes {frames} frames: motion cannot be read from fewer than 4")
    pairs = shapes.prompts(clips, seed, held_out, duration=frames / fps, two_objects=two_objects)
    prompts, scenes = zip(*pairs, strict=True)
    rendered = [functools.partial(_rendered, scene, size, frames, fps) for scene in scenes]
    of_split = "held-out combinations" if held_out else "combinations of the training split"
    of_split = f"two objects, {of_split}" if two_objects else of_split
    return Material(
        "moving_shapes",
        prompts,
        f"moving_shapes, {of_split}, seed {seed}",
        scenes,
        Row("rendered", [rendered], fps),
        "rendered from the prompts' scenes",
        fps,
    )


def _rendered(scene: Scene, size: int, frames: int, fps: float) -> object:
    return to_float(shapes.render(scene, size, frames, fps))


def ucf101_zero_shot(
    videos: str | os.PathLike[str] | None, *, clips: int, frames: int, size: tuple[int, int]
) -> Material:
    """A sentence for each class of UCF101, in turn.

    Args:
      videos: the directory of UCF101's training videos; None: the clips are held against none.
      clips: how many are generated, and how many real ones they are held against, if there are so many.
      frames: the central ones of each.
      size: of the real clips, (height, width).

    Raises:
      OSError: as `find_clips`.
    """
    sentences = list(PROMPTS.values())
    prompts = [sentences[number % len(sentences)] for number in range(clips)]
    prompts_from = "a sentence of this project for each class of UCF101, in turn"
    if videos is None:
        return Material("ucf101_zero_shot", prompts, prompts_from)
    return Material(
        "ucf101_zero_shot",
        prompts,
        prompts_from,
        None,
        *_real_clips(videos, "*", clips, frames, UCF101_FPS, size),
    )


def folder(
    generated: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None,
    *,
    pattern: str,
    clips: int | None,
    frames: int,
    fps: float | None,
    size: tuple[int, int],
) -> tuple[Row, Material]:
    """Clips that are there already.

    Args:
      generated: their directory.
      reference: the directory of real ones; None: they are held against none.
      pattern: of the generated ones' names.
      clips: at most so many of each; None: all.
      frames: the central ones of each.
      fps: at which both are seen; None: each at its own.
      size: (height, width) of both.

    Returns:
      the generated ones; and their prompts, where each has a sidecar that tells its own, and the real ones.

    Raises:
      OSError: as `find_clips`.
    """
    files = find_clips(generated, pattern, clips)
    row = _row_of("generated", files, frames, fps, size)
    sidecars = [file.with_suffix(".json") for file in files]
    facts = [json.loads(each.read_text(encoding="utf-8")) if each.exists() else {} for each in sidecars]
    prompts = [each["prompt"] for each in facts if "prompt" in each]
    # The score of some clips alone would be another measure under the same name.
    prompts, source = (prompts, "the clips' sidecars") if len(prompts) == len(files) else ([], "")
    if reference is None:
        return row, Material("folder", prompts, source)
    return row, Material("folder", prompts, source, None, *_real_clips(reference, "*", clips, frames, fps, size))


def _real_clips(
    directory: str | os.PathLike[str],
    pattern: str,
    clips: int | None,
    frames: int,
    fps: float | None,
    size: tuple[int, int],
) -> tuple[Row, str, float | None, str]:
    """The last four fields of a `Material`."""
    files = find_clips(directory, pattern, clips)
    of_files = "all" if clips is None else f"at most {clips}, evenly among sorted names"
    row = _row_of("real", files, frames, fps, size)
    return row, f"a directory of videos: {of_files}", fps, sha256_of_files(files, pathlib.Path(directory))


def _row_of(
    name: str, files: Sequence[pathlib.Path], frames: int, fps: float | None, size: tuple[int, int] | None
) -> Row:
    read = [functools.partial(read_clip, file, frames=frames, fps=fps, size=size) for file in files]
    return Row(name, [read], fps or 1.0)
