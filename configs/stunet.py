"""The Space-Time U-Net: temporal layers over a frozen image model, all frames in one pass (paper section 3.1).

    python -m lumiere_jax.train --config=configs/stunet.py --workdir=workdir/stunet
    python -m lumiere_jax.train --config=configs/stunet.py --config.dataset.name=video_folder --config.dataset.path=DIR

Trains the image model (configs/text_to_image.py) first, where `--config.init_from` names none. Hardware: 2 CPU
cores. Time and result of variant `demo`: see docs/demo.md.

    python -m lumiere_jax.train --config=configs/stunet.py:if_m --config.init_from=weights/if_m ...

inflates DeepFloyd IF's stage I, which must be imported first: docs/pretrained_weights.md has all commands, the memory
that each variant needs, and what has not been run.

From the paper: the temporal strides 2, 2, then 1 (80 -> 40 -> 20 frames), which layers are trained, the initialisation;
of `small`, `if_m`, `if_l` and `if_xl` also the clip: 80 frames at 16 fps, 128x128 pixels. Not from the paper: every
other value.
"""

import ml_collections

from configs import deepfloyd_if, text_to_image

VARIANTS = ("demo", "shapes", "small", "overfit", "test", *deepfloyd_if.STAGE_1)


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Builds the config of a variant.

    `demo`: 16 frames of 32x32 pixels at 8 fps. `shapes`: 40 of them, the paper's five seconds, of lumiere-shapes, which
    is shipped (docs/model_card.md). `small`: 80 frames of 128x128 pixels at 16 fps over an image model
    that one accelerator trains; it has not been trained yet. `if_m`, `if_l`, `if_xl`: the same clip over imported
    weights of DeepFloyd IF. `if_tiny`: their rehearsal on a laptop. `overfit`: learns eight clips of 16x16 pixels by
    heart, to see that a set-up learns (docs/overfit.md). `test`: too small to learn anything. docs/model_sizes.md has
    the size of each.
    """
    if variant not in VARIANTS:
        raise ValueError(f"configs/stunet.py has no variant {variant!r}: use {', '.join(VARIANTS)}")
    is_imported = variant in deepfloyd_if.STAGE_1
    config = inflated(deepfloyd_if.image_model(variant) if is_imported else text_to_image.get_config(variant), variant)
    config.name = f"stunet:{variant}"
    return config


def inflated(image: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """The config of a variant's inflated model over the image model `image`, which it holds as `image_model`."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.compute_dtype = "float32"
    config.clip = {"frames": 16, "fps": 8.0, "size": 32, "crop_from": 0}
    config.dataset = image.dataset  # one object: both stages see the same data
    config.text = {
        "dropout": 0.1,
        "embeddings": "",  # made ahead of time by prepare_text_embeddings; default: the encoder runs in the train step
        # The rest counts with an imported U-Net. An image model that this project trained brings its own.
        "checkpoint": "",  # T5 encoder: imported, T5X's (also gs://), or Hugging Face's
        "tokenizer": "",  # SentencePiece model; default: the tokenizer.model in text.checkpoint
        "length": image.text.length,
        "padding_sees_tokens": image.text.padding_sees_tokens,
    }
    # The frozen image model: a run's directory, or an imported U-Net's (lumiere_jax/import_weights.py). Or fine-tuning:
    # an inflated run or published model, whose temporal layers are trained further over its image model.
    config.init_from = ""
    config.image_model = image  # where init_from is empty, this one is trained first, inside this run's directory
    config.temporal = {
        "strides": (2, 2, 1),
        "conv_kernel": 3,
        "spatial_kernel": 3,
        "norm_groups": 4,
        "attention_layers": 2,
        "attention_head_dim": 16,
        "resampler_kernel": 3,
        "resampler_init": "identity",
        "attention_levels": "coarsest",
    }
    config.remat = image.remat.copy_and_resolve_references()
    config.diffusion = image.diffusion
    config.training = image.training.copy_and_resolve_references()
    config.training.update({"steps": 900, "batch_size": 2, "learning_rate": 1e-3, "preview_every": 900})
    config.training.update({"checkpoint_every": 200, "validate_every": 100, "validation_clips": 8, "log_every": 20})
    config.sampling = image.sampling.copy_and_resolve_references()
    config.mesh = {"data": -1, "rows": 1}
    config.fsdp = False
    if variant == "shapes":
        config.clip.frames = 40
        config.training.update({"steps": 10_000, "checkpoint_every": 250, "validate_every": 500, "preview_every": 2500})
    if variant == "small":
        config.compute_dtype = image.compute_dtype
        config.clip.update({"frames": 80, "fps": 16.0, "size": 128})
        config.temporal.update({"norm_groups": 16, "attention_head_dim": 64})
        config.training.update({"steps": 100_000, "batch_size": 8, "learning_rate": 1e-4, "log_every": 50})
        config.training.update({"checkpoint_every": 1000, "validate_every": 1000, "preview_every": 5000})
    if variant == "overfit":
        config.clip.update({"frames": 8, "fps": 4.0, "size": 16})
        config.temporal.strides = (2, 2)
        config.training.update({"steps": 1000, "batch_size": 8, "learning_rate": 3e-3, "validation_clips": 16})
        config.training.update({"checkpoint_every": 250, "validate_every": 50, "preview_every": 1000})
    if variant == "test":
        config.clip.update({"frames": 4, "size": 16})
        config.temporal.strides = (2,)
        config.temporal.update({"norm_groups": 2, "attention_head_dim": 8, "attention_layers": 1})
        config.training.update({"steps": 4, "batch_size": 2, "checkpoint_every": 2, "validate_every": 2})
        config.training.update({"validation_clips": 2, "preview_every": 4, "log_every": 1})
    if image.pretrained:
        config.compute_dtype = image.compute_dtype
        config.clip.update({"frames": 80, "fps": 16.0, "size": 128})
        config.temporal.update({"norm_groups": 32, "attention_head_dim": 64})
        config.fsdp = variant not in deepfloyd_if.TINY
        # docs/model_sizes.md: what fits
        config.remat.update({"block": "products", "attention": "kernel", "inflation": "kernel"})
        config.training = image.training  # as it is: nothing trains the image model
        if variant in deepfloyd_if.TINY:
            config.remat.block = "none"
            config.clip.update({"frames": 8, "fps": 8.0, "size": 16})
            config.temporal.update({"strides": (2,), "norm_groups": 4, "attention_head_dim": 8, "attention_layers": 1})
        image.clip.update({"fps": config.clip.fps, "size": config.clip.size})
    return config
