"""Conditional generation (paper section 4.2): image-to-video, in- and outpainting, cinemagraphs, keyframes.

What is given of a clip is a `Condition`, which `diffusion/condition.py` makes for each application. A conditional model
(configs/conditional.py) sees it. Any other model can be led by it, too, without having learned that (`zero_shot`): what
is given replaces the prediction there at every step. With `resample` each step is taken so many times, which lets the
rest of the clip agree with it better (`samplers.resampled`).
"""

from collections.abc import Sequence
from typing import Any

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.data.area_resizing import proportional_width
from lumiere_jax.diffusion.condition import Condition, resized
from lumiere_jax.pipelines.text_to_video import Videos, sample_videos


def complete_videos(
    run: Run, prompts: Sequence[str], condition: Condition, *, paste_known: bool = False, **choices: Any
) -> Videos:
    """Samples clips of which a part is given.

    Args:
      run: of a conditional model; of another with `zero_shot=True`.
      prompts: texts.
      condition: what is given, of all clips or of each; it is brought to the run's size, see `fitted`.
      paste_known: puts what is given into the result, where the model alone comes near to it only.
      **choices: the other arguments of `sample_videos`.

    Returns:
      Clips in [-1, 1].

    Raises:
      ValueError: as `sample_videos` and `fitted`.
    """
    condition = fitted(run, condition)
    videos = sample_videos(run, prompts, given=condition, **choices)
    return condition.paste(videos) if paste_known else videos


def fitted(run: Run, condition: Condition) -> Condition:
    """A condition at the height that the run was trained with, its width in proportion.

    Raises:
      ValueError: at that size nothing of what was given is left.
    """
    size, height = condition.mask.shape[-3:-1], run.config.clip.size
    return condition if size[0] == height else resized(condition, height, proportional_width(size, height))
