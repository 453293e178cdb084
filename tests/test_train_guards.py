"""The guards by themselves: what they call a spike, what they count, and when they end a run."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import stunet
from lumiere_jax import train_guards
from lumiere_jax.train_guards import Guards, act, guards_of, judge, new_health


@pytest.fixture(scope="module")
def losses():
    """Like those of a training: positive, scattered, falling."""
    return np.random.default_rng(0).gamma(9.0, 1 / 9, 300).astype(np.float32) * np.linspace(1.0, 0.5, 300)


@pytest.fixture(scope="module")
def judged():
    """Compiled: (health, loss, gradient norm) -> judgement, for each kind of guards."""
    return {
        name: jax.jit(lambda *arguments, guards=guards: judge(*arguments, guards))
        for name, guards in {
            "off": Guards(),
            "report": Guards(spike_deviations=6.0),
            "skip": Guards(spike_deviations=6.0, skip_spikes=True),
        }.items()
    }


def run(judge, losses, health=None):
    """The last health, and for each loss whether its update is made, and the metrics."""
    health, made, metrics = health or new_health(), [], []
    for loss in losses:
        health, is_sound, found = judge(health, jnp.float32(loss), jnp.float32(1.0))
        made.append(bool(is_sound))
        metrics.append({name: float(value) for name, value in found.items()})
    return health, made, metrics


def test_running_mean_and_deviation_by_hand(judged, losses):
    """In float64, with the weights written out."""
    health, made, metrics = run(judged["report"], losses[:150])
    assert all(made)
    assert health.losses == 150
    smoothed, squares = [], []
    for count in range(1, 151):
        weights = 0.99 ** np.arange(count)[::-1]
        smoothed.append(np.average(np.float64(losses[:count]), weights=weights))
        squares.append((losses[count - 1] - smoothed[-2]) ** 2 if count > 1 else 0.0)
    np.testing.assert_allclose([found["smoothed_loss"] for found in metrics], smoothed, rtol=1e-4)
    weights = 0.99 ** np.arange(150)[::-1]
    np.testing.assert_allclose(health.variance / (1 - 0.99**150), np.sum(weights * squares) / weights.sum(), rtol=1e-3)


def test_no_spike_in_an_undisturbed_training(judged, losses):
    _, made, metrics = run(judged["skip"], losses)
    assert all(made)
    assert not any(found["is_spike"] for found in metrics)


@pytest.mark.parametrize(("guards", "spikes", "skipped"), [("off", 0, 0), ("report", 1, 0), ("skip", 1, 1)])
def test_a_spike(judged, losses, guards, spikes, skipped):
    series = losses.copy()
    series[200] = 5.0  # more than ten deviations
    health, made, metrics = run(judged[guards], series)
    assert (int(health.spikes), int(health.skipped)) == (spikes, skipped)
    assert [number for number, found in enumerate(metrics) if found["is_spike"]] == [200] * spikes
    assert [number for number, is_made in enumerate(made) if not is_made] == [200] * skipped
    # What is left out does not count for the mean either.
    leap = metrics[200]["smoothed_loss"] - metrics[199]["smoothed_loss"]
    assert abs(leap) < 1e-6 if guards == "skip" else leap > 0.03


def test_a_low_loss_is_no_spike_and_an_early_one_none_yet(judged, losses):
    series = losses.copy()
    series[50], series[200] = 50.0, 0.0
    assert int(run(judged["skip"], series)[0].spikes) == 0


def test_what_is_not_finite_is_never_made_and_never_remembered(judged, losses):
    for guards in judged.values():
        health, _, _ = run(guards, losses[:20])
        for loss, norm in ((np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, np.inf)):
            after, is_sound, metrics = guards(health, jnp.float32(loss), jnp.float32(norm))
            assert not is_sound
            assert metrics["is_finite"] == 0
            assert after == health._replace(skipped=health.skipped + 1)


def test_judging_goes_on_where_it_was(judged, losses):
    whole = run(judged["skip"], losses)
    health, _, first = run(judged["skip"], losses[:130])
    health = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), health)
    again, _, second = run(judged["skip"], losses[130:], health)
    assert again == whole[0]
    assert first + second == whole[2]


# ------------------------------------------------------------------------------------ what the host does about it


def fields(**changed):
    return ml_collections.ConfigDict(stunet.get_config("test").training.to_dict() | changed)


GOOD = {"loss": 0.1, "gradient_norm": 1.0, "is_finite": 1.0, "is_spike": 0.0, "smoothed_loss": 0.1, "skipped": 0.0}


def said(metrics, **changed):
    lines = []
    act(GOOD | metrics, 7, fields(**changed), lines.append)
    return lines


def test_nothing_is_said_of_a_good_step():
    assert said({}) == []


def test_not_finite_stops_by_default():
    bad = {"loss": float("nan"), "is_finite": 0.0, "skipped": 1.0}
    with pytest.raises(FloatingPointError, match=r"step 7: loss nan, gradient norm 1 is not finite. .*learning_rate"):
        said(bad)


def test_not_finite_may_be_left_out_within_the_budget():
    bad = {"loss": float("inf"), "is_finite": 0.0, "skipped": 2.0}
    (line,) = said(bad, on_nonfinite="skip", skip_budget=2)
    assert line == (
        "step 7: loss inf, gradient norm 1 is not finite: this update is left out, 2 of training.skip_budget=2 so far"
    )
    with pytest.raises(FloatingPointError, match=r"2 updates were left out by now, where training.skip_budget=1"):
        said(bad, on_nonfinite="skip", skip_budget=1)


def test_spikes_are_said_and_left_out_only_if_asked():
    spike = {"loss": 9.0, "is_spike": 1.0, "skipped": 1.0}
    (line,) = said(spike | {"skipped": 0.0})
    assert line == "step 7: loss 9, gradient norm 1 is a spike, the running mean of the loss is 0.1"
    (line,) = said(spike, on_spike="skip")
    assert "is a spike" in line
    assert "this update is left out, 1 of training.skip_budget=10" in line
    with pytest.raises(FloatingPointError, match="skip_budget=0"):
        said(spike, on_spike="skip", skip_budget=0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("on_nonfinite", "ignore", "training.on_nonfinite='ignore': use stop or skip"),
        ("on_spike", "stop", "training.on_spike='stop': use report or skip"),
        ("spike_deviations", -1.0, "training.spike_deviations=-1.0 must not be negative"),
        ("skip_budget", -1, "training.skip_budget=-1 must not be negative"),
    ],
)
def test_settings_that_cannot_be(field, value, message):
    with pytest.raises(ValueError, match=message):
        guards_of(fields(**{field: value}))


def test_settings():
    assert guards_of(fields(spike_deviations=6.0, on_spike="skip")) == Guards(6.0, True)
    assert guards_of(fields(spike_deviations=0.0)) == train_guards.ONLY_FINITE
