"""Whether an update may be made: decided inside the compiled step, on what it measured.

An update whose loss, gradients, learning rate or parameters are not finite is never
made. One whose loss or gradient norm is far above those before it is a *spike*, and is
made or not as the policy says. What the decision rests on is part of the state and is
saved with it, so a run that was killed, and one that is made again, decide alike; no
host waits for the device to decide.

Denoisers differ in loss by far more than a spike, and batches in how much of each they
hold. So a batch is compared with what these denoisers would have been expected to lose:

    excess = sum_k (loss_k - tokens_k * mean_k) / sum_k tokens_k     mean_k: a running
    drift  = running mean of excess                                  mean of denoiser k
    score  = (excess - drift) / running mean of |excess - drift|

and the logarithm of the gradient norm with its own running mean. (Means lag behind a
loss that falls; the drift is by how much.) Running means are plain means of the first
hundred updates, and forget over a hundred from then on. What goes into them is cut off
at the threshold: one spike does not hide the next, and a level that has really changed
is the new level soon.

An update that is not made leaves everything as it was, the count of updates too, and
so do the updates after it: the state is *held* until the host, which reads one step
behind, has looked at the batch with the very parameters that it was bad for
(`training.updates`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

STOP, SKIP, ROLLBACK, LOG = "stop", "skip", "rollback", "log"
ON_BAD_NUMBERS: Final = (STOP, SKIP, ROLLBACK)
ON_SPIKE: Final = (LOG, *ON_BAD_NUMBERS)
# Updates before which nothing is a spike, and over which running means forget.
WARM_UP: Final = 100
# Deviations count as at least so much: nats per token, and of log(gradient norm).
# Where a run is smooth, ten times it is the least that is called a spike.
_LEAST_LOSS: Final = 0.01
_LEAST_LOG_NORM: Final = 0.05
_LEAST_NORM: Final = 1e-30  # of gradients, for its logarithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """What is done about numbers that cannot be trusted.

    Attributes:
        on_bad_numbers: when something is not finite: `stop` the run; `skip` the update
            and go on with the next batch; or `rollback`, go on from the last
            checkpoint with the batches after the bad one.
        on_spike: the same for spikes; or `log`, which makes the update and says so.
        spike_threshold: mean deviations above the running mean from which on a loss or
            a gradient norm is a spike; 0 for no such thing.
        max_bad_updates: so many updates in a row may be skipped, and so often may be
            rolled back to the same checkpoint; then the run stops.
    """

    on_bad_numbers: str = STOP
    on_spike: str = LOG
    spike_threshold: float = 10.0
    max_bad_updates: int = 10

    def __post_init__(self) -> None:
        for name, allowed in (
            ("on_bad_numbers", ON_BAD_NUMBERS),
            ("on_spike", ON_SPIKE),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not one of "
                    f"{', '.join(allowed)}; set {name.upper()}."
                )
        if not (self.spike_threshold >= 0 and math.isfinite(self.spike_threshold)):
            raise ValueError(
                f"spike_threshold={self.spike_threshold} must be 0 (off) or more; set "
                "SPIKE_THRESHOLD."
            )
        if self.max_bad_updates < 1:
            raise ValueError(
                f"max_bad_updates={self.max_bad_updates} must be at least 1; set "
                "MAX_BAD_UPDATES."
            )


class Guard(NamedTuple):
    """What is remembered of the updates before, to judge the next by."""

    losses: Any  # [K] float32: running mean loss per token of each denoiser
    seen: Any  # [K] int32: updates that such a mean is of
    drift: Any  # float32: running mean of the excess: the loss falls, means lag behind
    loss_spread: Any  # float32: running mean of |excess - drift|
    log_norm: Any  # float32: running mean of log(gradient norm)
    norm_spread: Any  # float32: running mean of what log(gradient norm) is off by
    observed: Any  # int32: updates that the others are of
    spikes: Any  # int32: spikes so far
    skipped: Any  # int32: updates that were left out so far
    in_a_row: Any  # int32: of those, since the last that was made
    held: Any  # bool: an update was not made, and nobody has looked yet

    def to_json(self) -> dict[str, Any]:
        """Returns plain values, exactly: a float32 is a JSON number."""
        return {
            name: np.asarray(value).tolist()
            for name, value in jax.device_get(self)._asdict().items()
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any] | None, num_denoisers: int) -> Self:
        """Reads what `to_json` wrote; starts anew where that does not fit.

        Args:
            fields: None for a checkpoint from before there was a guard.
            num_denoisers: of the run.
        """
        fresh = cls.fresh(num_denoisers)
        if fields is None or set(fields) != set(cls._fields):
            return fresh
        try:
            wanted = fresh._asdict().items()
            arrays = cls(*(np.asarray(fields[name], a.dtype) for name, a in wanted))
        except (TypeError, ValueError, OverflowError):
            return fresh
        fits = all(
            array.shape == wanted.shape and np.isfinite(array).all()
            for array, wanted in zip(arrays, fresh, strict=True)
        )
        return arrays if fits else fresh

    @classmethod
    def fresh(cls, num_denoisers: int) -> Self:
        """Returns the guard of a run that has done nothing."""
        number, count = np.zeros((), np.float32), np.zeros((), np.int32)
        return cls(
            losses=np.zeros(num_denoisers, np.float32),
            seen=np.zeros(num_denoisers, np.int32),
            drift=number,
            loss_spread=number,
            log_norm=number,
            norm_spread=number,
            observed=count,
            spikes=count,
            skipped=count,
            in_a_row=count,
            held=np.zeros((), np.bool_),
        )

    def placed(self, sharding: NamedSharding) -> Self:
        """Returns the same on the devices."""

        def place(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(
                array.shape, sharding, array.__getitem__
            )

        placed: Self = jax.tree.map(place, self)
        return placed


class Measured(NamedTuple):
    """What an update is judged by."""

    loss: Float[Array, " K"]  # per denoiser, summed over its target tokens
    tokens: Float[Array, " K"]
    grad_norm: Float[Array, ""]
    others: tuple[Float[Array, ""], ...]  # have to be finite, too


class Verdict(NamedTuple):
    """What was decided about an update."""

    made: Bool[Array, ""]
    finite: Bool[Array, ""]
    spike: Bool[Array, ""]
    waited: Bool[Array, ""]  # an update before was held: this one was not judged
    loss_score: Float[Array, ""]
    norm_score: Float[Array, ""]
    spikes: Int[Array, ""]  # so far, this one included
    skipped: Int[Array, ""]  # so far, without this one
    in_a_row: Int[Array, ""]


def judge(
    guard: Guard, measured: Measured, spike_threshold: float, holds_spikes: bool
) -> tuple[Guard, Verdict]:
    """Decides about an update, inside the compiled step.

    Args:
        guard: of the updates before.
        measured: by this one.
        spike_threshold: as in `GuardSettings`.
        holds_spikes: or they are made like any other, and counted.
    """
    numbers = (jnp.sum(measured.loss), measured.grad_norm, *measured.others)
    finite = jnp.all(jnp.isfinite(jnp.stack(numbers)))
    seen, spike, scores = _observe(guard, measured, spike_threshold)
    spike = spike & finite
    holds = ~finite | spike if holds_spikes else ~finite
    judged = seen._replace(
        spikes=guard.spikes + spike,
        in_a_row=jnp.where(holds, guard.in_a_row, 0),
    )
    judged = _select(finite, judged, guard)._replace(held=holds)
    new = _select(guard.held, guard, judged)
    verdict = Verdict(
        made=~(guard.held | holds),
        finite=finite,
        spike=spike,
        waited=guard.held,
        loss_score=scores[0],
        norm_score=scores[1],
        spikes=new.spikes,
        skipped=new.skipped,
        in_a_row=new.in_a_row,
    )
    return new, verdict


@jax.jit
def passed(step: Int[Array, ""], guard: Guard) -> tuple[Int[Array, ""], Guard]:
    """Returns step and guard once a held update has been left out for good."""
    skipped, in_a_row = guard.skipped + 1, guard.in_a_row + 1
    held = jnp.zeros_like(guard.held)
    return step + 1, guard._replace(skipped=skipped, in_a_row=in_a_row, held=held)


def _observe(
    guard: Guard, measured: Measured, threshold: float
) -> tuple[Guard, Bool[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Returns the running means with one update more, and how far off that was."""
    present = measured.tokens > 0
    means = measured.loss / jnp.maximum(measured.tokens, 1.0)
    # A denoiser that was never seen is as it is.
    expected = jnp.where(guard.seen > 0, guard.losses, means)
    total = jnp.maximum(jnp.sum(measured.tokens), 1.0)
    above = jnp.where(present, means - expected, 0.0)
    excess = jnp.sum(measured.tokens * above) / total
    log_norm = jnp.log(jnp.maximum(measured.grad_norm, _LEAST_NORM))
    off = jnp.where(guard.observed > 0, log_norm - guard.log_norm, 0.0)
    above_drift = excess - guard.drift
    loss_unit = jnp.maximum(guard.loss_spread, _LEAST_LOSS)
    norm_unit = jnp.maximum(guard.norm_spread, _LEAST_LOG_NORM)
    scores = above_drift / loss_unit, off / norm_unit
    is_warm = (guard.observed >= WARM_UP) & (threshold > 0)
    spike = is_warm & ((scores[0] > threshold) | (scores[1] > threshold))
    # Before the warm-up is over, and where nothing is a spike, all of it counts.
    limit = jnp.where(is_warm, threshold, jnp.inf)
    share = jnp.minimum(1.0, limit / jnp.maximum(jnp.abs(scores[0]), 1.0))
    cut_off = jnp.clip(off, -limit * norm_unit, limit * norm_unit)
    weight, weights = _weight(guard.observed), _weight(guard.seen)
    moved = guard._replace(
        losses=jnp.where(present, expected + weights * share * above, guard.losses),
        seen=guard.seen + present,
        drift=guard.drift + weight * share * above_drift,
        loss_spread=_towards(guard.loss_spread, share * jnp.abs(above_drift), weight),
        log_norm=jnp.where(
            guard.observed > 0, guard.log_norm + weight * cut_off, log_norm
        ),
        norm_spread=_towards(guard.norm_spread, jnp.abs(cut_off), weight),
        observed=guard.observed + 1,
    )
    return moved, spike, scores


def _weight(count: Int[Array, "..."]) -> Float[Array, "..."]:
    """Returns what the next of a running mean counts."""
    return jnp.maximum(1.0 / (count + 1.0), 1.0 / WARM_UP)


def _towards(
    mean: Float[Array, ""], value: Float[Array, ""], weight: Float[Array, ""]
) -> Float[Array, ""]:
    return mean + weight * (value - mean)


def _select(condition: Bool[Array, ""], new: Guard, old: Guard) -> Guard:
    chosen: Guard = jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
    return chosen
