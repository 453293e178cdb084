"""DeepFloyd IF's weights (diffusers `UNet2DConditionModel`: config.json and safetensors) for our spatial U-Net.

Names are diffusers', split on dots, up to three regroupings: a residual block and the attention after it form one
layer (`resnets.j`, `attentions.j` -> `layers/j/resnet`, `layers/j/attention`), a level's resize is `resize/resnet`, and
a few modules are renamed (`_RENAMED`).
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lumiere_jax.checkpoints import safetensors_files
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.text.storage import StoredArray

_RENAMED = (
    (r"^(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.", r"\1.\2.layers.\3.resnet."),
    (r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.", r"\1.\2.layers.\3.attention."),
    (r"^(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r"\1.\2.resize.resnet."),
    (r"^mid_block\.resnets\.([01])\.", r"middle.resnet_\1."),
    (r"^mid_block\.attentions\.0\.", r"middle.attention."),
    (r"^add_embedding\.pool\.", "text_pooling."),
    (r"^add_embedding\.", "text_pooling."),
    (r"^class_embedding\.", "noise_level_embedding."),
    (r"\.to_out\.0\.", ".to_out."),
)


# What `UNet2DConditionModel` takes for a key that its config.json does not have: older versions wrote fewer keys.
_DEFAULTS: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 8,
    "class_embed_type": None,
    "cross_attention_dim": 1280,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1.0,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "only_cross_attention": False,
    "out_channels": 4,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
}
# What makes a U-Net one of DeepFloyd IF's family; these keys are always written.
_FAMILY = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text",
    "cross_attention_norm": "group_norm",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}
# Keys that change what the network computes in ways that IF does not use, with all the values that mean "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_ACTIVATIONS = {"gelu": "gelu", "silu": "silu", "swish": "silu"}
_HAS_ATTENTION = {
    "ResnetDownsampleBlock2D": False,
    "ResnetUpsampleBlock2D": False,
    "SimpleCrossAttnDownBlock2D": True,
    "SimpleCrossAttnUpBlock2D": True,
}


def unet_config(path: str | pathlib.Path) -> UNet2DConfig:
    """Reads a diffusers `config.json` of the DeepFloyd IF family, of any version of diffusers.

    Raises:
      ValueError: not JSON, or a field has a value that the family does not have (a latent-diffusion U-Net, say).
    """
    try:
        given = json.loads(pathlib.Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds no JSON object: give the config.json of a diffusers U-Net")
    try:
        return _unet_config(given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def diffusers_config(config: UNet2DConfig) -> dict:
    """The reverse of `unet_config`: a config.json, with the keys that diffusers' defaults do not cover."""
    down = ["SimpleCrossAttnDownBlock2D" if has else "ResnetDownsampleBlock2D" for has in config.cross_attention]
    up = ["SimpleCrossAttnUpBlock2D" if has else "ResnetUpsampleBlock2D" for has in config.cross_attention[::-1]]
    return _FAMILY | {
        "act_fn": config.act_fn,
        "addition_embed_type_num_heads": config.text_pooling_heads,
        "attention_head_dim": config.attention_head_dim,
        "block_out_channels": list(config.block_out_channels),
        "class_embed_type": "timestep" if config.noise_level_embedding else None,
        "cross_attention_dim": config.cross_attention_dim,
        "down_block_types": down,
        "encoder_hid_dim": config.text_dim,
        "in_channels": config.in_channels,
        "layers_per_block": list(config.layers_per_block),
        "mid_block_scale_factor": config.mid_block_scale_factor,
        "norm_eps": config.norm_eps,
        "norm_num_groups": config.norm_num_groups,
        "only_cross_attention": config.only_cross_attention,
        "out_channels": config.out_channels,
        "resnet_out_scale_factor": config.resnet_out_scale_factor,
        "resnet_skip_time_act": config.resnet_skip_time_act,
        "time_embedding_act_fn": config.time_embedding_act_fn,
        "time_embedding_dim": config.time_embedding_dim,
        "up_block_types": up,
    }


def _unet_config(given: dict[str, Any]) -> UNet2DConfig:
    for field, value in _FAMILY.items():
        if given.get(field) != value:
            raise ValueError(
                f"{field}={given.get(field)!r}, but DeepFloyd IF's U-Nets have {value!r}: this is a U-Net of another "
                "family, which cannot be imported"
            )
    for field, values in _UNUSED.items():
        if given.get(field, values[0]) not in values:
            raise ValueError(
                f"{field}={given[field]!r}, but DeepFloyd IF's U-Nets have {values[-1]!r}, and so has ours"
            )
    for field in ("block_out_channels", "down_block_types", "up_block_types", "encoder_hid_dim"):
        if not given.get(field):
            raise ValueError(f"{field} is missing or null; every config of DeepFloyd IF has it")
    fields = _DEFAULTS | given
    cross_attention = _has_attention(fields["down_block_types"])
    if cross_attention != _has_attention(fields["up_block_types"])[::-1]:
        raise ValueError(
            f"up_block_types={fields['up_block_types']} does not mirror down_block_types={fields['down_block_types']}"
        )
    return UNet2DConfig(
        in_channels=_positive(fields, "in_channels"),
        out_channels=_positive(fields, "out_channels"),
        block_out_channels=_per_level(fields, "block_out_channels"),
        cross_attention=cross_attention,
        layers_per_block=_per_level(fields, "layers_per_block"),
        attention_head_dim=_same_on_all_levels(fields, "attention_head_dim"),
        norm_num_groups=_positive(fields, "norm_num_groups"),
        norm_eps=_positive(fields, "norm_eps", float),
        text_dim=_positive(fields, "encoder_hid_dim"),
        cross_attention_dim=_positive(fields, "cross_attention_dim"),
        text_pooling_heads=_positive(fields, "addition_embed_type_num_heads"),
        time_embedding_dim=None if fields["time_embedding_dim"] is None else _positive(fields, "time_embedding_dim"),
        act_fn=_one_of(fields, "act_fn", _ACTIVATIONS),
        time_embedding_act_fn=_one_of(fields, "time_embedding_act_fn", {None: None, **_ACTIVATIONS}),
        noise_level_embedding=_one_of(fields, "class_embed_type", {None: False, "timestep": True}),
        resnet_skip_time_act=_one_of(fields, "resnet_skip_time_act", {False: False, True: True}),
        resnet_out_scale_factor=_positive(fields, "resnet_out_scale_factor", float),
        mid_block_scale_factor=_positive(fields, "mid_block_scale_factor", float),
        only_cross_attention=_only_cross_attention(fields),
    )


