"""Spatial super-resolution (paper section 3.2): an inflated image super-resolution U-Net over short windows of frames.

    python -m lumiere_jax.train --config=configs/ssr.py --workdir=workdir/ssr
    python -m lumiere_jax.sample --checkpoint=workdir/stunet --super_resolution=workdir/ssr --prompt="..." --output=out

Trains an image super-resolution model on single frames first, where `--config.init_from` names none. Sampling runs
it over overlapping windows that MultiDiffusion reconciles at every step. Hardware: 2 CPU cores. Time and result of
variant `demo` (32 -> 64 pixels): see docs/demo.md.

    python -m lumiere_jax.train --config=configs/ssr.py:if_ii_m --config.init_from=weights/if_ii_m ...

inflates DeepFloyd IF's stage II, which must be imported first: see docs/pretrained_weights.md.

From the paper: windows of 8 frames that overlap by 2 (the length is read off Fig. 3). Not from the paper: every other
value.
"""

import ml_collections

from configs import deepfloyd_if, stunet, text_to_image

VARIANTS = ("demo", "test", *deepfloyd_if.STAGE_2)


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Builds the config of a variant.

    `demo`: 32 -> 64 pixels. `test`: too small to learn anything. `if_ii_m`, `if_ii_l`: 128 -> 256 pixels over imported
    weights of DeepFloyd IF. `if_ii_tiny`: their rehearsal on a laptop.
    """
    if variant not in VARIANTS:
        raise ValueError(f"configs/ssr.py has no variant {variant!r}: use {', '.join(VARIANTS)}")
    is_imported = variant in deepfloyd_if.STAGE_2
    image = deepfloyd_if.image_model(variant) if is_imported else text_to_image.get_config(variant)
    config = stunet.inflated(image, variant)
    config.name = f"ssr:{variant}"
    image.name = f"image_super_resolution:{variant}"
    config.clip.frames = 8  # the window
    config.multidiffusion = {"overlap": 2, "weights": "uniform", "window_batch": 0}  # 0: all windows at once
    # Augmentation of the low-resolution video, as a diffusion time. DeepFloyd IF's level i is (i + 1) / 1000 of the
    # discrete_cosine schedule; its pipeline has 250.
    config.sampling.noise_level = 0.1
    for stage in (config, image):
        stage.clip.size = 64
        stage.diffusion.low_res_factor = 2
        stage.sampling.update({"guidance": 1.0, "steps": 8, "threshold": "static", "threshold_maximum": 1.0})
        stage.training.preview_every = 0  # there is nothing to see without a low-resolution video
    if is_imported:
        _over_deepfloyd_if(config, variant)
        return config
    image.unet.update({"in_channels": 6, "noise_level_embedding": True, "resnet_skip_time_act": True})
    image.unet.update({"block_out_channels": (16, 16, 16, 32), "norm_num_groups": 2})
    image.unet.update({"cross_attention": (False, False, False, True), "time_embedding_act_fn": "gelu"})
    # Little noise on the low-resolution picture, for thin layers to pass on rather than mend; its effect was not
    # measured apart from that of the width (docs/demo.md).
    image.diffusion.update({"log_snr_shift": 0.0, "weighting": "uniform", "max_noise_level": 0.1})
    config.sampling.noise_level = 0.05
    image.training.update({"steps": 300, "batch_size": 8, "learning_rate": 6e-3})
    config.temporal.norm_groups = 2
    if variant == "demo":  # a window of 8 frames is short, and what a stride drops must be learned back
        config.temporal.strides = (1, 1, 1)
    config.training.update({"steps": 120, "batch_size": 1, "validation_clips": 4})
    if variant == "test":
        config.clip.update({"frames": 4, "size": 32})
        config.multidiffusion.overlap = 1
        image.clip.size = 32
        image.unet.update({"block_out_channels": (8, 8), "cross_attention": (False, True)})
        for stage in (config, image):
            stage.training.update({"steps": 2, "batch_size": 2, "checkpoint_every": 2})
    return config


def _over_deepfloyd_if(config: ml_collections.ConfigDict, variant: str) -> None:
    """The rest of a variant whose image model is imported; `config.image_model` has DeepFloyd IF's sizes already."""
    is_tiny = variant in deepfloyd_if.TINY
    size = 32 if is_tiny else 256
    for stage in (config, config.image_model):
        stage.clip.size = size
    config.dataset.update({"stored_frames": 16, "stored_size": size})
    config.temporal.strides = (2,) if is_tiny else (2, 2, 1, 1)  # five levels: 8 -> 4 -> 2 frames
    # From DeepFloyd IF: guidance, and noise level 250 of 1000 on the low-resolution picture.
    config.sampling.update({"guidance": 4.0, "noise_level": 0.25, "steps": 10 if is_tiny else 50})
