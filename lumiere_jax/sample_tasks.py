"""What `python -m lumiere_jax.sample --task=...` is given beside a prompt: flags and files to what samplers take.

    --task=text_to_video
    --task=image_to_video --image=FILE [--keyframe=INDEX:FILE ...]
    --task=inpaint        --video=FILE --mask=FILE
    --task=outpaint       --video=FILE --border=TOP,BOTTOM,LEFT,RIGHT
    --task=cinemagraph    --image=FILE --mask=FILE
    --task=edit           --video=FILE --strength=SHARE
    --task=stylize        --style=DIR [--alpha=SHARE,SHARE,...]

All between the first and the last two need a conditional model (configs/conditional.py), or --zero_shot.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags
from absl.flags import FLAGS

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.data.area_resizing import proportional_width
from lumiere_jax.data.task_inputs import frame_size, image_for, mask_for, video_for
from lumiere_jax.diffusion import condition
from lumiere_jax.diffusion.condition import Condition
from lumiere_jax.provenance.metadata import COMPOSITE, SOURCE_TYPE

# The flags that each task needs, and those that it may be given, too.
_TASKS: dict[str, tuple[set[str], set[str]]] = {
    "text_to_video": (set(), set()),
    "image_to_video": (set(), {"image", "keyframe", "zero_shot", "paste_known", "resample"}),
    "inpaint": ({"video", "mask"}, {"zero_shot", "paste_known", "resample"}),
    "outpaint": ({"video", "border"}, {"zero_shot", "paste_known", "resample"}),
    "cinemagraph": ({"image", "mask"}, {"zero_shot", "paste_known", "resample"}),
    "edit": ({"video", "strength"}, {"frame_by_frame"}),
    "stylize": ({"style"}, {"alpha"}),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked for beside prompts.

    Attributes:
      name: of `--task`.
      given: what of all clips is given, at the size of the largest.
      factor: how many times smaller the base clips are.
      original: the clip that is edited.
      strength: how much of it is changed, see `video_editing.py`.
      zero_shot, resample: see `conditional_generation.py`.
      paste_known: whether what is given is put into the result.
      frame_by_frame: whether each frame is edited by itself.
      alphas: shares of a style in the spatial layers: clips are made with each, see `stylized_generation.py`.
      files: where all came from, for people.
    """

    name: str = "text_to_video"
    given: Condition | None = None
    factor: int = 1
    original: np.ndarray | None = None
    strength: float | None = None
    zero_shot: bool = False
    resample: int = 1
    paste_known: bool = False
    frame_by_frame: bool = False
    alphas: tuple[float, ...] = ()
    files: dict[str, Any] = dataclasses.field(default_factory=dict)

    def given_at(self, size: tuple[int, int]) -> Condition | None:
        """What is given of clips of `size` (height, width)."""
        if self.given is None or self.given.mask.shape[1:3] == size:
            return self.given
        return condition.resized(self.given, *size)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the base clips; None where nothing says it."""
        video = self.original if self.given is None else self.given.mask
        return None if video is None else (video.shape[1] // self.factor, video.shape[2] // self.factor)

    def choices(self) -> dict[str, Any]:
        """Arguments of `sample_videos`."""
        if self.original is not None:
            return {"original": self.original, "start": self.strength}
        if self.given is None:
            return {}
        return {"given": self.given_at(self.size), "zero_shot": self.zero_shot, "resample": self.resample}

    def facts(self) -> dict[str, Any]:
        """For the clips' sidecars."""
        names = ("strength", "zero_shot", "resample", "paste_known", "frame_by_frame")
        choices = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Task, name)}
        # Pixels that were given are in the clip, or below it.
        source = {} if self.given is None and self.original is None else {SOURCE_TYPE: COMPOSITE}
        return {"task": self.name, **self.files, **choices, **source}


