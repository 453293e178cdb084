"""Which configs of diffusers are read, and what is said of the others."""

import dataclasses
import json
import math

import pytest

from configs import deepfloyd_if
from lumiere_jax.checkpoints.deepfloyd_if import unet_config
from lumiere_jax.models.unet2d_config import UNet2DConfig

# As few keys as an older diffusers may have written.
MINIMAL = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text",
    "block_out_channels": [64, 128],
    "cross_attention_norm": "group_norm",
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "encoder_hid_dim": 128,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}


@pytest.fixture
def read(tmp_path):
    def read(**changes):
        (tmp_path / "config.json").write_text(json.dumps(MINIMAL | changes))
        return unet_config(tmp_path / "config.json")

    return read


def test_defaults_are_diffusers(read):
    assert read() == UNet2DConfig(
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        cross_attention=(False, True),
        layers_per_block=(2, 2),
        attention_head_dim=8,
        norm_num_groups=32,
        norm_eps=1e-5,
        text_dim=128,
        cross_attention_dim=1280,
        text_norm_groups=32,
        text_pooling_heads=64,
        time_embedding_dim=None,
        act_fn="silu",
    )
    assert read().embedding_dim == 256


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers_per_block": [3, 1]}, {"layers_per_block": (3, 1)}),
        ({"layers_per_block": 3}, {"layers_per_block": (3, 3)}),
        ({"attention_head_dim": [64, 64]}, {"attention_head_dim": 64}),
        ({"only_cross_attention": True}, {"only_cross_attention": True}),
        ({"only_cross_attention": [False, False]}, {"only_cross_attention": False}),
        (
            {"only_cross_attention": [True, True], "mid_block_only_cross_attention": True},
            {"only_cross_attention": True},
        ),
        ({"class_embed_type": "timestep"}, {"noise_level_embedding": True}),
        ({"act_fn": "swish", "time_embedding_act_fn": "gelu"}, {"act_fn": "silu", "time_embedding_act_fn": "gelu"}),
        ({"mid_block_scale_factor": 1, "norm_eps": 1e-6}, {"mid_block_scale_factor": 1.0, "norm_eps": 1e-6}),
        ({"time_embedding_dim": 96, "encoder_hid_dim_type": "text_proj"}, {"time_embedding_dim": 96}),
        ({"encoder_hid_dim_type": None, "time_embedding_dim": None, "a_new_key": 1}, {}),
    ],
)
def test_members_of_the_family(read, changes, expected):
    assert read(**changes) == dataclasses.replace(read(), **expected)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("_class_name", "UNet2DModel", "'UNet2DModel'.*another family"),
        ("addition_embed_type", None, "addition_embed_type=None.*another family"),
        ("cross_attention_norm", "layer_norm", "cross_attention_norm='layer_norm'.*'group_norm'.*another family"),
        ("cross_attention_norm", None, "cross_attention_norm=None.*another family"),
        ("resnet_time_scale_shift", "default", "resnet_time_scale_shift='default'"),
        ("down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D"], "do not have the blocks.*CrossAttnDownBlock2D"),
        ("up_block_types", ["ResnetUpsampleBlock2D"] * 2, "does not mirror down_block_types"),
        ("encoder_hid_dim", None, "encoder_hid_dim is missing or null"),
        ("encoder_hid_dim_type", "image_proj", "encoder_hid_dim_type='image_proj'.*'text_proj'"),
        ("attention_head_dim", None, "attention_head_dim=None must be a positive whole number"),
        ("attention_head_dim", [8, 16], r"attention_head_dim=\[8, 16\] differs between levels"),
        ("addition_embed_type_num_heads", None, "addition_embed_type_num_heads=None must be a positive whole"),
        ("norm_num_groups", None, "norm_num_groups=None must be a positive whole number"),
        ("norm_eps", "1e-5", "norm_eps='1e-5' must be a positive number"),
        ("resnet_out_scale_factor", 0, "resnet_out_scale_factor=0 must be a positive number"),
        ("cross_attention_dim", [32, 32], r"cross_attention_dim=\[32, 32\] must be a positive whole number"),
        ("layers_per_block", [2, 2, 2], "layers_per_block.* has 3 entries, down_block_types has 2"),
        ("block_out_channels", [64], "block_out_channels.* has 1 entries, down_block_types has 2"),
        ("class_embed_type", "projection", "class_embed_type='projection' must be one of None, 'timestep'"),
        ("act_fn", "mish", "act_fn='mish' must be one of 'gelu', 'silu'"),
        ("only_cross_attention", [True, False], "must be true everywhere or false everywhere"),
        ("only_cross_attention", [True, True], "must be true everywhere or false everywhere"),
        ("mid_block_only_cross_attention", True, "must be true everywhere or false everywhere"),
        ("conv_in_kernel", 1, "conv_in_kernel=1.*have 3"),
        ("flip_sin_to_cos", False, "flip_sin_to_cos=False.*have True"),
        ("time_embedding_type", "fourier", "time_embedding_type='fourier'.*'positional'"),
        ("timestep_post_act", "silu", "timestep_post_act='silu'.*have None"),
        ("num_class_embeds", 10, "num_class_embeds=10.*have None"),
        ("center_input_sample", True, "center_input_sample=True"),
    ],
)
def test_other_families_are_refused_by_field(read, field, value, message):
    with pytest.raises(ValueError, match=rf"(?s)config\.json: .*{message}"):
        read(**{field: value})


@pytest.mark.parametrize(("text", "message"), [("{", "is not a JSON file"), ("[]", "holds no JSON object")])
def test_other_files(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        unet_config(tmp_path / "config.json")


def test_the_scale_factor_is_not_the_square_root_of_2():
    factor = deepfloyd_if.unet("if_ii_m")["resnet_out_scale_factor"]
    assert factor == 1.4142271248762552 != math.sqrt(2)
