"""Tiny random models written the way the published ones are: diffusers' and Hugging Face's names and layouts.

Independent of the importers: the names are spelt the other way round, diffusers' by `tests/goldens/make_tiny_if.py`.
"""

import json
import pathlib
import re

import jax
import numpy as np
import safetensors.numpy
from flax import nnx, traverse_util
from make_tiny_if import diffusers_name

from lumiere_jax.checkpoints.deepfloyd_if import diffusers_config
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder

UNET = UNet2DConfig(
    out_channels=6,
    block_out_channels=(8, 16),
    cross_attention=(False, True),
    layers_per_block=(1, 1),
    attention_head_dim=8,
    norm_num_groups=4,
    text_dim=16,
    cross_attention_dim=32,
    text_pooling_heads=2,
)
DIFFUSERS_CONFIG = diffusers_config(UNET)
T5 = T5Config(vocab_size=512, emb_dim=16, num_heads=2, num_layers=2, head_dim=8, mlp_dim=24)

_T5_NAMES = (
    (r"^token_embedder/embedding$", "shared.weight"),
    (r"^encoder/encoder_norm/scale$", "encoder.final_layer_norm.weight"),
    (r"^encoder/relpos_bias/.*", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    (r"^encoder/layers_(\d+)/attention/(.).*/kernel$", r"encoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (r"^encoder/layers_(\d+)/mlp/(\w+)/kernel$", r"encoder.block.\1.layer.1.DenseReluDense.\2.weight"),
    (r"^encoder/layers_(\d+)/pre_attention_layer_norm/scale$", r"encoder.block.\1.layer.0.layer_norm.weight"),
    (r"^encoder/layers_(\d+)/pre_mlp_layer_norm/scale$", r"encoder.block.\1.layer.1.layer_norm.weight"),
)


def random_parameters(module: nnx.Module, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters by path, all different from their initialisation."""
    rng = np.random.default_rng(seed)
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module)))
    named = {"/".join(map(str, path)): leaf.shape for path, leaf in flat.items()}
    return {
        name: (rng.normal(size=shape) * (0.2 if len(shape) > 1 else 0.1) + name.endswith("scale")).astype(np.float32)
        for name, shape in sorted(named.items())
    }


def unet_parameters(config: UNet2DConfig = UNET, seed: int = 0) -> dict[str, np.ndarray]:
    return random_parameters(nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0))), seed)


def t5_parameters(config: T5Config = T5) -> dict[str, np.ndarray]:
    return random_parameters(nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0))))


def as_diffusers(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our names and layouts -> diffusers'."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}
    tensors = {}
    for name, array in parameters.items():
        is_kernel = name.endswith("kernel")
        tensors[diffusers_name(name.split("/"))] = np.ascontiguousarray(
            array.transpose(axes[array.ndim]) if is_kernel else array
        )
    return tensors


def as_hugging_face(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """T5X's names and layouts -> Hugging Face's."""
    as_stored = ("scale", "token_embedder/embedding")
    return {
        _hugging_face_name(name): array if name.endswith(as_stored) else np.ascontiguousarray(array.T)
        for name, array in parameters.items()
    }


def _hugging_face_name(name: str) -> str:
    for pattern, replacement in _T5_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def write_unet(
    directory: pathlib.Path, tensors: dict[str, np.ndarray], config: dict | None = None, shards: int = 1
) -> pathlib.Path:
    """`config.json` and the weights as diffusers lays them out, in one file or sharded."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config or DIFFUSERS_CONFIG))
    stem = "diffusion_pytorch_model"
    if shards == 1:
        safetensors.numpy.save_file(tensors, directory / f"{stem}.safetensors", {"format": "pt"})
        return directory
    names = sorted(tensors)
    files = {f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
    for file, inside in files.items():
        safetensors.numpy.save_file({name: tensors[name] for name in inside}, directory / file, {"format": "pt"})
    weight_map = {name: file for file, inside in files.items() for name in inside}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def nested(parameters: dict[str, np.ndarray]) -> dict:
    return traverse_util.unflatten_dict(parameters, sep="/")


def by_path(module: nnx.Module) -> dict[str, jax.Array]:
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module)))
    return {"/".join(map(str, path)): leaf for path, leaf in flat.items()}
