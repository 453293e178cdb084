"""What the page (app.py) makes of what people enter: one function for each tab, from form to run and task.

Nothing here knows of the page: what a form lacks is a ValueError, whose text is for people.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.data.area_resizing import proportional_width, resized_region
from lumiere_jax.data.task_inputs import frame_size, image_for, video_for
from lumiere_jax.diffusion import condition
from lumiere_jax.pipelines.results import file_name, write_sheet
from lumiere_jax.pipelines.stylized_generation import check_style, stylized
from lumiere_jax.pipelines.super_resolution import whole_factor
from lumiere_jax.pipelines.text_to_video import OnPrediction
from lumiere_jax.sample import sample
from lumiere_jax.sample_tasks import Task, surrounded

MAX_STEPS = 100
MAX_GUIDANCE = 20.0
MAX_SEED = 2**31 - 2

# What the page's brush gives: as `layers` pictures [height, width, 4] of what was painted, in the image's proportions.
Painted = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Models:
    """What the page can sample from.

    Attributes:
      base: of text-to-video.
      conditional: its conditional model; None: the base is one, or is led by replacement.
      styles: of the base, by their names.
      super_resolution: each for the clips of the one before; none: clips are not enlarged.

    Raises:
      ValueError: runs that do not go together.
    """

    base: Run
    conditional: Run | None = None
    styles: Mapping[str, Run] = dataclasses.field(default_factory=dict)
    super_resolution: Sequence[Run] = ()

    def __post_init__(self):
        if "temporal" not in self.base.config or self.base.config.diffusion.low_res_factor:
            raise ValueError(f"{self.base.path} is no Space-Time U-Net's run: {self.base.config.name}")
        if self.conditional is not None:
            if "conditioning" not in self.conditional.config:
                raise ValueError(f"{self.conditional.path} is no conditional model: {self.conditional.config.name}")
            if self.conditional.config.clip != self.base.config.clip:
                raise ValueError(f"{self.conditional.path} and {self.base.path} make clips of other sizes or rates")
        for style in self.styles.values():
            check_style(self.base, style)
        for run in self.super_resolution:
            if not run.config.diffusion.low_res_factor:
                raise ValueError(f"{run.path} is no super-resolution run: {run.config.name}")

    @property
    def for_conditions(self) -> Run:
        """The run that completes clips."""
        return self.conditional or self.base

    @property
    def is_zero_shot(self) -> bool:
        """Whether it has not learned to."""
        return "conditioning" not in self.for_conditions.config

    @property
    def factor(self) -> int:
        """By which clips are enlarged."""
        return whole_factor(self.super_resolution)


@dataclasses.dataclass(frozen=True)
class Choices:
    """What all tabs ask for.

    Raises:
      ValueError: it is out of range.
    """

    prompt: str
    seed: float | int | None = 0  # None: the field was emptied
    steps: float | int = 20
    guidance: float | int = 3.0
    enlarge: bool = False

    def __post_init__(self):
        if not self.prompt.strip():
            raise ValueError("The prompt is empty: say what the clip is to show")
        for name, value, low, high in (
            ("seed", self.seed, 0, MAX_SEED),
            ("steps", self.steps, 1, MAX_STEPS),
            ("guidance", self.guidance, 0, MAX_GUIDANCE),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name}={value}: give a number from {low} to {high}")
        if self.seed != int(self.seed) or self.steps != int(self.steps):
            raise ValueError(f"seed={self.seed} and steps={self.steps} must be whole numbers")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be made.

    Attributes:
      run: sampled from.
      task: what is given beside the prompt.
      alpha: share of a style in the run.
    """

    run: Run
    task: Task
    alpha: float | int | None = None

    @property
    def shown(self) -> Float[np.ndarray, "frames height width 3"] | None:
        """What was given, grey where nothing was, at the size of the base clips."""
        if self.task.given is None:
            return self.task.original
        given = self.task.given_at(self.task.size)
        return given.video * given.mask


def text_to_video(models: Models, choices: Choices) -> Job:
    """From the prompt alone."""
    return Job(models.base, Task())


def image_to_video(models: Models, choices: Choices, first: str | None, last: str | None) -> Job:
    """From files of the first image, the last, or both."""
    run = models.for_conditions
    images = {index: file for index, file in ((0, first), (run.config.clip.frames - 1, last)) if file}
    if not images:
        raise ValueError("No image: give the first one, the last one, or both")
    read = {index: image_for(file, _size(models, choices, frame_size(file))) for index, file in images.items()}
    return _completed(models, choices, "image_to_video", condition.keyframes(read, run.config.clip.frames))


def inpaint(models: Models, choices: Choices, video: str | None, painted: Painted | None) -> Job:
    """From a video but for what was painted over its first frame, in all frames."""
    size = _size(models, choices, frame_size(_needed("video", video)))
    given = condition.inpainting(_video(models, video, size), _painted_region(painted, size))
    return _completed(models, choices, "inpaint", given)


