"""Updates: dispatched ahead, read one step later, and what is done about bad ones.

    start(batch n)   dispatches update n
    read()           reads what update n - 1 measured, while n is computed
    settle()         reads the last one; before anything is done with the state

An update that the guard held back (`training.guard`) left the state as it was, and so
did the one that was dispatched after it. So here the parameters are at hand that were
bad for the batch: they are looked at (`training.diagnosis`), it is said, and then

    skip       the update counts as done, and the one after it is dispatched again
    rollback   the loop starts again, from its last checkpoint, with the next batch
    stop       the run ends; its checkpoints are as they were

All hosts read the same numbers, so all do the same.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from absl import logging

from ul2.batch import Batch
from ul2.training.diagnosis import Diagnosis
from ul2.training.events import (
    ROLLED_BACK,
    SKIPPED,
    SPIKE,
    STOPPED,
    Events,
    PassedBatches,
    Position,
    batch_number,
    shown_rows,
)
from ul2.training.guard import LOG, ROLLBACK, SKIP, STOP, GuardSettings, passed
from ul2.training.metrics import Metrics
from ul2.training.state import TrainState
from ul2.training.step import StepSums, TrainStep

_KNOBS: Final = (
    "Lower LEARNING_RATE, raise WARMUP_STEPS or Z_LOSS, set MAX_GRAD_NORM where the "
    "optimizer has it, or try DTYPE=float32; ON_BAD_NUMBERS and ON_SPIKE (skip, "
    "rollback) go on without such batches."
)


class RollBackError(Exception):
    """The run shall go on from its last checkpoint.

    Attributes:
        step: of the update that was bad.
        end: position in the data from which it goes on.
        report: what a person is told if it cannot.
    """

    def __init__(self, step: int, end: dict[str, Any], report: str) -> None:
        super().__init__(report)
        self.step, self.end, self.report = step, end, report


class _Update(NamedTuple):
    """An update that was dispatched."""

    step: int  # that the state has after it
    batch: Batch
    read_from: Position
    read_to: dict[str, Any]
    sums: StepSums  # on the devices


class Reporter(NamedTuple):
    """How a person is told of a bad update.

    Attributes:
        denoiser_names: index i names `denoiser_ids == i`.
        model_dir: of the run.
        saved_step: returns the step of the newest checkpoint.
    """

    denoiser_names: Sequence[str]
    model_dir: str | Path
    saved_step: Callable[[], int | None]

    def what(self, sums: StepSums) -> str:
        """Returns what is wrong with the numbers of an update."""
        verdict = sums.verdict
        assert verdict is not None
        if verdict.spike:
            loss = _per_token(sums.loss.sum(), sums.tokens.sum())
            return (
                f"a spike: loss {loss:.4g}, {verdict.loss_score:.1f} mean deviations "
                f"above what is usual, norm of the gradients {sums.grad_norm:.4g}, "
                f"{verdict.norm_score:.1f} above"
            )
        bad = [
            f"{name} ({loss:g})"
            for name, loss in zip(self.denoiser_names, sums.loss, strict=True)
            if not np.isfinite(loss)
        ]
        parts = [f"the loss of {', '.join(bad)}"] if bad else []
        parts += [
            f"the {name} ({value:g})"
            for name, value in (
                ("norm of the gradients", sums.grad_norm),
                ("norm of the parameters", sums.param_norm),
                ("learning rate", sums.learning_rate),
                ("z-loss", sums.z_loss),
            )
            if not np.isfinite(value)
        ]
        return f"not finite: {', '.join(parts) or 'the loss'}"

    def text(
        self, update: "_Update", sums: StepSums, found: Diagnosis, done: str
    ) -> str:
        """Returns the whole report, a few lines."""
        lines = [f"step {update.step}: {self.what(sums)}; {done}."]
        if found.first_bad:
            lines.append(f"first bad: {found.first_bad}{shown_rows(found.rows)}")
        if found.parameters:
            lines.append(f"not finite before: {', '.join(found.parameters)}")
        if found.worst_examples:
            worst = (f"{r}:{n} ({x:.2f})" for r, n, x in found.worst_examples)
            lines.append(f"the highest losses, row:example: {', '.join(worst)}")
        number = batch_number(update.read_from)
        lines.append(
            f"batch at {dict(update.read_from)}"
            if number is None
            else f"batch {number}: {self.inspect(number)}"
        )
        return "\n  ".join(lines)

    def inspect(self, number: int) -> str:
        """Returns the command that shows a batch."""
        config = Path(self.model_dir) / "config.gin"
        return f"ul2 inspect --gin_file={config} --step {number}"

    def last_words(self) -> str:
        """Returns what is safe, and what to try."""
        saved = self.saved_step()
        last = "there is none yet" if saved is None else f"the last is step {saved}"
        return f"\n  no checkpoint was made of it, {last}.\n  {_KNOBS}"


class Updates:
    """The state of a run, and the updates that are on their way.

    Args:
        state: to begin with; used up.
        first_step: of it.
        train_step: an update; used up states come back new.
        settings: what is done about bad numbers.
        metrics: gets what updates measured.
        events: gets what happened.
        diagnose: finds what went bad.
        reporter: of the run.
    """

    def __init__(
        self,
        state: TrainState,
        first_step: int,
        train_step: TrainStep,
        *,
        settings: GuardSettings,
        metrics: Metrics,
        events: Events,
        diagnose: Callable[[TrainState, Batch], Diagnosis],
        reporter: Reporter,
    ) -> None:
        self.state, self.step = state, first_step
        self._train_step = train_step
        self._settings = settings
        self._metrics, self._events = metrics, events
        self._diagnose, self._reporter = diagnose, reporter
        # The last update, and the one before it until that is read.
        self._pending: _Update | None = None
        self._unread: _Update | None = None

    def start(self, batch: Batch, read_from: Position, read_to: dict[str, Any]) -> None:
        """Dispatches an update; call `read` before the next.

        Args:
            batch: on the devices.
            read_from: its position in the data.
            read_to: that of the next.
        """
        self._unread = self._pending
        self.step += 1
        self._dispatch(self.step, batch, read_from, read_to)
        self._metrics.dispatched()

    def read(self) -> None:
        """Waits for the update before the last one.

        Raises:
            FloatingPointError: it was bad, and the run stops.
            RollBackError: it was, and the run goes on from its last checkpoint.
        """
        before, self._unread = self._unread, None
        if before is not None:
            self._read(before)

    def settle(self) -> None:
        """Waits for the last update; then the state is one that may be kept.

        Raises:
            FloatingPointError: it was bad, and the run stops.
            RollBackError: it was, and the run goes on from its last checkpoint.
        """
        before, self._pending = self._pending, None
        if before is not None:
            self._read(before)

    def _dispatch(
        self, step: int, batch: Batch, read_from: Position, read_to: dict[str, Any]
    ) -> None:
        self.state, sums = self._train_step(self.state, batch)
        self._pending = _Update(step, batch, read_from, read_to, sums)

    def _read(self, update: _Update) -> None:
        """Waits for an update, and does what is to be done about it."""
        sums: StepSums = jax.device_get(update.sums)
        verdict = sums.verdict
        if verdict is None or (verdict.made and not verdict.spike):
            self._metrics.record(update.step, sums)
            return
        assert not verdict.waited, "an update was read that waited for another"
        if verdict.made:
            what = self._reporter.what(sums)
            logging.warning("step %d: %s; the update was made.", update.step, what)
            self._note(SPIKE, update, sums, Diagnosis())
            self._metrics.record(update.step, sums)
            return
        self._react(update, sums)

    def _react(self, update: _Update, sums: StepSums) -> None:
        """Does what the settings say about an update that was held back."""
        found = self._diagnose(self.state, update.batch)
        verdict = sums.verdict
        assert verdict is not None
        settings = self._settings
        policy = settings.on_spike if verdict.spike else settings.on_bad_numbers
        assert policy != LOG
        done, limit = "the update was not made", settings.max_bad_updates
        if policy == SKIP and not np.isfinite(sums.param_norm):
            policy, done = STOP, f"{done}: with such parameters, skipping helps nothing"
        elif policy == SKIP and verdict.in_a_row + 1 > limit:
            policy = STOP
            done = f"{done}: {limit} were skipped in a row (MAX_BAD_UPDATES)"
        report = self._reporter.text(update, sums, found, done)
        if policy == ROLLBACK:
            # In the metrics it belongs to the update that comes next.
            self._events.add(self._event(ROLLED_BACK, update, sums, found))
            raise RollBackError(update.step, update.read_to, report)
        if policy == STOP:
            self._note(STOPPED, update, sums, found)
            self._metrics.leave_out(update.step, sums, skipped=False)
            self._metrics.flush()
            raise FloatingPointError(report + self._reporter.last_words())
        logging.warning("%s", report)
        self._note(SKIPPED, update, sums, found)
        step, guard = passed(self.state.step, self.state.guard)
        self.state = self.state._replace(step=step, guard=guard)
        self._metrics.leave_out(update.step, sums, skipped=True)
        if self._pending is not None:
            again = self._pending
            self._dispatch(again.step, again.batch, again.read_from, again.read_to)

    def _note(
        self, kind: str, update: _Update, sums: StepSums, found: Diagnosis
    ) -> None:
        """Notes what happened, where it lasts and where it is measured."""
        event = self._event(kind, update, sums, found)
        self._events.add(event)
        self._metrics.note({name: event[name] for name in ("event", "step", "batch")})

    def _event(
        self, kind: str, update: _Update, sums: StepSums, found: Diagnosis
    ) -> dict[str, Any]:
        event = _event(kind, update, sums, self._reporter.denoiser_names)
        return {**event, **found.to_json()}


def _event(
    kind: str, update: _Update, sums: StepSums, names: Sequence[str]
) -> dict[str, Any]:
    """Returns an event as JSON values; a number that is not finite is its name."""
    verdict = sums.verdict
    assert verdict is not None
    number = batch_number(update.read_from)
    losses = map(_per_token, sums.loss, sums.tokens)
    return {
        "event": kind,
        "cause": "spike" if verdict.spike else "not finite",
        "step": update.step,
        "batch": dict(update.read_from) if number is None else number,
        "loss": _plain(_per_token(sums.loss.sum(), sums.tokens.sum())),
        "grad_norm": _plain(sums.grad_norm),
        "param_norm": _plain(sums.param_norm),
        "learning_rate": _plain(sums.learning_rate),
        "loss_score": _plain(verdict.loss_score),
        "norm_score": _plain(verdict.norm_score),
        "losses": dict(zip(names, map(_plain, losses), strict=True)),
    }


def _per_token(loss: Any, tokens: Any) -> float:
    """Returns a mean; of what is not finite, whatever comes out."""
    with np.errstate(invalid="ignore"):
        return float(loss / np.maximum(tokens, 1.0))


def _plain(value: Any) -> float | str:
    """Returns a number as JSON; one that is not finite as its name."""
    number = float(value)
    return number if np.isfinite(number) else str(number)


def go_back(
    bad: RollBackError, batches: PassedBatches, step: int, settings: GuardSettings
) -> None:
    """Passes over the batches of a roll-back, once its checkpoint is restored.

    Args:
        bad: the reason.
        batches: as they stood at the checkpoint.
        step: of the checkpoint.
        settings: how often.

    Raises:
        FloatingPointError: it has gone back there too often.
    """
    times = batches.pass_over(step, bad.end)
    limit = settings.max_bad_updates
    if times > limit:
        raise FloatingPointError(
            f"{bad.report}\n  the run went back to step {step} {limit} times "
            f"(MAX_BAD_UPDATES), and met bad numbers each time.\n  {_KNOBS}"
        )
    logging.warning(
        "%s\n  the run goes on from step %d, with the batches after it (the %s time).",
        bad.report,
        step,
        f"{times}.",
    )
