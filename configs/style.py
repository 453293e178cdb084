"""A style: the spatial layers of a trained model, fine-tuned on one to a few images (paper section 4.1).

    python -m lumiere_jax.train --config=configs/style.py --config.style.base=workdir/stunet \\
        --config.dataset.path=IMAGES --workdir=workdir/style
    python -m lumiere_jax.sample --checkpoint=workdir/stunet --task=stylize --style=workdir/style \\
        --prompt="a red circle moving left"

The image model inside of a Space-Time U-Net (or an image model alone) goes on training on random parts of the images,
all of its layers, without temporal layers. Sampling puts a mixture of its weights and those before under the temporal
layers, which stay as they are (lumiere_jax/pipelines/stylized_generation.py). Networks, diffusion and text are the
base's. There is nothing to validate with but the images themselves. Hardware: 2 CPU cores for `demo`. No value is from
the paper.
"""

import ml_collections

from configs import text_to_image

VARIANTS = text_to_image.VARIANTS


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Builds the config of a style whose base has variant `variant` of configs/text_to_image.py."""
    config = text_to_image.get_config(variant)
    config.name = f"style:{variant}"
    config.style = {
        "base": "",  # the --workdir of the training of a Space-Time U-Net, or of an image model
        "zoom": 1.5,  # images are brought to so many times the clip's size, and parts of that size are trained on
        "base_unet": "",  # SHA-256 of the base's spatial layers: written when the run is started
    }
    config.init_from = ""  # where the base's imported U-Net lies now, if it was moved
    config.dataset.update(
        {
            "name": "style_images",
            "path": "",  # an image, or a folder of images
            # "in style" is the word that prompts could repeat. It is as good as any: the weights hold the style.
            "default_caption": "a picture in style",
            "flip_probability": 0.0,
        }
    )
    fields = config.training
    fields.update({"steps": 300, "learning_rate": fields.learning_rate / 5, "schedule": "constant", "warmup_steps": 10})
    fields.update({"ema_decays": (0.98,), "checkpoint_every": 100, "validate_every": 50, "preview_every": 300})
    if variant == "test":
        fields.update({"steps": 4, "checkpoint_every": 2, "validate_every": 2, "preview_every": 4})
    return config
