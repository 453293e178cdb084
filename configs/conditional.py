"""The conditional model: one checkpoint for image-to-video, in- and outpainting, cinemagraphs, and plain text.

    python -m lumiere_jax.train --config=configs/conditional.py --config.conditioning.base=workdir/stunet \\
        --workdir=workdir/conditional

Fine-tunes a trained Space-Time U-Net (paper section 4.2): its temporal layers, and the part of the first convolution
that sees the masked clip and the mask, which is zero at first. Clip, networks and diffusion are the base's. The mix of
masks, as every value here, is not from the paper; lumiere_jax/diffusion/condition_masks.py says what each kind is.
Hardware: 2 CPU cores for `demo`.
"""

import ml_collections

from configs import stunet

VARIANTS = stunet.VARIANTS


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Builds the config of a conditional model whose base has variant `variant` of configs/stunet.py."""
    config = stunet.get_config(variant)
    config.name = f"conditional:{variant}"
    config.conditioning = {
        "base": "",  # the --workdir of a Space-Time U-Net's training
        "kernel": "zeros",  # of the first convolution over masked clip and mask, at first: it starts as its base
        "masks": {  # shares of the clips
            "nothing": 0.15,
            "everything": 0.05,
            "first_frame": 0.25,
            "first_and_last": 0.1,
            "any_frames": 0.1,
            "still_box": 0.05,
            "moving_box": 0.05,
            "brush": 0.05,
            "border": 0.1,
            "region": 0.1,
        },
    }
    config.training.warmup_steps = min(config.training.warmup_steps, 20)
    if variant == "demo":
        config.training.update({"steps": 1200, "preview_every": 1200})
    if variant == "shapes":
        config.training.update({"steps": 5000, "preview_every": 2500})
    return config
