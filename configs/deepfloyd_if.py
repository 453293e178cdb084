"""DeepFloyd IF's image models as backbones: sizes of the published U-Nets, and what running them asks of a config.

Not a config to train: `configs/stunet.py` and `configs/ssr.py` have variants made from it, which need the imported
weights (docs/pretrained_weights.md). Import takes the sizes from the user's config.json; those here serve to plan with,
to refuse a run without weights, and to test. IF-I-XL's are its published config's, IF-II-L's mostly; the widths of the
others are inferred from their numbers of parameters. `tiny` is no published model: tests/goldens/make_tiny_if.py
makes one, to walk the whole road on a laptop.
"""

import ml_collections

from configs import text_to_image

# variant: the model, its block_out_channels.
STAGE_1 = {
    "if_m": ("IF-I-M", (192, 384, 576, 768)),
    "if_l": ("IF-I-L", (320, 640, 960, 1280)),
    "if_xl": ("IF-I-XL", (704, 1408, 2112, 2816)),
    "if_tiny": ("the tiny stage I of tests/goldens/make_tiny_if.py", (8, 16)),
}
STAGE_2 = {
    "if_ii_m": ("IF-II-M", (96, 192, 384, 576, 768)),
    "if_ii_l": ("IF-II-L", (160, 320, 640, 960, 1280)),
    "if_ii_tiny": ("the tiny stage II of tests/goldens/make_tiny_if.py", (8, 16)),
}
TINY = ("if_tiny", "if_ii_tiny")

# Both stages; diffusers' names.
_UNET = {
    "out_channels": 6,  # epsilon and the learned variance
    "act_fn": "gelu",
    "attention_head_dim": 64,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "text_dim": 4096,  # T5-XXL
    "text_pooling_heads": 64,
}
_UNET_2 = {
    "in_channels": 6,
    "noise_level_embedding": True,
    "time_embedding_act_fn": "gelu",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1 / 0.7071,
    "mid_block_scale_factor": 1 / 0.7071,
}
_TINY = {
    "layers_per_block": (1, 1),
    "cross_attention": (False, True),
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "text_dim": 32,
    "text_pooling_heads": 4,
    "cross_attention_dim": 32,  # diffusers normalises it in 32 groups, always
    "time_embedding_dim": 32,
}


def unet(variant: str) -> dict:
    """The fields of `UNet2DConfig` of a variant's image model."""
    _, widths = (STAGE_1 | STAGE_2)[variant]
    fields = _UNET | (_UNET_2 if variant in STAGE_2 else {}) | {"block_out_channels": widths}
    if variant in TINY:
        return fields | _TINY
    fields |= {"cross_attention_dim": widths[-1], "time_embedding_dim": widths[-1]}
    if variant in STAGE_1:
        return fields | {"layers_per_block": (3, 3, 3, 3), "cross_attention": (False, True, True, True)}
    return fields | {"layers_per_block": (2, 2, 3, 5, 5), "cross_attention": (False, False, False, True, True)}


def image_model(variant: str) -> ml_collections.ConfigDict:
    """What takes the place of `configs/text_to_image.py` where the image model is imported.

    From DeepFloyd IF: the U-Net, 77 tokens of T5-XXL, the schedule, epsilon prediction, guidance. Nothing in it is
    from the paper.
    """
    config = text_to_image.get_config("demo")
    config.name = f"deepfloyd_if:{variant}"
    config.pretrained, _ = (STAGE_1 | STAGE_2)[variant]
    config.compute_dtype = "bfloat16"
    del config.unet
    config.unet = unet(variant)
    config.text.update({"length": 77, "padding_sees_tokens": True, "vocab_size": 32128})
    config.text.update({"emb_dim": 4096, "num_heads": 64, "num_layers": 24, "head_dim": 64, "mlp_dim": 10240})
    config.dataset.update({"name": "video_folder", "path": "", "stored_frames": 80, "stored_size": 128})
    config.diffusion.update({"schedule": "discrete_cosine", "log_snr_shift": 0.0})
    config.diffusion.update({"prediction": "epsilon", "weighting": "uniform"})
    config.sampling.update({"steps": 50, "guidance": 7.0})
    config.sampling.preview_prompts = (
        "a dog runs along a beach at sunset",
        "waves break against a rocky coast",
        "a sailing boat on a lake, aerial view",
        "a chef slices vegetables in a kitchen",
    )
    # The temporal layers' training. Published fine-tunes of the paper's model use Adafactor at a constant 1e-4.
    config.training.update({"optimizer": "adafactor", "learning_rate": 1e-4, "schedule": "constant"})
    config.training.update({"steps": 100_000, "batch_size": 64, "warmup_steps": 1000, "weight_decay": 0.0})
    config.training.update({"ema_decays": (0.9999,), "checkpoint_every": 1000, "validate_every": 1000})
    config.training.update({"preview_every": 5000, "validation_clips": 8})
    if variant in TINY:
        config.compute_dtype = "float32"
        config.text.update({"vocab_size": 512, "emb_dim": 32, "num_heads": 2, "num_layers": 2, "head_dim": 16})
        config.text.mlp_dim = 64
        config.dataset.update({"stored_frames": 16, "stored_size": 32})
        config.training.update({"steps": 50, "batch_size": 2, "warmup_steps": 5, "ema_decays": (0.9,)})
        config.training.update({"checkpoint_every": 50, "validate_every": 25, "preview_every": 0, "log_every": 10})
        config.training.update({"validation_clips": 2, "learning_rate": 1e-3})
        config.sampling.steps = 10
    return config