def define_task_flags() -> None:
    """What is given beside the prompt."""
    flags.DEFINE_enum(
        "task", "text_to_video", list(_TASKS), "What to make; each task needs flags of those that follow."
    )
    flags.DEFINE_string("image", None, "Of image_to_video: the first frame. Of cinemagraph: the still image.")
    flags.DEFINE_multi_string(
        "keyframe", [], "Of image_to_video: INDEX:FILE, an image for another frame, from 0 on; may be repeated."
    )
    flags.DEFINE_string(
        "video", None, "Of inpaint, outpaint and edit: a video; its first frames are taken, at the model's rate."
    )
    flags.DEFINE_string(
        "mask",
        None,
        "Of inpaint and cinemagraph: an image (or, of inpaint, a video) as large as the other, white (or transparent) "
        "where the model makes new pixels.",
    )
    flags.DEFINE_list(
        "border", None, "Of outpaint: TOP,BOTTOM,LEFT,RIGHT, the shares of the result's height and width that are new."
    )
    flags.DEFINE_float("strength", None, "Of edit: from 0, which changes nothing, to 1, which keeps nothing.")
    flags.DEFINE_string("style", None, "Of stylize: the --workdir of a style's training (configs/style.py).")
    flags.DEFINE_list(
        "alpha",
        ["0", "0.5", "0.75", "1"],
        "Of stylize: shares of the style in the spatial layers; each makes clips. Paper: 0.5 to 1; 0 is none of it.",
    )
    flags.DEFINE_bool("frame_by_frame", False, "Of edit: each frame by itself, with the image model.")
    flags.DEFINE_bool("zero_shot", False, "Replace what is given at every step, where the model is no conditional one.")
    flags.DEFINE_integer(
        "resample", 1, "With --zero_shot: how often each step is taken, so that the rest agrees with what is given.", 1
    )
    flags.DEFINE_bool("paste_known", False, "Put what is given into the result, which else comes near to it only.")


def check_task_flags() -> None:
    """Raises a ValueError for flags that the task lacks, or that it has no use for; before anything is loaded."""
    needed, possible = _TASKS[FLAGS.task]
    known = set().union(*(flags_of for both in _TASKS.values() for flags_of in both))
    given = {name for name in known if FLAGS[name].value != FLAGS[name].default}
    if missing := sorted(needed - given):
        raise ValueError(f"--task={FLAGS.task} needs --{' and --'.join(missing)}")
    if FLAGS.task == "image_to_video" and not given & {"image", "keyframe"}:
        raise ValueError("--task=image_to_video needs --image, or --keyframe")
    if useless := sorted(given - needed - possible):
        raise ValueError(f"--{useless[0]} says nothing to --task={FLAGS.task}")
    if FLAGS.task not in ("text_to_video", "stylize") and FLAGS.width is not None:
        raise ValueError(f"--width={FLAGS.width}: --task={FLAGS.task} takes it from the files; give --height alone")
    if FLAGS.task == "stylize":
        _alphas()
        if FLAGS.int8:
            raise ValueError("--int8 does not go with --task=stylize, which mixes kernels as they were trained")
    if FLAGS.strength is not None and not 0.0 < FLAGS.strength <= 1.0:
        raise ValueError(f"--strength={FLAGS.strength}: give a share above 0, and at most 1")