def _has_attention(block_types: list[str]) -> tuple[bool, ...]:
    unknown = [name for name in block_types if name not in _HAS_ATTENTION]
    if unknown:
        raise ValueError(f"DeepFloyd IF's U-Nets do not have the blocks {unknown}, but {sorted(_HAS_ATTENTION)}")
    return tuple(_HAS_ATTENTION[name] for name in block_types)


def _positive(fields: Mapping[str, Any], field: str, kind: type = int) -> Any:
    value = fields[field]
    if isinstance(value, bool) or not isinstance(value, int | kind) or value <= 0:
        raise ValueError(f"{field}={value!r} must be a positive {'number' if kind is float else 'whole number'}")
    return kind(value)


def _per_level(fields: Mapping[str, Any], field: str) -> tuple[int, ...]:
    """One positive number for all levels, or a list with one a level."""
    value, levels = fields[field], len(fields["down_block_types"])
    values = value if isinstance(value, list) else [value] * levels
    if len(values) != levels:
        raise ValueError(f"{field}={value} has {len(values)} entries, down_block_types has {levels}")
    return tuple(_positive({field: each}, field) for each in values)


def _same_on_all_levels(fields: Mapping[str, Any], field: str) -> int:
    values = set(_per_level(fields, field))
    if len(values) > 1:
        raise ValueError(f"{field}={fields[field]} differs between levels, which it does in none of DeepFloyd IF's")
    return values.pop()


def _one_of(fields: Mapping[str, Any], field: str, meanings: Mapping[Any, Any]) -> Any:
    value = fields[field]
    if value not in list(meanings):
        raise ValueError(f"{field}={value!r} must be one of {', '.join(map(repr, meanings))}")
    return meanings[value]


def _only_cross_attention(fields: Mapping[str, Any]) -> bool:
    """One switch for the whole U-Net, though diffusers has one for each level and one for the middle."""
    value, in_middle = fields["only_cross_attention"], fields["mid_block_only_cross_attention"]
    middle = value is True if in_middle is None else in_middle  # so diffusers: a list leaves the middle out
    switches = {*(value if isinstance(value, list) else [value]), middle}
    if switches not in ({True}, {False}):
        raise ValueError(
            f"only_cross_attention={value} with mid_block_only_cross_attention={in_middle}: it must be true everywhere "
            "or false everywhere"
        )
    return middle


def parameter_path(name: str) -> tuple[str | int, ...]:
    """`down_blocks.1.resnets.0.conv1.weight` -> `('down', 1, 'layers', 0, 'resnet', 'conv1', 'weight')`."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def open_unet_parameters(path: str | os.PathLike[str]) -> dict[tuple[str | int, ...], StoredArray]:
    """Opens safetensors (a file, an index, a directory) as `{parameter path: array}`.

    Arrays are in our layouts, and not read yet: 4-D weights are `[height, width, in, out]` kernels, 2-D weights
    `[in, out]` kernels, norm weights scales.

    Raises:
      FileNotFoundError, ValueError: as `safetensors_files.open_arrays`.
    """
    return dict(_to_parameter(name, array) for name, array in safetensors_files.open_arrays(path).items())


def read_unet_parameters(path: str | os.PathLike[str]) -> dict[tuple[str | int, ...], np.ndarray]:
    """Reads all that `open_unet_parameters` opens."""
    return {parameter: array.load() for parameter, array in open_unet_parameters(path).items()}


def check_parameters(found: Mapping[tuple, Any], expected: Mapping[tuple, Any]) -> None:
    """Raises a ValueError that lists missing, unexpected and differently shaped parameters."""
    problems = [f"missing: {_join(path)} {leaf.shape}" for path, leaf in expected.items() if path not in found]
    problems += [f"unexpected: {_join(path)} {leaf.shape}" for path, leaf in found.items() if path not in expected]
    problems += [
        f"shape of {_join(path)}: {found[path].shape} in the file, {leaf.shape} in the model"
        for path, leaf in expected.items()
        if path in found and found[path].shape != leaf.shape
    ]
    if problems:
        raise ValueError("the weights do not fit the U-Net of their config:\n  " + "\n  ".join(problems[:20]))


def _to_parameter(name: str, array: StoredArray) -> tuple[tuple[str | int, ...], StoredArray]:
    *module, leaf = parameter_path(name)
    if leaf != "weight":
        return (*module, leaf), array
    match len(array.shape):
        case 4:
            return (*module, "kernel"), array.transpose(2, 3, 1, 0)
        case 2:
            return (*module, "kernel"), array.transpose(1, 0)
        case _:
            return (*module, "scale"), array


def _join(path: tuple) -> str:
    return "/".join(map(str, path))