def outpaint(
    models: Models,
    choices: Choices,
    video: str | None,
    top: float | int,
    bottom: float | int,
    left: float | int,
    right: float | int,
) -> Job:
    """From a video, with borders that are shares of its own height and width."""
    borders = {"top": top, "bottom": bottom, "left": left, "right": right}
    if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in borders.values()):
        raise ValueError(f"borders {borders}: give shares of the video, 0 to 1")
    clip, factor = models.for_conditions.config.clip, models.factor if choices.enlarge else 1
    whole = {"top": 1 + top + bottom, "left": 1 + left + right}
    whole |= {"bottom": whole["top"], "right": whole["left"]}
    shares = {side: share / whole[side] for side, share in borders.items()}
    of_clip = {"frames": clip.frames, "fps": clip.fps, "height": clip.size, "factor": factor}
    return _completed(models, choices, "outpaint", surrounded(_needed("video", video), shares, **of_clip))


def cinemagraph(models: Models, choices: Choices, image: str | None, painted: Painted | None) -> Job:
    """From a file of an image, of which the painted part is to move."""
    size = _size(models, choices, frame_size(_needed("image", image)))
    region = _painted_region(painted, size)
    given = condition.cinemagraph(image_for(image, size), region, models.for_conditions.config.clip.frames)
    return _completed(models, choices, "cinemagraph", given)


def stylize(models: Models, choices: Choices, style: str | None, alpha: float | int) -> Job:
    """With a share of a style, by its name."""
    if style not in models.styles:
        raise ValueError(f"style {style!r}: choose one of {sorted(models.styles)}")
    task = Task("stylize", alphas=(float(alpha),), files={"style": str(models.styles[style].path)})
    return Job(stylized(models.base, models.styles[style], alpha), task, alpha)


def edit(models: Models, choices: Choices, video: str | None, strength: float | int, frame_by_frame: bool) -> Job:
    """From a video that is to become what the prompt says."""
    if not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise ValueError(f"strength={strength}: give a share above 0, and at most 1")
    height = models.base.config.clip.size
    size = (height, proportional_width(frame_size(_needed("video", video)), height))
    task = Task("edit", original=_video(models, video, size), strength=float(strength), frame_by_frame=frame_by_frame)
    return Job(models.base, task)


def make(
    models: Models, choices: Choices, job: Job, output: pathlib.Path, on_prediction: OnPrediction | None = None
) -> dict[str, pathlib.Path]:
    """Samples a clip, and writes it.

    Args:
      models, choices: as for the tab's function.
      job: from it.
      output: an empty directory.
      on_prediction: see `sample_in_batches`.

    Returns:
      the files `mp4`, `gif`, `sheet` (what was given above what was made), `xt` and `json`.

    Raises:
      ValueError, MemoryError: as `sample`.
    """
    run, task = job.run, job.task
    frames, size = run.config.clip.frames, task.size or (run.config.clip.size,) * 2
    (clip,) = sample(
        run,
        models.super_resolution if choices.enlarge else (),
        [choices.prompt],
        output,
        seed=int(choices.seed),
        frames=frames,
        size=size,
        task=task,
        alpha=job.alpha,
        on_prediction=on_prediction,
        steps=int(choices.steps),
        guidance_weight=float(choices.guidance),
    )
    mark = "_high_resolution" if choices.enlarge and models.super_resolution else ""
    name = file_name(0, choices.prompt) + ("" if job.alpha is None else f"_alpha_{job.alpha:g}") + mark
    files = {"mp4": ".mp4", "gif": ".gif", "sheet": "_sheet.png", "xt": "_xt.png", "json": ".json"}
    found = {kind: output / f"{name}{ending}" for kind, ending in files.items()}
    if job.shown is not None:
        found["sheet"] = output / f"{name}_beside.png"
        write_sheet(found["sheet"], [job.shown, clip], choices.prompt, facts_of(found))
    return found


def facts_of(files: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """How a clip was made, from its sidecar."""
    return json.loads(files["json"].read_text())


def _needed(what: str, file: str | None) -> str:
    if not file:
        raise ValueError(f"No {what}: give one")
    return file


def _size(models: Models, choices: Choices, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that a file of `size` is read at: of the largest clips."""
    factor, height = models.factor if choices.enlarge else 1, models.for_conditions.config.clip.size
    return factor * height, factor * proportional_width(size, height)


def _video(models: Models, file: str, size: tuple[int, int]) -> Float[np.ndarray, "frames height width 3"]:
    clip = models.for_conditions.config.clip
    return video_for(file, frames=clip.frames, fps=clip.fps, size=size)


def _completed(models: Models, choices: Choices, name: str, given: condition.Condition) -> Job:
    factor, zero_shot = models.factor if choices.enlarge else 1, models.is_zero_shot
    return Job(models.for_conditions, Task(name, given, factor=factor, zero_shot=zero_shot, paste_known=True))


def _painted_region(painted: Painted | None, size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """1 where anything was painted."""
    layers = (painted or {}).get("layers") or []
    strokes = [layer[..., 3] > 0 for layer in layers]
    if not any(stroke.any() for stroke in strokes):
        raise ValueError("Nothing is painted: paint over what is to be made")
    return resized_region(np.any(strokes, axis=0).astype(np.float32), *size)
