"""The baseline that the paper argues against: keyframes first, then temporal super-resolution between them (section 1).

    python -m lumiere_jax.train --config=configs/keyframe_cascade.py:keyframes --workdir=workdir/keyframes
    python -m lumiere_jax.train --config=configs/keyframe_cascade.py:temporal_super_resolution \\
        --config.init_from=workdir/keyframes/image_model --workdir=workdir/temporal_super_resolution

`keyframes` makes every fourth frame of the clip of configs/stunet.py. `temporal_super_resolution` makes the frames
between them, in windows at the full rate: beside the noisy window it sees the keyframes and a mask, as the conditional
model does (paper section 4.2). Both are the same network over the same frozen image model, with as many temporal
parameters as configs/stunet.py's. As in the works that the paper names, neither is down-sampled in time.
`NAME_VARIANT` is the counterpart of another variant of configs/stunet.py: keyframes_small,
temporal_super_resolution_if_l, ...

What is sampled from both: lumiere_jax/pipelines/keyframe_cascade.py. Beside the one pass, at equal FLOPs of training:
`python -m benchmarks.one_pass_vs_cascade`, docs/evaluation.md. No value is from the paper. Hardware: 2 CPU cores.
"""

import ml_collections

from configs import stunet
from lumiere_jax.diffusion.condition_masks import KEYFRAME_STRIDE

STAGES = ("keyframes", "temporal_super_resolution")
VARIANTS = tuple(f"{stage}{suffix}" for stage in STAGES for suffix in ("", *(f"_{name}" for name in stunet.VARIANTS)))


def get_config(variant: str = "keyframes") -> ml_collections.ConfigDict:
    """Builds the config of a stage: `keyframes` or `temporal_super_resolution`, `_VARIANT` of configs/stunet.py."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/keyframe_cascade.py has no variant {variant!r}: use {', '.join(VARIANTS)}")
    stage = next(stage for stage in STAGES if variant.startswith(stage))
    config = stunet.get_config(variant.removeprefix(stage).removeprefix("_") or "demo")
    config.name = f"keyframe_cascade:{variant}"
    config.temporal.strides = (1,) * len(config.temporal.strides)
    if stage == "keyframes":
        # As many as lie inside of the clip, and two at least.
        config.clip.frames = max(2, (config.clip.frames - 1) // KEYFRAME_STRIDE + 1)
        config.clip.fps /= KEYFRAME_STRIDE
    else:
        # From a keyframe to one: the more intervals between, the more frames the clip has.
        intervals = 4 if config.clip.frames > 32 else 2 if config.clip.frames > 8 else 1
        config.clip.frames = intervals * KEYFRAME_STRIDE + 1
        config.conditioning = {"masks": {"every_fourth_frame": 1.0}, "kernel": "pretrained"}
        config.training.preview_every = 0  # from text alone there is nothing to see
    return config
