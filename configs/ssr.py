"""Spatial super-resolution (paper section 3.2): an inflated image super-resolution U-Net over short windows of frames.

    python -m lumiere_jax.train --config=configs/ssr.py --workdir=workdir/ssr
    python -m lumiere_jax.sample --checkpoint=workdir/stunet --super_resolution=workdir/ssr --prompt="..." --output=out

Trains an image super-resolution model on single frames first, where `--config.init_from` names none. Sampling runs
it over overlapping windows that MultiDiffusion reconciles at every step. Hardware: 2 CPU cores. Time and result of
variant `demo` (32 -> 64 pixels): see docs/demo.md.

    python -m lumiere_jax.train --config=configs/ssr.py:if_ii_m --config.init_from=weights/if_ii_m ...

inflates DeepFloyd IF's stage II, which must be imported first: see docs/pretrained_weights.md.

    python -m lumiere_jax.train --config=configs/ssr.py:demo_4x --workdir=workdir/ssr_4x

trains a small network that enlarges 4 times whatever the size, on crops: the demo's clips from 64 to 256 pixels and,
applied again, to 1024. For 2 CPU cores; it has not been trained to its end yet, so time and result are not known.

    python -m lumiere_jax.train --config=configs/ssr.py:efficient --config.dataset.path=DIR ...

trains Imagen's Efficient U-Net on crops of one's own videos, 128 -> 1024 pixels in one network, and `efficient_4x` the
one for 256 -> 1024, to follow `if_ii_*`. They are for accelerators, and have not been trained yet. For a T5 that is
trained already: `--config.image_model.text.checkpoint=T5`, and its width as `--config.image_model.unet.text_dim`.

From the paper: windows of 8 frames that overlap by 2 (the length is read off Fig. 3), and 128 -> 1024 of `efficient`.
Not from the paper: every other value.
"""

import ml_collections

from configs import deepfloyd_if, stunet, text_to_image

EFFICIENT = {"efficient": 8, "efficient_4x": 4}  # how many times larger
VARIANTS = ("demo", "demo_4x", *EFFICIENT, "test", *deepfloyd_if.STAGE_2)

# Which variant of the other stages a variant here starts from, where that has another name.
_BASE = {"demo_4x": "demo"} | dict.fromkeys(EFFICIENT, "small")


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Builds the config of a variant.

    `demo`: 32 -> 64 pixels. `demo_4x`: 4 times larger, for 64 -> 256 -> 1024. `efficient`: 128 -> 1024, `efficient_4x`:
    256 -> 1024; neither has been trained yet. `test`: too small to learn anything. `if_ii_m`, `if_ii_l`: 128 -> 256
    pixels over imported weights of DeepFloyd IF. `if_ii_tiny`: their rehearsal on a laptop. docs/model_sizes.md has the
    size of each.
    """
    if variant not in VARIANTS:
        raise ValueError(f"configs/ssr.py has no variant {variant!r}: use {', '.join(VARIANTS)}")
    is_imported = variant in deepfloyd_if.STAGE_2
    base = _BASE.get(variant, variant)
    image = deepfloyd_if.image_model(variant) if is_imported else text_to_image.get_config(base)
    config = stunet.inflated(image, base)
    config.name = f"ssr:{variant}"
    image.name = f"image_super_resolution:{variant}"
    config.clip.frames = 8  # the window
    config.multidiffusion = {
        "overlap": 2,
        "weights": "uniform",  # or feathered
        "window_batch": 0,  # windows that are denoised at once; 0: as many as keep a device busy and fit
        "tile": 0,  # pixels of a side of spatial tiles, and those that neighbours share; 0: whole frames if they fit
        "tile_overlap": 0,
    }
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
    if variant in EFFICIENT:
        _efficient(config, variant)
        return config
    image.unet.update({"block_out_channels": (16, 16, 16, 32), "norm_num_groups": 2})
    image.unet.update({"cross_attention": (False, False, False, True), "time_embedding_act_fn": "gelu"})
    # Little noise on the low-resolution picture, for thin layers to pass on rather than mend; its effect was not
    # measured apart from that of the width (docs/demo.md).
    image.diffusion.update({"log_snr_shift": 0.0, "weighting": "uniform", "max_noise_level": 0.1})
    config.sampling.noise_level = 0.05
    image.training.update({"steps": 300, "batch_size": 8, "learning_rate": 6e-3})
    config.temporal.norm_groups = 2
    if base == "demo":  # a window of 8 frames is short, and what a stride drops must be learned back
        config.temporal.strides = (1, 1, 1)
    config.training.update({"steps": 120, "batch_size": 1, "validation_clips": 4})
    if variant == "demo_4x":
        # Nearly all work below full resolution, and attention to the text alone: 1024x1024 pixels are 128x128 on the
        # coarsest level.
        image.unet.update({"layers_per_block": (0, 1, 2, 2), "block_out_channels": (16, 16, 32, 48)})
        image.unet.only_cross_attention = True
        config.dataset.path = "one_object_256"
        _train_on_crops(config, size=64, crop_from=256, factor=4)
        image.diffusion.max_blur = 0.7
        image.training.steps = 1200  # 300 leave the small video's noise in the picture: docs/super_resolution.md
        config.sampling.steps = 4  # at 1024x1024 each takes minutes on a CPU
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


def _train_on_crops(config: ml_collections.ConfigDict, size: int, crop_from: int, factor: int) -> None:
    """Both stages on crops of `size` out of frames of `crop_from`, `factor` times larger than their inputs."""
    for stage in (config, config.image_model):
        stage.clip.update({"size": size, "crop_from": crop_from})
        stage.diffusion.update({"low_res_factor": factor, "align_corners": False})


def _efficient(config: ml_collections.ConfigDict, variant: str) -> None:
    """Imagen's Efficient U-Net: widths, layers, crops, and attention to the text alone, on the coarsest level alone.

    Saharia et al. 2022, "Photorealistic text-to-image diffusion models", appendix B and F. As no layer comes before the
    first resize, the temporal strides start one level later than the base model's: the finest layers see every frame.
    """
    image = config.image_model
    image.unet.update({"block_out_channels": (128, 128, 256, 512, 1024), "layers_per_block": (0, 2, 4, 8, 8)})
    image.unet.update({"cross_attention": (False, False, False, False, True), "only_cross_attention": True})
    image.unet.update({"attention_head_dim": 64, "norm_num_groups": 32, "cross_attention_dim": 512})
    image.unet.update({"time_embedding_dim": 512, "time_embedding_act_fn": "gelu"})
    config.dataset.update({"name": "video_folder", "path": "", "stored_frames": 16, "stored_size": 1024})
    _train_on_crops(config, size=256, crop_from=1024, factor=EFFICIENT[variant])
    # Ho et al. 2022, "Imagen Video": v keeps super-resolution from shifting colours.
    image.diffusion.update({"prediction": "v", "weighting": "uniform", "log_snr_shift": 0.0})
    image.diffusion.update({"max_blur": 1.0, "min_jpeg_quality": 70})
    image.training.update({"steps": 500_000, "batch_size": 64, "learning_rate": 1e-4, "warmup_steps": 10_000})
    image.training.update({"weight_decay": 0.0, "ema_decays": (0.9999,)})
    config.temporal.update({"strides": (1, 2, 2, 1), "norm_groups": 32})
    config.training.update({"batch_size": 16, "ema_decays": (0.9999,)})
    config.sampling.steps = 32
