"""What a training step computes: gradients against finite differences; and what the frozen parameters cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from random_runs import random_run
from random_unets import randomised, smallest_stunet

from configs import stunet
from lumiere_jax.diffusion.noise_schedule import CosineSchedule
from lumiere_jax.models import parameter_partition
from lumiere_jax.models.text_to_video import TextToVideo
from lumiere_jax.optimizer import make_optimizer
from lumiere_jax.pipelines.generation import Settings
from lumiere_jax.train_step import Batch, Objective, Teacher, _draw, create_state, train_step, validation_step

OBJECTIVE = Objective(CosineSchedule())


def batch(clips, frames, size):
    rng = np.random.default_rng(3)
    video = jnp.asarray(np.tanh(rng.normal(size=(clips, frames, size, size, 3))))
    return Batch(video, jnp.asarray(rng.normal(size=(clips, 3, 8))))


def step_function(graphdef, optimizer, objective=OBJECTIVE, ema_decays=(0.9,), **settings):
    """`train_step` of (state, frozen parameters, batch)."""
    fixed = {"graphdef": graphdef, "optimizer": optimizer, "objective": objective, "ema_decays": ema_decays}
    return lambda state, frozen, clips: train_step(state, frozen, clips, jnp.int32(0), **fixed, **settings)


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


# ------------------------------------------------------------------------------------ what a student learns


def test_a_students_loss_is_against_two_guided_steps_of_its_teacher():
    """Restated clip by clip: times of the student's grid, two DDIM steps of the guided and clipped teacher."""
    run, schedule, steps = random_run(), CosineSchedule(), 2
    graphdef, student, frozen = parameter_partition.split(run.model)
    teacher = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), student)
    tokens = {text: run.tokenizer.encode([text], 32)[0] for text in ("a red circle", "a blue star", "")}
    video = jnp.asarray(np.tanh(np.random.default_rng(3).normal(size=(2, 3, 8, 8, 3))), jnp.float32)
    captioned = Batch(video, jnp.concatenate([tokens["a red circle"], tokens["a blue star"]]))
    settings = Settings(schedule, "x0", "ddim", 2 * steps, 3.0, "static")
    objective = Objective(schedule, "x0", student_steps=steps, teacher=settings)
    step = functools.partial(validation_step, graphdef=graphdef, objective=objective)
    losses = jax.jit(step)(student, frozen, captioned, Teacher(teacher, tokens[""][0]))

    predict = jax.jit(lambda trained, x, t, ids: _predicted(graphdef, trained, frozen, x, t, ids))
    draws = _draw(jnp.array([0.25, 0.75]), *jax.random.split(jax.random.key(0)), video, objective)
    expected = {"loss": 0.0, "teacher_loss": 0.0}
    for clip, (t, caption) in enumerate([(0.5, "a red circle"), (1.0, "a blue star")]):
        levels = [np.float64(schedule.alpha_sigma(jnp.float32(time))) for time in (t, t - 0.25, t - 0.5)]
        noisy = x = levels[0][0] * video[clip] + levels[0][1] * draws.noise[clip]
        for number in range(2):
            (alpha, sigma), (next_alpha, next_sigma) = levels[number : number + 2]
            time = t - 0.25 * number
            guided, empty = (predict(teacher, x, time, tokens[text]) for text in (caption, ""))
            x0 = np.clip(empty + 3.0 * (guided - empty), -1, 1)
            x = next_alpha * x0 + next_sigma * (x - alpha * x0) / sigma
        (alpha, sigma), (end_alpha, end_sigma) = levels[0], levels[2]
        wanted = x0 if t == 0.5 else (x - end_sigma / sigma * noisy) / (end_alpha - end_sigma / sigma * alpha)
        for name, parameters in (("loss", student), ("teacher_loss", teacher)):
            error = predict(parameters, noisy, t, tokens[caption]) - wanted
            expected[name] += np.square(np.float64(error)).mean() / 2
    assert expected["loss"] > 1e-3
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=2e-3, err_msg=name)


def _predicted(graphdef, trained, frozen, x, t, ids):
    model = nnx.merge(graphdef, trained, frozen)
    return model.predict(x[None], 1000.0 * jnp.full(1, t), model.embed_text(ids))[0]


# ------------------------------------------------------------------------------------ what a loss draws


