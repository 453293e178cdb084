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
from lumiere_jax.models.unet2d import UNet2DConfig
from lumiere_jax.text.storage import StoredArray

# What the spatial U-Net takes for granted.
_FAMILY = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text",
    "cross_attention_norm": "group_norm",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}
# Values that it knows. The first is diffusers' default, which a config.json without the field means.
_KNOWN = {
    "act_fn": ("silu", "gelu"),
    "center_input_sample": (False,),
    "class_embed_type": (None, "timestep"),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "only_cross_attention": (False, True),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None, "silu", "gelu"),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_DOWN_BLOCKS = {  # and their mirror images on the way up
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
    "SimpleCrossAttnDownBlock2D": "SimpleCrossAttnUpBlock2D",
}
_SIZES = (
    *("in_channels", "out_channels", "block_out_channels", "down_block_types", "layers_per_block"),
    *("attention_head_dim", "encoder_hid_dim", "cross_attention_dim"),
)

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


def unet_config(path: str | os.PathLike[str]) -> UNet2DConfig:
    """Reads a diffusers `config.json` of the DeepFloyd IF family.

    Raises:
      FileNotFoundError: there is none.
      ValueError: not JSON; a size is missing; a field has a value that the family does not have (a latent-diffusion
        U-Net, say).
    """
    fields = _read_json(pathlib.Path(path))
    for field, value in _FAMILY.items():
        _check_family(path, field, fields.get(field), (value,))
    for field, values in _KNOWN.items():
        _check_family(path, field, fields.get(field, values[0]), values)
    only_cross_attention = fields.get("only_cross_attention", False)
    middle = fields.get("mid_block_only_cross_attention")
    _check_family(path, "mid_block_only_cross_attention", middle, (None, only_cross_attention))
    missing = [field for field in _SIZES if fields.get(field) is None]
    if missing:
        raise ValueError(f"{path} does not say {missing}: take the config.json that belongs to the weights")
    widths = tuple(fields["block_out_channels"])
    layers = fields["layers_per_block"]
    down = tuple(fields["down_block_types"])
    unknown = [name for name in down if name not in _DOWN_BLOCKS]
    if unknown:
        _check_family(path, "down_block_types", unknown[0], tuple(_DOWN_BLOCKS))
    mirrored = [_DOWN_BLOCKS[name] for name in reversed(down)]
    _check_family(path, "up_block_types", fields.get("up_block_types", mirrored), (mirrored,))
    return UNet2DConfig(
        in_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        block_out_channels=widths,
        cross_attention=tuple(name.startswith("SimpleCross") for name in down),
        layers_per_block=(layers,) * len(widths) if isinstance(layers, int) else tuple(layers),
        attention_head_dim=fields["attention_head_dim"],
        norm_num_groups=fields.get("norm_num_groups", 32),
        norm_eps=fields.get("norm_eps", 1e-5),
        text_dim=fields["encoder_hid_dim"],
        cross_attention_dim=fields["cross_attention_dim"],
        text_pooling_heads=fields.get("addition_embed_type_num_heads", 64),
        time_embedding_dim=fields.get("time_embedding_dim"),
        act_fn=fields.get("act_fn", "silu"),
        time_embedding_act_fn=fields.get("time_embedding_act_fn"),
        noise_level_embedding=fields.get("class_embed_type") == "timestep",
        resnet_skip_time_act=fields.get("resnet_skip_time_act", False),
        resnet_out_scale_factor=float(fields.get("resnet_out_scale_factor", 1.0)),
        mid_block_scale_factor=float(fields.get("mid_block_scale_factor", 1.0)),
        only_cross_attention=only_cross_attention,
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is no config.json of a diffusers model: it holds no fields")
    return fields


def _check_family(path: str | os.PathLike[str], field: str, found: Any, allowed: tuple) -> None:
    if found not in allowed:
        raise ValueError(
            f"{path}: {field}={found!r}, but DeepFloyd IF's U-Nets have {' or '.join(map(repr, allowed))}: this is a "
            "U-Net of another family, which cannot be imported"
        )


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
        raise ValueError("the weights do not fit the U-Net of config.json:\n  " + "\n  ".join(problems[:20]))


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
