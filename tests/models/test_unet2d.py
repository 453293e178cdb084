"""The layout of the spatial U-Net; what its layers compute is in test_attention.py and in tests/goldens."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lumiere_jax.abstract_model import abstract_unet
from lumiere_jax.models.unet2d_config import UNet2DConfig

SIZES = {"attention_head_dim": 4, "norm_num_groups": 2, "text_dim": 8, "cross_attention_dim": 32}


def convolutions(layers_per_block, size):
    """For each size of a frame how many convolutions a network of three levels computes at it; 1x1 ones not counted."""
    config = UNet2DConfig(
        block_out_channels=(4, 4, 8),
        layers_per_block=layers_per_block,
        cross_attention=(False, False, True),
        text_pooling_heads=2,
        **SIZES,
    )
    graphdef, state = nnx.split(abstract_unet(config))
    shapes = ((1, 2, size, size, 3), (1,), (1, 3, 8))
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    traced = jax.make_jaxpr(lambda state, *given: nnx.merge(graphdef, state)(*given))(state, *arguments)
    assert traced.out_avals[0].shape == (1, 2, size, size, 3)
    found = {}
    for equation in traced.eqns:
        if equation.primitive.name == "conv_general_dilated" and equation.invars[1].aval.shape[:2] == (3, 3):
            height = equation.outvars[0].aval.shape[1]
            found[height] = found.get(height, 0) + 1
    return found


def test_a_level_without_layers():
    """At full resolution remain the first and last convolution, the resize and one layer of the way up.

    Of a residual block there are two; a resize down has them at its new size.
    """
    efficient, plain = convolutions((0, 1, 2), 16), convolutions((1, 1, 2), 16)
    assert efficient == {16: 2 + 2 + 2, 8: 2 + 2 + 2 + 2 * 2, 4: 2 + 2 * 2 + 4 + 3 * 2}
    assert plain == efficient | {16: efficient[16] + 4}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((1, 0, 1), r"layers_per_block=\(1, 0, 1\): 0 at level 1, where block_out_channels=\(4, 8, 8\) go from 4 to 8"),
        ((1, -1, 1), "-1 at level 1"),
        ((1, 1), "layers_per_block=.* has 2 entries"),
    ],
)
def test_layouts_that_there_are_not(layers, message):
    with pytest.raises(ValueError, match=message):
        UNet2DConfig(block_out_channels=(4, 8, 8), cross_attention=(False, False, True), layers_per_block=layers)