@pytest.mark.parametrize("low_res_factor", [None, 2])
def test_draws(low_res_factor):
    """One time in each part of (0, 1], one level for all frames of a clip, and noise that is nowhere twice."""
    objective = Objective(CosineSchedule(), low_res_factor=low_res_factor, max_noise_level=0.3)
    keys = jax.random.split(jax.random.key(1))
    draws = _draw(jnp.linspace(0.1, 1, 8), *keys, jnp.zeros((8, 4, 16, 16, 3)), objective)
    noises = [np.asarray(draws.noise)]
    if low_res_factor:
        noises.append(np.asarray(draws.low_res_noise))
        assert draws.low_res_level.shape == (8,)
        assert 0 < draws.low_res_level.min() < draws.low_res_level.max() <= 0.3
    else:
        assert draws.low_res_noise is draws.low_res_level is None
    rows = np.concatenate([noise.reshape(-1, 16 * 16 * 3) for noise in noises])  # one for each frame
    limit = 5 / np.sqrt(rows.shape[1])
    np.testing.assert_allclose([rows.mean(), rows.var()], [0, 1], atol=limit / np.sqrt(len(rows)) * 2)
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < limit


# ------------------------------------------------------------------------------------ accumulation, averages, guards


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("low_res_factor", [None, 2])
def test_accumulated_gradients_are_those_of_the_whole_batch(low_res_factor):
    """In float64, so that only the order of a sum may differ: one update of Adam, which a wrong gradient turns."""
    objective = Objective(CosineSchedule(), low_res_factor=low_res_factor, max_blur=1.0, min_jpeg_quality=20)
    stunet = smallest_stunet(super_resolution=bool(low_res_factor))
    model = TextToVideo(None, randomised(stunet), dtype=jnp.dtype("float64"))
    graphdef, trained, frozen = parameter_partition.split(model)
    optimizer, clips = optax.adam(1e-3), batch(6, 3, 4)
    results = {}
    for parts in (1, 2, 3):
        step = jax.jit(step_function(graphdef, optimizer, objective, accumulation_steps=parts))
        results[parts] = step(create_state(trained, optimizer), frozen, clips)
    for parts in (2, 3):
        jax.tree.map(
            lambda one, many: np.testing.assert_allclose(many, one, rtol=1e-6, atol=1e-11), results[1], results[parts]
        )
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, results[1][0].parameters, trained))
    assert moved > 1e-3


def test_parts_that_do_not_divide_the_batch():
    graphdef, trained, frozen = parameter_partition.split(TextToVideo(None, smallest_stunet()))
    step = step_function(graphdef, optax.sgd(1.0), accumulation_steps=4)
    clips = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), batch(6, 3, 4))
    state = jax.eval_shape(lambda parameters: create_state(parameters, optax.sgd(1.0)), trained)
    with pytest.raises(ValueError, match="accumulation_steps=4 does not divide a batch of 6 clips"):
        jax.eval_shape(step, state, frozen, clips)


class Constant(nnx.Module):
    """Predicts its one number everywhere, times the sum of the text."""

    def __init__(self):
        self.value = nnx.Param(jnp.float32(0.5))
        self.unet = self
        self.is_inflated = False

    def embed_text(self, text):
        return text

    def predict(self, x_t, time, text, low_res, noise_level):
        return jnp.full(x_t.shape, self.value[...]) * text.sum()


def test_averages_by_hand():
    graphdef, parameters = nnx.split(Constant())
    trained, optimizer = nnx.to_pure_dict(parameters), optax.sgd(0.1)
    decays = (0.0, 0.25, 0.999)
    step = jax.jit(step_function(graphdef, optimizer, ema_decays=decays))
    clips = Batch(jnp.zeros((2, 1, 4, 4, 3)), jnp.ones((2, 1, 1)))
    state, expected = create_state(trained, optimizer, len(decays)), [0.5] * 3
    for number in range(1, 6):
        state, _ = step(state, {}, clips)
        value = float(state.parameters["value"])
        used = [min(decay, number / (number + 10)) for decay in decays]
        expected = [decay * old + (1 - decay) * value for decay, old in zip(used, expected, strict=True)]
        np.testing.assert_allclose([float(average["value"]) for average in state.averages], expected, rtol=1e-5)
    assert len(set(expected)) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_not_made(bad):
    """Nor does it reach averages, optimiser or running mean; the step and the count go on."""
    graphdef, parameters = nnx.split(Constant())
    trained, optimizer = nnx.to_pure_dict(parameters), optax.adam(0.1)
    step = jax.jit(step_function(graphdef, optimizer))
    clips = Batch(jnp.zeros((2, 1, 4, 4, 3)), jnp.ones((2, 1, 1)))
    before, _ = step(create_state(trained, optimizer), {}, clips)
    after, metrics = step(before, {}, clips._replace(text=clips.text * bad))
    assert not np.isfinite(metrics["loss"])
    assert (metrics["is_finite"], metrics["skipped"], after.health.skipped) == (0, 1, 1)
    expected = before._replace(step=before.step + 1, health=before.health._replace(skipped=jnp.int32(1)))
    jax.tree.map(np.testing.assert_array_equal, after, expected)
    on, metrics = step(after, {}, clips)
    assert (metrics["is_finite"], metrics["skipped"], on.health.losses) == (1, 1, 2)
    assert on.parameters["value"] != before.parameters["value"]


# ------------------------------------------------------------------------------------ what the frozen parameters cost


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
