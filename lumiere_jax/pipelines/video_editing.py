"""Video editing (paper section 4; SDEdit, Meng et al. 2022): a clip is noised part of the way, and sampled from there.

`strength` is the diffusion time at which sampling takes the clip up: at 0 the clip stays as it is, at 1 nothing is left
of it. Sampling goes the same times as from noise, but for those above it: it takes about strength x steps calls.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.models.stunet import deflate
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.pipelines.text_to_video import Videos, sample_videos


def edit_videos(
    run: Run, videos: Videos, prompts: Sequence[str], *, strength: float, frame_by_frame: bool = False, **choices: Any
) -> Videos:
    """Changes clips to what prompts say of them.

    Args:
      run: of a text-to-video model.
      videos: in [-1, 1]; of any number of frames, height and width.
      prompts: one for each.
      strength: from 0, where the clips are returned as they are, to 1, where they do not matter. Not from the paper.
      frame_by_frame: edits each frame by itself with the image model inside of the video model, to be compared with.
      **choices: the other arguments of `sample_videos`.

    Returns:
      Clips in [-1, 1].

    Raises:
      ValueError: `strength` is out of range, there are more or fewer clips than prompts, or as `sample_videos`.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength={strength}: give 0, which changes nothing, to 1, which keeps nothing")
    if len(videos) != len(prompts):
        raise ValueError(f"{len(videos)} videos and {len(prompts)} prompts: give one prompt for each")
    if strength == 0.0:
        return np.array(videos)
    run = image_model_of(run) if frame_by_frame else run
    return sample_videos(run, prompts, original=videos, start=strength, **choices)


def image_model_of(run: Run) -> Run:
    """The same run without its temporal layers: each frame is made by itself.

    Raises:
      ValueError: it has none.
    """
    if "temporal" not in run.config:
        raise ValueError(f"{run.path} is an image model already")
    of_video = ("temporal", "conditioning")
    fields = {name: section for name, section in run.config.to_dict().items() if name not in of_video}
    config, model = ml_collections.ConfigDict(fields), run.model
    image = TextToVideo(
        model.text_encoder,
        deflate(model.unet),
        dtype=jnp.dtype(model.dtype),
        padding_sees_tokens=model.padding_sees_tokens,
    )
    return dataclasses.replace(run, config=config, model=image)
