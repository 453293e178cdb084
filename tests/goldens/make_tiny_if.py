"""Makes tiny stand-ins, with random weights, for DeepFloyd IF's stages I and II and for T5, in the published formats.

    PYTHONPATH=. python tests/goldens/make_tiny_if.py --output=workdir/tiny

writes `if_i/unet` and `if_ii/unet` (config.json and safetensors with diffusers' names), and `t5` (safetensors with
Hugging Face's names, and a SentencePiece model), with which every command of docs/pretrained_weights.md runs on a
laptop. What they draw is noise.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from flax import nnx, traverse_util
from safetensors.numpy import save_file

from configs import deepfloyd_if, stunet
from lumiere_jax.checkpoints.deepfloyd_if import diffusers_config
from lumiere_jax.models.unet2d import UNet2D
from lumiere_jax.models.unet2d_config import UNet2DConfig
from lumiere_jax.text.hugging_face_t5 import LAYER_PARAMETERS, POSITION_BIAS
from lumiere_jax.text.t5_encoder import T5Config, T5Encoder
from lumiere_jax.text.tokenizer import train_tokenizer

_DIFFUSERS_NAMES = (
    (r"^(down|up)\.(\d+)\.layers\.(\d+)\.(resnet|attention)\.", r"\1_blocks.\2.\4s.\3."),
    (r"^(down|up)\.(\d+)\.resize\.resnet\.", r"\1_blocks.\2.\1samplers.0."),
    (r"^middle\.resnet_([01])\.", r"mid_block.resnets.\1."),
    (r"^middle\.attention\.", "mid_block.attentions.0."),
    (r"^text_pooling\.(positional_embedding|[qkv]_proj)", r"add_embedding.pool.\1"),
    (r"^text_pooling\.", "add_embedding."),
    (r"^noise_level_embedding\.", "class_embedding."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.(kernel|scale)$", ".weight"),
)
_CAPTIONS = (
    "a dog runs along a beach at sunset",
    "waves break against a rocky coast",
    "a red car drives through the city at night",
    "a woman walks in the forest, slow motion",
)


def diffusers_name(path: Sequence[str | int]) -> str:
    """`('down', 1, 'layers', 0, 'resnet', 'conv1', 'kernel')` -> `down_blocks.1.resnets.0.conv1.weight`."""
    name = ".".join(map(str, path))
    for pattern, replacement in _DIFFUSERS_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def write_unet(directory: pathlib.Path, config: UNet2DConfig, seed: int) -> None:
    """Writes a freshly initialised image model as diffusers does."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(diffusers_config(config), indent=2) + "\n")
    tensors = {}
    for path, leaf in nnx.to_flat_state(nnx.state(UNet2D(config, rngs=nnx.Rngs(seed)))):
        array = np.asarray(leaf.get_value())
        if path[-1] == "kernel":
            array = array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
        tensors[diffusers_name(path)] = np.ascontiguousarray(array)
    save_file(tensors, directory / "diffusion_pytorch_model.safetensors")


def write_t5(directory: pathlib.Path, config: T5Config) -> None:
    """Writes a freshly initialised T5 encoder as Hugging Face does, and a tokenizer."""
    directory.mkdir(parents=True)
    names = {
        "token_embedder/embedding": "shared.weight",
        "encoder/relpos_bias/rel_embedding": f"encoder.block.0.{POSITION_BIAS}",
        "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    }
    for i in range(config.num_layers):
        for ours, theirs in LAYER_PARAMETERS.items():
            names[f"encoder/layers_{i}/{ours}"] = f"encoder.block.{i}.{theirs}"
    parameters = nnx.to_pure_dict(nnx.state(T5Encoder(config, rngs=nnx.Rngs(0))))
    tensors = {}
    for path, leaf in traverse_util.flatten_dict(parameters, sep="/").items():
        # PyTorch's linear layers are [out, in]; so is its table of position biases, but not that of the tokens.
        is_transposed = path.endswith(("kernel", "rel_embedding"))
        tensors[names[path]] = np.ascontiguousarray(leaf.T if is_transposed else leaf)
    save_file(tensors, directory / "model.safetensors")
    (directory / "spiece.model").write_bytes(train_tokenizer(_CAPTIONS, config.vocab_size).model_bytes)


def make(output: pathlib.Path) -> None:
    """Writes both stages and the text encoder.

    Raises:
      FileExistsError: `output` is there already.
    """
    if output.exists():
        raise FileExistsError(f"{output} is there already")
    write_unet(output / "if_i" / "unet", UNet2DConfig(**deepfloyd_if.unet("if_tiny")), seed=0)
    write_unet(output / "if_ii" / "unet", UNet2DConfig(**deepfloyd_if.unet("if_ii_tiny")), seed=1)
    text = stunet.get_config("if_tiny").image_model.text
    sizes = ("vocab_size", "emb_dim", "num_heads", "num_layers", "head_dim", "mlp_dim")
    write_t5(output / "t5", T5Config(**{size: text[size] for size in sizes}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="a directory that is not there yet")
    make(parser.parse_args().output)
