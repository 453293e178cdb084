"""Programs for shapes alone: those of the conditional model, which sees more than its base."""

import jax

from configs import conditional, stunet
from lumiere_jax.abstract_program import PROGRAMS, forward_flops, needed_flops
from lumiere_jax.distributed.mesh import make_mesh


def test_the_conditional_model():
    config, base = conditional.get_config("test"), stunet.get_config("test")
    masks = {}
    for name, lower in PROGRAMS.items():
        shapes = {leaf.shape for leaf in jax.tree.leaves(lower(config, make_mesh()).in_avals)}
        masks[name] = (config.training.batch_size, 4, 16, 16, 1) in shapes
    assert masks == {"train": False, "sample": True}  # training draws its masks itself
    # The first convolution: 3x3, four channels more to each of the finest level's, and their sum with the others.
    pixels, width = 4 * 16 * 16, config.image_model.unet.block_out_channels[0]
    more = forward_flops(config) - forward_flops(base)
    borders = 2 * 4 * width * 4 * (4 * 3 * 16 - 4)  # what lies outside of a frame is not multiplied
    assert 0 <= 2 * 9 * 4 * width * pixels - borders <= more <= 2 * 9 * 4 * width * pixels + 8 * width * pixels
    assert needed_flops(config, "train") > needed_flops(base, "train")
