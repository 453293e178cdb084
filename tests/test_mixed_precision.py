"""bfloat16 computes, float32 remembers: what an update that no bfloat16 can hold does to the trained parameters."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_unets import randomised, smallest_stunet

from configs import stunet
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.train_setup import step_settings
from lumiere_jax.train_step import Batch, create_state, train_step

RATE, STEPS = 2e-5, 400


@pytest.fixture(scope="module")
def start():
    """The compiled step, lowered step, state before the first update, and the other arguments, as train.py has them."""
    config = stunet.get_config("test")
    config.training.update({"learning_rate": RATE, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0})
    settings = step_settings(config)
    model = TextToVideo(None, randomised(smallest_stunet()), dtype=jnp.dtype("bfloat16"))
    graphdef, trained, frozen = parameter_partition.split(model)
    frozen = jax.tree.map(lambda leaf: leaf.astype(model.dtype), frozen)
    rng = np.random.default_rng(0)
    batch = Batch(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 4, 8, 8, 3), (2, 3, 8))))
    state = create_state(trained, settings["optimizer"], averages=len(settings["ema_decays"]))
    given = (frozen, batch, jnp.int32(0))
    lowered = jax.jit(functools.partial(train_step, graphdef=graphdef, **settings)).lower(state, *given)
    return lowered.compile(), lowered, state, given


def bfloat16(leaf):
    return np.asarray(jnp.asarray(leaf).astype(jnp.bfloat16).astype(jnp.float32))


def norm_scales(tree):
    """The one kind of parameter that starts near 1, where bfloat16 has steps of 1/256 and 1/128."""
    leaves = [(path, leaf) for path, leaf in nnx.traversals.flatten_mapping(tree).items() if path[-1] == "scale"]
    assert leaves
    return np.concatenate([np.asarray(leaf).ravel() for _, leaf in leaves])


def test_small_updates_add_up(start):
    step, _, before, given = start
    state = after_one = step(before, *given)[0]
    for _ in range(STEPS - 1):
        state = step(state, *given)[0]
    first, second, last = (norm_scales(s.parameters) for s in (before, after_one, state))
    # Not one of these updates would move a bfloat16: it is rounded off.
    assert np.abs(second - first).max() > 0
    np.testing.assert_array_equal(bfloat16(bfloat16(first) + (second - first)), bfloat16(first))
    # Together they are felt: many of the steps cancel, but the parameters went somewhere, and the network, which
    # reads them in bfloat16, sees some of them moved. So does their average, by steps that are smaller still.
    for values in (last, norm_scales(state.averages[0])):
        assert np.median(np.abs(values - first)) > 0.05 * RATE * STEPS
        assert (bfloat16(values) != bfloat16(first)).mean() > 0.05


def test_all_that_is_kept_is_float32(start):
    step, _, state, given = start
    for tree in (state, step(state, *given)[0]):
        for kept in (tree.parameters, tree.averages, tree.optimizer):
            assert {str(leaf.dtype) for leaf in jax.tree.leaves(kept) if leaf.ndim} == {"float32"}


def test_all_products_are_of_bfloat16(start):
    _, lowered, _, _ = start
    products = [
        line for line in lowered.as_text().splitlines() if re.search(r"stablehlo\.(convolution|dot_general)", line)
    ]
    assert len(products) > 100  # forward and backward
    # But for groups' statistics, which a normalisation sums and spreads in float32 at the highest precision.
    # They have no pixels: a clip's frames and its channels or groups at most.
    statistics = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
    shapes = re.findall(r"tensor<([\dx]+)x\w+>", "\n".join(statistics))
    assert shapes
    assert all(shape.count("x") <= 2 for shape in shapes)
    products = [line for line in products if line not in statistics]
    wide = [line.strip() for line in products if "bf16" not in line or "f32>" in line.partition(" : ")[2]]
    assert not wide
