"""What keeps a training sound: updates that are not finite, or whose loss leaps, are seen, and need not be made.

The judgement is made on the device, inside the step, so that a bad gradient never reaches parameters, averages or
optimiser; what it remembers is part of the training state, so that a resumed run judges as an undisturbed one would.
What to do about it is decided on the host. No value here is from the paper.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float, Int

# Of the running mean and variance of the loss: about the last hundred updates count.
_DECAY = 0.99
# Losses that must have been seen before one can be called a spike.
_WARM_UP = 100


@dataclasses.dataclass(frozen=True)
class Guards:
    """Which updates are made.

    Attributes:
      spike_deviations: a loss that lies more standard deviations than this above its running mean is a spike; 0: none
        is.
      skip_spikes: whether a spike's update is left out.
    """

    spike_deviations: float = 0.0
    skip_spikes: bool = False


ONLY_FINITE = Guards()
"""Every finite update is made."""


class Health(NamedTuple):
    """What the guards remember of a run; a part of the training state."""

    losses: Int[Array, ""]  # seen: finite, and no spikes that were left out
    mean: Float[Array, ""]  # running mean of the loss, not yet divided by the weight of what it has seen
    variance: Float[Array, ""]  # likewise, of the squared distance from the mean
    spikes: Int[Array, ""]
    skipped: Int[Array, ""]  # updates that were not made


def new_health() -> Health:
    """Before the first step."""
    # Each its own array: the state is donated, and no buffer can be twice.
    dtypes = Health(jnp.int32, jnp.float32, jnp.float32, jnp.int32, jnp.int32)
    return Health(*(jnp.zeros((), dtype) for dtype in dtypes))


def judge(
    health: Health, loss: Float[Array, ""], gradient_norm: Float[Array, ""], guards: Guards
) -> tuple[Health, Bool[Array, ""], dict[str, Float[Array, ""]]]:
    """Decides whether an update is made.

    Args:
      health: after the previous step.
      loss: of this step.
      gradient_norm: of this step, before clipping: not finite if any part of the gradient is not.
      guards: what to look for.

    Returns:
      the health after this step; whether to make the update; and as metrics `smoothed_loss` (the running mean),
      `spikes` and `skipped` (counts since the run began), `is_finite` and `is_spike` (of this step, 0 or 1).
    """
    loss = loss.astype(health.mean.dtype)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    # Running means start at zero: dividing by the weight of what they have seen makes them means from the start.
    weight = jnp.maximum(1.0 - _DECAY**health.losses, 1e-9)
    distance = loss - health.mean / weight
    is_spike = jnp.zeros((), bool)
    if guards.spike_deviations:
        limit = guards.spike_deviations * jnp.sqrt(health.variance / weight)
        is_spike = is_finite & (health.losses >= _WARM_UP) & (distance > limit)
    is_sound = is_finite & ~is_spike if guards.skip_spikes else is_finite

    def running(before: Array, value: Array) -> Array:
        return jnp.where(is_sound, _DECAY * before + (1.0 - _DECAY) * value, before)

    health = Health(
        losses=health.losses + is_sound,
        mean=running(health.mean, loss),
        variance=running(health.variance, jnp.where(health.losses > 0, jnp.square(distance), 0.0)),
        spikes=health.spikes + is_spike,
        skipped=health.skipped + ~is_sound,
    )
    smoothed = health.mean / jnp.maximum(1.0 - _DECAY**health.losses, 1e-9)
    metrics = {"smoothed_loss": smoothed, "is_finite": is_finite, "is_spike": is_spike}
    metrics |= {"spikes": health.spikes, "skipped": health.skipped}
    return health, is_sound, {name: value.astype(jnp.float32) for name, value in metrics.items()}


def guards_of(fields: ml_collections.ConfigDict) -> Guards:
    """The guards of `config.training`.

    Raises:
      ValueError: a value out of range.
    """
    for name, choices in (("on_nonfinite", ("stop", "skip")), ("on_spike", ("report", "skip"))):
        if fields[name] not in choices:
            raise ValueError(f"training.{name}={fields[name]!r}: use {' or '.join(choices)}")
    for name in ("spike_deviations", "skip_budget"):
        if fields[name] < 0:
            raise ValueError(f"training.{name}={fields[name]} must not be negative")
    return Guards(fields.spike_deviations, fields.on_spike == "skip")


def act(
    metrics: Mapping[str, float], step: int, fields: ml_collections.ConfigDict, report: Callable[[str], None]
) -> None:
    """Says what the guards found in a step, and stops the run where it should not go on.

    Args:
      metrics: of the step, with those of `judge`.
      step: its number.
      fields: `config.training`.
      report: prints a line.

    Raises:
      FloatingPointError: loss or gradient is not finite and `on_nonfinite` is "stop"; or more updates were left out
        than `skip_budget` allows.
    """
    found = f"step {step}: loss {metrics['loss']:.5g}, gradient norm {metrics['gradient_norm']:.5g}"
    if metrics["is_finite"] and not metrics["is_spike"]:
        return
    if metrics["is_finite"]:
        found += f" is a spike, the running mean of the loss is {metrics['smoothed_loss']:.5g}"
        if fields.on_spike == "report":
            report(found)
            return
    else:
        found += " is not finite"
        if fields.on_nonfinite == "stop":
            raise FloatingPointError(
                f"{found}. Training stops; this update was not made, and the last good checkpoint stays. Lower "
                "training.learning_rate or training.clip_gradient_norm, or leave such updates out "
                "(training.on_nonfinite=skip), then start the same command again"
            )
    skipped = int(metrics["skipped"])
    if skipped > fields.skip_budget:
        raise FloatingPointError(
            f"{found}, and {skipped} updates were left out by now, where training.skip_budget={fields.skip_budget}: "
            "this is no accident any more. Training stops; the last good checkpoint stays. Lower "
            "training.learning_rate, look at the data, or raise the budget"
        )
    report(f"{found}: this update is left out, {skipped} of training.skip_budget={fields.skip_budget} so far")
