"""The optimiser of a stage. The paper does not give one: no value here is from it."""

import ml_collections
import optax


def learning_rate_schedule(fields: ml_collections.ConfigDict) -> optax.Schedule:
    """The learning rate by number of updates: warm-up from zero, then `schedule`'s way down to the final rate.

    Args:
      fields: `config.training`: `learning_rate`, `warmup_steps`, `steps`, `schedule` ("cosine", "linear" or
        "constant") and `final_learning_rate`, the share of the rate that is left at the last step.

    Raises:
      ValueError: an unknown schedule, or a number out of range.
    """
    if fields.learning_rate < 0 or fields.warmup_steps < 0:
        name = "learning_rate" if fields.learning_rate < 0 else "warmup_steps"
        raise ValueError(f"training.{name}={fields[name]} must not be negative")
    peak, warm_up = fields.learning_rate, fields.warmup_steps
    final, steps = peak * fields.final_learning_rate, max(fields.steps - warm_up, 1)
    match fields.schedule:
        case "cosine":
            after = optax.cosine_decay_schedule(peak, steps, alpha=fields.final_learning_rate)
        case "linear":
            after = optax.linear_schedule(peak, final, steps)
        case "constant":
            after = optax.constant_schedule(peak)
        case _:
            raise ValueError(f"training.schedule={fields.schedule!r}: use cosine, linear or constant")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warm_up), after], [warm_up]) if warm_up else after


def make_optimizer(fields: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Gradient clipping, then AdamW or Adafactor.

    Args:
      fields: `config.training`. Published fine-tunes of the paper's model use Adafactor at a constant 1e-4.

    Raises:
      ValueError: an unknown optimiser, or a number out of range.
    """
    if not fields.clip_gradient_norm > 0:
        raise ValueError(f"training.clip_gradient_norm={fields.clip_gradient_norm} must be positive")
    rate = learning_rate_schedule(fields)
    match fields.optimizer:
        case "adamw":
            update = optax.adamw(rate, b2=fields.adam_b2, weight_decay=fields.weight_decay)
        case "adafactor":
            # Steps that are scaled by the parameters' size would leave the inflation blocks' projections, which start
            # at zero, a thousandth of the learning rate. The decay is AdamW's, times the rate, which optax's Adafactor
            # does not do. The scaled gradient has its sign already.
            scaled = optax.adafactor(None, multiply_by_parameter_scale=False)
            decay = optax.add_decayed_weights(-fields.weight_decay)
            update = optax.chain(scaled, decay, optax.scale_by_schedule(rate))
        case _:
            raise ValueError(f"training.optimizer={fields.optimizer!r}: use adamw or adafactor")
    return optax.chain(optax.clip_by_global_norm(fields.clip_gradient_norm), update)
