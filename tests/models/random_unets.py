"""U-Nets with random parameters, drawn by NumPy: running their initialisers takes longer than the tests."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lumiere_jax.models.stunet import inflate
from lumiere_jax.models.temporal import TemporalConfig
from lumiere_jax.models.unet2d import UNet2D, UNet2DConfig


class OneKey(nnx.Rngs):
    """Draws every parameter alike: real streams count their draws, which takes nnx a minute while shapes are traced."""

    def params(self):
        return jax.random.key(0)


def abstract_unet(config: UNet2DConfig, temporal: TemporalConfig | None = None) -> UNet2D:
    """A U-Net of any size, inflated if `temporal` is given, with shapes in place of parameters."""

    def build():
        unet = UNet2D(config, rngs=OneKey(0))
        return unet if temporal is None else inflate(unet, temporal, rngs=OneKey(0))

    return nnx.eval_shape(build)


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
