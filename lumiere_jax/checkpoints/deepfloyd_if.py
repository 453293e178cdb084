"""DeepFloyd IF's weights (diffusers `UNet2DConditionModel`: config.json and safetensors) for our spatial U-Net.

Names are diffusers', split on dots, up to three regroupings: a residual block and the attention after it form one
layer (`resnets.j`, `attentions.j` -> `layers/j/resnet`, `layers/j/attention`), a level's resize is `resize/resnet`, and
a few modules are renamed (`_RENAMED`).
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from lumiere_jax.models.unet2d import UNet2DConfig

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


def unet_config(path: str | pathlib.Path) -> UNet2DConfig:
    """Reads a diffusers `config.json` of the DeepFloyd IF family.

    Raises:
      ValueError: a field has a value that the family does not have (a latent-diffusion U-Net, say).
    """
    fields: dict[str, Any] = json.loads(pathlib.Path(path).read_text())
    family = {
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": "text",
        "cross_attention_norm": "group_norm",
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "resnet_time_scale_shift": "scale_shift",
    }
    for field, value in family.items():
        if fields.get(field) != value:
            raise ValueError(
                f"{path}: {field}={fields.get(field)!r}, but DeepFloyd IF's U-Nets have {value!r}: this is a U-Net of "
                "another family, which cannot be imported"
            )
    widths = tuple(fields["block_out_channels"])
    layers = fields["layers_per_block"]
    return UNet2DConfig(
        in_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        block_out_channels=widths,
        cross_attention=tuple(name.startswith("SimpleCross") for name in fields["down_block_types"]),
        layers_per_block=(layers,) * len(widths) if isinstance(layers, int) else tuple(layers),
        attention_head_dim=fields["attention_head_dim"],
        norm_num_groups=fields["norm_num_groups"],
        norm_eps=fields["norm_eps"],
        text_dim=fields["encoder_hid_dim"],
        cross_attention_dim=fields["cross_attention_dim"],
        text_pooling_heads=fields["addition_embed_type_num_heads"],
        time_embedding_dim=fields["time_embedding_dim"],
        act_fn=fields["act_fn"],
        time_embedding_act_fn=fields["time_embedding_act_fn"],
        noise_level_embedding=fields["class_embed_type"] == "timestep",
        resnet_skip_time_act=fields["resnet_skip_time_act"],
        resnet_out_scale_factor=float(fields["resnet_out_scale_factor"]),
        mid_block_scale_factor=float(fields["mid_block_scale_factor"]),
        only_cross_attention=fields["only_cross_attention"],
    )


def parameter_path(name: str) -> tuple[str | int, ...]:
    """`down_blocks.1.resnets.0.conv1.weight` -> `('down', 1, 'layers', 0, 'resnet', 'conv1', 'weight')`."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def read_unet_parameters(path: str | pathlib.Path) -> dict[tuple[str | int, ...], np.ndarray]:
    """Reads a safetensors file into `{parameter path: array}` in our layouts.

    4-D weights become `[height, width, in, out]` kernels, 2-D weights `[in, out]` kernels, norm weights scales.
    """
    return dict(_to_parameter(name, array) for name, array in load_file(path).items())


def _to_parameter(name: str, array: np.ndarray) -> tuple[tuple[str | int, ...], np.ndarray]:
    *module, leaf = parameter_path(name)
    if leaf != "weight":
        return (*module, leaf), array
    if array.ndim == 4:
        return (*module, "kernel"), array.transpose(2, 3, 1, 0)
    if array.ndim == 2:
        return (*module, "kernel"), array.T
    return (*module, "scale"), array


def check_parameters(found: Mapping[tuple, np.ndarray], expected: Mapping[tuple, Any]) -> None:
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


def _join(path: tuple) -> str:
    return "/".join(map(str, path))
