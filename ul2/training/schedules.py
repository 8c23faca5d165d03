"""Learning rate schedules: functions of the number of updates done so far.

All start with a linear warm-up over `warmup_steps` updates, except the inverse square
root, whose T5 form holds its highest value during the warm-up instead:

    inverse_square_root(1.0, 10_000)     0.01 up to step 10,000, then 1 / sqrt(step)
"""

import jax.numpy as jnp
import optax


def constant(learning_rate: float, *, warmup_steps: int = 0) -> optax.Schedule:
    """Returns `learning_rate` at every step, after a linear warm-up."""
    return _warm_up(learning_rate, warmup_steps, optax.constant_schedule(learning_rate))


def inverse_square_root(
    learning_rate: float, *, warmup_steps: int = 10_000
) -> optax.Schedule:
    """Returns T5's `learning_rate / sqrt(max(step, warmup_steps))`.

    Raises:
        ValueError: `warmup_steps` is not positive.
    """
    if warmup_steps < 1:
        raise ValueError(f"{warmup_steps=} must be at least 1; set WARMUP_STEPS.")

    def schedule(step: optax.ScalarOrSchedule) -> object:
        steps = jnp.maximum(jnp.asarray(step, jnp.float32), warmup_steps)
        return learning_rate / jnp.sqrt(steps)

    return schedule


def cosine(
    learning_rate: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    end_fraction: float = 0.0,
) -> optax.Schedule:
    """Returns half a cosine, down to `end_fraction` of `learning_rate`."""
    steps = _decay_steps(total_steps, warmup_steps)
    decay = optax.cosine_decay_schedule(learning_rate, steps, alpha=end_fraction)
    return _warm_up(learning_rate, warmup_steps, decay)


def linear(
    learning_rate: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    end_fraction: float = 0.0,
) -> optax.Schedule:
    """Returns a straight line, down to `end_fraction` of `learning_rate`."""
    steps = _decay_steps(total_steps, warmup_steps)
    decay = optax.linear_schedule(learning_rate, learning_rate * end_fraction, steps)
    return _warm_up(learning_rate, warmup_steps, decay)


def _decay_steps(total_steps: int, warmup_steps: int) -> int:
    """Returns the steps that follow the warm-up."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"{warmup_steps=} must be less than {total_steps=}; set WARMUP_STEPS or "
            "TOTAL_STEPS."
        )
    return total_steps - warmup_steps


def _warm_up(
    learning_rate: float, warmup_steps: int, then: optax.Schedule
) -> optax.Schedule:
    """Puts a line from 0 to `learning_rate` before a schedule."""
    if warmup_steps == 0:
        return then
    rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([rise, then], [warmup_steps])
