"""What a training step computes: gradients against finite differences; and what the frozen parameters cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from random_unets import randomised, smallest_stunet

from configs import stunet
from lumiere_jax.diffusion.noise_schedule import CosineSchedule
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.optimizer import make_optimizer
from lumiere_jax.train_step import Batch, Objective, create_state, train_step

OBJECTIVE = Objective(CosineSchedule())


def batch(clips, frames, size):
    rng = np.random.default_rng(3)
    video = jnp.asarray(np.tanh(rng.normal(size=(clips, frames, size, size, 3))))
    return Batch(video, jnp.asarray(rng.normal(size=(clips, 3, 8))))


def step_function(graphdef, optimizer):
    """`train_step` of (state, frozen parameters, batch)."""
    fixed = {"graphdef": graphdef, "optimizer": optimizer, "objective": OBJECTIVE, "ema_decays": (0.9,)}
    return lambda state, frozen, clips: train_step(state, frozen, clips, jnp.int32(0), **fixed)


@pytest.mark.usefixtures("float64")
def test_gradients_of_every_temporal_parameter():
    """Against central differences of the whole loss along a random direction in each parameter array."""
    model = TextToVideo(None, randomised(smallest_stunet()), dtype=jnp.dtype("float64"))
    graphdef, trained, frozen = parameter_partition.split(model)
    clips = batch(2, 3, 4)
    # With this optimiser what a step takes off the parameters is their gradient.
    optimizer = optax.sgd(1.0)
    step = jax.jit(step_function(graphdef, optimizer))
    state = create_state(trained, optimizer)
    after, metrics = step(state, frozen, clips)
    gradient = jax.tree.map(jnp.subtract, trained, after.parameters)
    np.testing.assert_allclose(optax.tree.norm(gradient), metrics["gradient_norm"], rtol=1e-9)

    def loss(parameters):
        return float(step(state._replace(parameters=parameters), frozen, clips)[1]["loss"])

    rng, distance = np.random.default_rng(0), 1e-5
    leaves, tree = jax.tree.flatten_with_path(trained)
    for number, ((path, leaf), slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        direction = rng.normal(size=leaf.shape) / np.sqrt(leaf.size)

        def moved(by, number=number, direction=direction):
            changed = [value + by * direction if i == number else value for i, (_, value) in enumerate(leaves)]
            return jax.tree.unflatten(tree, changed)

        expected = (loss(moved(distance)) - loss(moved(-distance))) / (2 * distance)
        name = jax.tree_util.keystr(path)
        assert abs(expected) > 1e-6, f"the loss does not depend on {name}"
        np.testing.assert_allclose(np.vdot(slope, direction), expected, rtol=1e-6, atol=1e-10, err_msg=name)


def test_frozen_parameters_have_no_optimiser_slots():
    optimizer = make_optimizer(stunet.get_config("test").training)
    _, trained, frozen = parameter_partition.split(smallest_stunet())
    state = jax.eval_shape(lambda parameters: create_state(parameters, optimizer), trained)
    slots = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape]
    # AdamW: two numbers for every trained parameter, and counts of steps.
    assert sum(leaf.size for leaf in slots) == 2 * parameter_partition.count(trained)
    assert parameter_partition.count(state.parameters) == parameter_partition.count(trained)
    assert parameter_partition.count(frozen) > 0


# ------------------------------------------------------------------------------------ work, from the compiled program


def flops(function, *arguments):
    """Floating-point operations of the compiled program."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_the_compiler_counts_convolutions():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, kernel = jax.ShapeDtypeStruct((2, 10, 10, 16), jnp.float32), jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.float32)
    assert flops(convolve, x, kernel) == 2 * (2 * 8 * 8 * 32) * (3 * 3 * 16)


def test_the_frozen_part_costs_no_weight_gradients():
    """Wide enough that convolutions and products with weights are nearly all of the work, as they are at full size."""
    model = TextToVideo(None, smallest_stunet((64, 128)))
    clips = Batch(jax.ShapeDtypeStruct((1, 4, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((1, 3, 8), jnp.float32))
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    partition = parameter_partition.split(model)

    def forward(trained, frozen, clips, time):
        return nnx.merge(partition[0], trained, frozen).predict(clips.video, time, clips.text)

    def training(graphdef, trained, frozen):
        optimizer = optax.sgd(1.0)
        step = step_function(graphdef, optimizer)

        def update(trained, frozen, clips):
            return step(create_state(trained, optimizer), frozen, clips)[0].parameters

        return flops(update, trained, frozen, clips)

    once = flops(forward, *partition[1:], clips, time)
    assert 1.9 < training(*partition) / once < 2.3
    graphdef, everything = nnx.split(model)
    assert 2.8 < training(graphdef, nnx.to_pure_dict(everything), {}) / once < 3.1
