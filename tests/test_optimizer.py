"""Optimiser and learning rate: against their definitions."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import stunet
from lumiere_jax.optimizer import learning_rate_schedule, make_optimizer


def fields(**changed):
    plain = {"learning_rate": 0.1, "warmup_steps": 0, "steps": 100, "schedule": "constant", "weight_decay": 0.0}
    plain |= {"clip_gradient_norm": 1e9}
    return ml_collections.ConfigDict(stunet.get_config("test").training.to_dict() | plain | changed)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate(schedule):
    """10 updates of warm-up from zero; 20 from the peak to a tenth of it, where it stays."""
    rate = learning_rate_schedule(fields(warmup_steps=10, steps=30, schedule=schedule, final_learning_rate=0.1))
    share = {
        "cosine": lambda x: 0.1 + 0.9 * (1 + np.cos(np.pi * x)) / 2,
        "linear": lambda x: 1 - 0.9 * x,
        "constant": lambda x: np.ones_like(x),
    }[schedule]
    updates = np.arange(40)
    expected = np.where(updates < 10, 0.1 * updates / 10, 0.1 * share(np.clip((updates - 10) / 20, 0, 1)))
    np.testing.assert_allclose([rate(update) for update in updates], expected, atol=1e-7)


def step(optimizer, parameters, gradient, state=None):
    state = optimizer.init(parameters) if state is None else state
    updates, state = optimizer.update(gradient, state, parameters)
    return optax.apply_updates(parameters, updates), state


def test_adamw_by_hand():
    config = fields(optimizer="adamw", weight_decay=0.5, adam_b2=0.9)
    optimizer, parameters = make_optimizer(config), {"w": jnp.array([1.0, -2.0])}
    first, second = np.array([0.3, -0.2]), np.array([-0.1, 0.4])
    after, state = step(optimizer, parameters, {"w": jnp.asarray(first, jnp.float32)})
    after, _ = step(optimizer, after, {"w": jnp.asarray(second, jnp.float32)}, state)
    w, mean, square = np.array([1.0, -2.0]), 0.0, 0.0
    for count, gradient in enumerate((first, second), start=1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.9 * square + 0.1 * gradient**2
        adam = mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.9**count)) + 1e-8)
        w = w - 0.1 * (adam + 0.5 * w)
    np.testing.assert_allclose(after["w"], w, rtol=1e-5)


def test_adafactor_moves_what_starts_at_zero_as_far_as_the_rest():
    """The inflation blocks' projections start at zero: their first step is the learning rate, not a share of it."""
    optimizer = make_optimizer(fields(optimizer="adafactor", learning_rate=1e-2))
    parameters = {"projection": jnp.zeros((4, 4)), "kernel": jnp.full((4, 4), 3.0)}
    gradient = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.7), parameters)
    after, _ = step(optimizer, parameters, gradient)
    np.testing.assert_allclose(after["projection"], -1e-2, rtol=1e-3)
    np.testing.assert_allclose(after["kernel"], 3.0 - 1e-2, rtol=1e-5)


def test_adafactor_keeps_row_and_column_means_alone_where_they_are_large():
    slots = jax.eval_shape(
        make_optimizer(fields(optimizer="adafactor")).init, {"w": jax.ShapeDtypeStruct((256, 512), jnp.float32)}
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(slots)) < 2 * (256 + 512)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weight_decay_is_times_the_learning_rate(name):
    def decayed(weight_decay):
        optimizer = make_optimizer(fields(optimizer=name, learning_rate=0.1, weight_decay=weight_decay))
        return step(optimizer, {"w": jnp.full((3,), 2.0)}, {"w": jnp.ones((3,))})[0]["w"]

    np.testing.assert_allclose(decayed(0.0) - decayed(0.25), 0.1 * 0.25 * 2.0, rtol=1e-4)


def test_gradients_are_clipped_by_their_common_norm():
    optimizer = make_optimizer(fields(optimizer="adamw", clip_gradient_norm=1.0))
    gradient = {"a": jnp.array([3e3]), "b": jnp.array([4e3])}
    state = step(optimizer, jax.tree.map(jnp.zeros_like, gradient), gradient)[1]
    means = [leaf for path, leaf in jax.tree.leaves_with_path(state) if ".mu" in jax.tree_util.keystr(path)]
    np.testing.assert_allclose(np.concatenate(means), [0.1 * 0.6, 0.1 * 0.8], rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": "sgd"}, "training.optimizer='sgd': use adamw or adafactor"),
        ({"schedule": "step"}, "training.schedule='step': use cosine, linear or constant"),
        ({"learning_rate": -1.0}, "training.learning_rate=-1.0 must not be negative"),
        ({"warmup_steps": -1}, "training.warmup_steps=-1 must not be negative"),
        ({"clip_gradient_norm": 0.0}, "training.clip_gradient_norm=0.0 must be positive"),
    ],
)
def test_settings_that_cannot_be(changed, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(fields(**changed))