def read_task(run: Run, *, frames: int, height: int, factor: int = 1) -> Task:
    """The task that the flags ask for, with its files read, at the size that clips are made in.

    Args:
      run: whose clips' rate is taken.
      frames: of a clip.
      height: of a base clip; its width is what the files' proportions make it.
      factor: by which super-resolution enlarges them: what is given is read at the size of the largest clips.

    Raises:
      ValueError: files that do not fit, or the task.
      FileNotFoundError: one is missing.
    """
    fps, name = run.config.clip.fps, FLAGS.task
    if name == "text_to_video":
        return Task()
    if name == "stylize":
        return Task(name, alphas=_alphas(), files={"style": FLAGS.style})
    files = {flag: FLAGS[flag].value for flag in ("image", "keyframe", "video", "mask", "border") if FLAGS[flag].value}
    of_video = {"frames": frames, "fps": fps}
    if name == "edit":
        size = (height, proportional_width(frame_size(FLAGS.video), height))
        original = video_for(FLAGS.video, size=size, **of_video)
        return Task(name, original=original, strength=FLAGS.strength, frame_by_frame=FLAGS.frame_by_frame, files=files)
    if name == "image_to_video":
        given = condition.keyframes(_keyframes(height, factor), frames)
    elif name == "outpaint":
        given = surrounded(FLAGS.video, _border(FLAGS.border), height=height, factor=factor, **of_video)
    else:
        of = frame_size(FLAGS.video if name == "inpaint" else FLAGS.image)
        size = _large(of, height, factor)
        mask = mask_for(FLAGS.mask, size=size, of=of, **of_video)
        if name == "inpaint":
            given = condition.inpainting(video_for(FLAGS.video, size=size, **of_video), mask)
        else:
            given = condition.cinemagraph(image_for(FLAGS.image, size), mask, frames)
    return Task(
        name,
        given,
        factor=factor,
        zero_shot=FLAGS.zero_shot,
        resample=FLAGS.resample,
        paste_known=FLAGS.paste_known,
        files=files,
    )


def _large(size: tuple[int, int], height: int, factor: int) -> tuple[int, int]:
    """(height, width) of the largest clip, for a file of `size`, where the base clip has this height."""
    return factor * height, factor * proportional_width(size, height)


def _keyframes(height: int, factor: int) -> dict[int, np.ndarray]:
    files = {0: FLAGS.image} if FLAGS.image else {}
    for index, file in map(_keyframe, FLAGS.keyframe):
        if index in files:
            raise ValueError(f"--keyframe={index}:{file}: frame {index} is given already")
        files[index] = file
    return {index: image_for(file, _large(frame_size(file), height, factor)) for index, file in files.items()}


def _alphas() -> tuple[float, ...]:
    try:
        alphas = tuple(map(float, FLAGS.alpha))
    except ValueError:
        alphas = ()
    if not alphas or not all(0.0 <= alpha <= 1.0 for alpha in alphas) or len(set(alphas)) < len(alphas):
        raise ValueError(f"--alpha={','.join(FLAGS.alpha)}: give different shares from 0 to 1, such as 0.5,0.75,1")
    return alphas


def _keyframe(argument: str) -> tuple[int, str]:
    index, _, file = argument.partition(":")
    if not index.isdecimal() or not file:
        raise ValueError(f"--keyframe={argument}: give INDEX:FILE, such as 15:last.png")
    return int(index), file


def _border(words: list[str]) -> dict[str, float]:
    try:
        top, bottom, left, right = map(float, words)
    except ValueError:
        raise ValueError(f"--border={','.join(words)}: give four shares, TOP,BOTTOM,LEFT,RIGHT") from None
    if min(top, bottom, left, right) < 0 or top + bottom >= 1 or left + right >= 1:
        raise ValueError(
            f"--border={','.join(words)}: give shares from 0, less than 1 from top to bottom, left to right"
        )
    return {"top": top, "bottom": bottom, "left": left, "right": right}


def surrounded(
    path: str | os.PathLike[str],
    borders: Mapping[str, float | int],
    *,
    frames: int,
    fps: float | int,
    height: int,
    factor: int,
) -> Condition:
    """A video inside of a clip of that height, all of it enlarged by `factor`.

    Args:
      path: of the video.
      borders: shares of the clip's height (`top`, `bottom`) and width (`left`, `right`) that are new.
      frames, fps: of the clip.
      height: in pixels, before it is enlarged.
      factor: by which.

    Raises:
      FileNotFoundError, ValueError: as `video_for`, or there are no borders.
    """
    above, below = round(borders["top"] * height), round(borders["bottom"] * height)
    inside = max(1, height - above - below)
    width = proportional_width(frame_size(path), inside)
    whole = width / (1.0 - borders["left"] - borders["right"])
    pixels = {"top": above, "bottom": below} | {side: round(borders[side] * whole) for side in ("left", "right")}
    video = video_for(path, frames=frames, fps=fps, size=(factor * inside, factor * width))
    return condition.outpainting(video, **{side: factor * count for side, count in pixels.items()})
