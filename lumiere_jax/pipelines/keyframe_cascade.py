"""The cascade that the paper argues against: distant keyframes first, then the frames between, window by window.

Paper section 1: temporal super-resolution in windows cannot make up for motion that the keyframes do not tell, and its
windows do not know of each other. It is here to be measured (`benchmarks/one_pass_vs_cascade`), not to be used. Both
networks are runs of configs/keyframe_cascade.py. A window begins and ends with a keyframe, which it shares with its
neighbour; the last one is moved back so that it ends with the clip. Keyframes are in the result as they were made.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from lumiere_jax.checkpoints.trained_run import Run
from lumiere_jax.diffusion.condition import Condition
from lumiere_jax.diffusion.condition_masks import KEYFRAME_STRIDE
from lumiere_jax.pipelines.text_to_video import Videos, sample_videos

# Noise of windows has numbers of its own: equal ones would give them the keyframes' noise.
_FIRST_WINDOW = 1 << 30


def sample_cascade(
    keyframes: Run,
    between: Run,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    first_number: int = 0,
    **choices: Any,
) -> Videos:
    """Samples one clip per prompt: keyframes, and then all windows at once.

    Args:
      keyframes: makes every fourth frame.
      between: temporal super-resolution.
      prompts: as for `sample_videos`.
      seed: of all noise; prompt number i gets the keyframes' noise i.
      first_number: the first prompt's number.
      **choices: of `sample_videos`, for both: steps, guidance_weight, sampler, ...

    Returns:
      clips in [-1, 1] at `between`'s rate, from the first keyframe to the last.

    Raises:
      ValueError: runs that do not go together, or as `sample_videos`.
    """
    check_cascade(keyframes, between)
    options = {"seed": seed, **choices}
    keys = sample_videos(keyframes, prompts, first_number=first_number, **options)
    known, length = with_blanks(keys), between.config.clip.frames
    starts = window_starts(known.video.shape[1], length)

    def cut(videos: np.ndarray) -> np.ndarray:
        # The windows of a prompt one after the other: their numbers do not depend on how many prompts there are.
        windows = np.stack([videos[:, start : start + length] for start in starts], axis=1)
        return windows.reshape(-1, *windows.shape[2:])

    windows = Condition(*map(cut, known))
    texts = [prompt for prompt in prompts for _ in starts]
    numbers = _FIRST_WINDOW + first_number * len(starts)
    made = sample_videos(between, texts, given=windows, first_number=numbers, **options)
    clips = np.zeros_like(known.video)
    for place, start in enumerate(starts):
        clips[:, start : start + length] = made[place :: len(starts)]
    return known.paste(clips)


def with_blanks(keys: Float[np.ndarray, "clips keys height width 3"]) -> Condition:
    """Keyframes at their places in clips of the full rate, as what is given of them."""
    clips, count, height, width, _ = keys.shape
    frames = (count - 1) * KEYFRAME_STRIDE + 1
    video: Float32[np.ndarray, "clips frames height width 3"] = np.zeros((clips, frames, height, width, 3), np.float32)
    mask = np.zeros((*video.shape[:-1], 1), np.float32)
    video[:, ::KEYFRAME_STRIDE], mask[:, ::KEYFRAME_STRIDE] = keys, 1.0
    return Condition(video, mask)


def window_starts(frames: int, length: int) -> list[int]:
    """First frames of the windows, each of which begins with the last frame of the one before, but for the last one."""
    regular = range(0, frames - length, length - 1)
    return [*regular, frames - length]


def check_cascade(keyframes: Run, between: Run) -> None:
    """Raises a ValueError for runs that do not make a cascade."""
    first, second = keyframes.config.clip, between.config.clip
    if dict(between.config.get("conditioning", {}).get("masks", {})) != {"every_fourth_frame": 1.0}:
        raise ValueError(
            f"{between.path} is no temporal super-resolution: {between.config.name}. Train "
            "configs/keyframe_cascade.py:temporal_super_resolution"
        )
    if first.fps * KEYFRAME_STRIDE != second.fps or first.size != second.size:
        raise ValueError(
            f"{keyframes.path} makes {first.size}x{first.size} pixels at {first.fps:g} fps, {between.path} "
            f"{second.size}x{second.size} at {second.fps:g}: they must have one size, and rates 1 to {KEYFRAME_STRIDE}"
        )
    span = (first.frames - 1) * KEYFRAME_STRIDE + 1
    if span < second.frames:
        raise ValueError(
            f"{keyframes.path} makes {first.frames} keyframes, which span {span} frames: fewer than the window of "
            f"{between.path}, {second.frames}"
        )
