"""The Space-Time U-Net: temporal layers over a frozen image model, all frames in one pass (paper section 3.1).

    python -m lumiere_jax.train --config=configs/stunet.py --workdir=workdir/stunet
    python -m lumiere_jax.train --config=configs/stunet.py --config.dataset.name=video_folder --config.dataset.path=DIR

Trains the image model (configs/text_to_image.py) first, where `--config.init_from` names none. Hardware: 2 CPU
cores. Time and result of variant `demo`: see docs/demo.md.

From the paper: the temporal strides 2, 2, then 1 (80 -> 40 -> 20 frames), which layers are trained, the initialisation.
Not from the paper: every other value.
"""

import ml_collections

from configs import text_to_image


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Variants: `demo`, 16 frames of 32x32 pixels at 8 fps; `test`, which is too small to learn anything."""
    image = text_to_image.get_config(variant)
    config = ml_collections.ConfigDict()
    config.name = f"stunet:{variant}"
    config.seed = 0
    config.compute_dtype = "float32"
    config.clip = {"frames": 16, "fps": 8.0, "size": 32}
    config.dataset = image.dataset  # one object: both stages see the same data
    config.text = {
        "dropout": 0.1,
        # The rest: with an imported U-Net. An image model that this project trained brings its own.
        "checkpoint": "",  # T5 encoder: imported, T5X's (also gs://), or Hugging Face's
        "tokenizer": "",  # SentencePiece model; default: the tokenizer.model in text.checkpoint
        "length": 77,  # tokens; DeepFloyd IF's number
    }
    # The frozen image model: a run's directory, or an imported U-Net's (lumiere_jax/import_weights.py). Where empty,
    config.init_from = ""
    config.image_model = image  # ... this one is trained first, inside this run's directory
    config.temporal = {
        "strides": (2, 2, 1),
        "conv_kernel": 3,
        "spatial_kernel": 3,
        "norm_groups": 4,
        "attention_layers": 2,
        "attention_head_dim": 16,
        "resampler_kernel": 3,
        "resampler_init": "identity",
    }
    config.diffusion = image.diffusion
    config.training = image.training.copy_and_resolve_references()
    config.training.update({"steps": 650, "batch_size": 2, "learning_rate": 2e-3, "preview_every": 650})
    config.training.update({"checkpoint_every": 200, "validate_every": 100, "validation_clips": 8, "log_every": 20})
    config.sampling = image.sampling.copy_and_resolve_references()
    config.mesh = {"data": -1, "rows": 1}
    if variant == "test":
        config.clip.update({"frames": 4, "size": 16})
        config.temporal.strides = (2,)
        config.temporal.update({"norm_groups": 2, "attention_head_dim": 8, "attention_layers": 1})
        config.training.update({"steps": 4, "batch_size": 2, "checkpoint_every": 2, "validate_every": 2})
        config.training.update({"validation_clips": 2, "preview_every": 4, "log_every": 1})
    return config
