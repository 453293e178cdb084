"""U-Nets with random parameters, drawn by NumPy: running their initialisers takes longer than the tests."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumiere_jax.abstract_model import abstract_unet
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.unet2d_config import UNet2DConfig


def randomised(module, seed=0):
    """The same module (it may be abstract) with every parameter random, so that none hides behind a zero or a one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        match path[-1]:
            case "scale":
                value = 1.0 + 0.2 * noise
            case "bias":
                value = 0.2 * noise
            case _:
                value = noise / math.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.asarray(value, leaf.dtype)

    graphdef, state = nnx.split(module)
    leaves = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    drawn = {path: draw(path, leaf) for path, leaf in leaves.items()}
    return nnx.merge(graphdef, nnx.traversals.unflatten_mapping(drawn))


def smallest_stunet(widths=(4, 8), super_resolution=False):
    """An abstract Space-Time U-Net of two levels: each kind of temporal layer, and as little else as can be."""
    image = UNet2DConfig(
        in_channels=6 if super_resolution else 3,
        noise_level_embedding=super_resolution,
        block_out_channels=widths,
        layers_per_block=(1, 1),
        cross_attention=(False, True),
        attention_head_dim=4,
        norm_num_groups=2,
        text_dim=8,
        cross_attention_dim=32,
        text_pooling_heads=2,
    )
    return abstract_unet(image, TemporalConfig(strides=(2,), norm_groups=2, attention_head_dim=4))
