"""The checkpoints of a run that trains: saving, trying again, restoring, removing.

Saving copies the state to host memory and returns; a thread writes on. Where it fails
(a full disk, a quota, a right that is gone), training says so and goes on, and saves
again what it then has: after one second, then two, four, up to a minute, and at every
step that is to be saved anyway. What was saved before stays. When nothing could be
saved for SAVE_RETRY_SECONDS, the run ends.

Several processes decide the same: a failure of one is a failure of all (`saving`), and
whether to try again is told by process 0. While all goes well they ask each other only
1, 2, 4, 8... updates after a save began, whether it is done.

Restoring takes the newest checkpoint that is whole and belongs to this run. Newer ones
are named and moved aside (`1000.damaged`), so that their step can be saved again; they
are for a person to look at, and nothing removes them.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
from absl import logging

from ul2.sharding.processes import Exchange
from ul2.training import integrity, saving
from ul2.training.checkpoints import (
    CONTRACT,
    PARAMS,
    TRAIN_STATE,
    Batches,
    Contract,
    check_model,
    check_position,
    check_vocab,
    checkpoints_dir,
    contract_or_damage,
    find_damage,
    load_contract,
    none_is_whole,
    read_item,
    step_dir,
    steps_in,
)
from ul2.training.failures import StorageError
from ul2.training.snapshot import Snapshot, is_on_cpus
from ul2.training.state import TrainState

Clock = Callable[[], float]

# Seconds until a save is tried again: at first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
# Waiting longer than this for the save before is worth a word.
_SLOW_SECONDS: Final = 10.0
_DAMAGED, _FOREIGN = ".damaged", ".foreign"
# Two of a process must not meet at the same points.
_numbers = itertools.count()


class _Saving(NamedTuple):
    """A save that is on its way."""

    step: int
    outdated: list[int]  # removed as soon as it is there
    attempt: saving.Attempt
    then: Callable[[bool], None] | None


class _Unfit(NamedTuple):
    """Why a checkpoint is not restored: what a person is told, and its new name."""

    step: int
    reason: str
    suffix: str


class Checkpoints:
    """Saves and restores the checkpoints of one run.

    Args:
        model_dir: of the run.
        keep: how many of the newest to keep.
        contract: what every checkpoint says, but for step, data position and prior
            steps.
        best: returns a step that is kept, however old it is.
        is_foreign: returns why a contract is of another run; None where it is not.
        on_save: is told of each save, once it is known: the step, and what went
            wrong.
        retry_seconds: how long saving may fail before the run ends.
        clock: tells the time.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        keep: int,
        contract: Contract,
        best: Callable[[], int | None] = lambda: None,
        is_foreign: Callable[[Contract], str | None] = lambda contract: None,
        on_save: Callable[[int, str | None], None] = lambda step, error: None,
        retry_seconds: float = 1200.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._directory = checkpoints_dir(model_dir)
        self._keep, self._contract, self._best = keep, contract, best
        self._is_foreign, self._retry_seconds = is_foreign, retry_seconds
        self._on_save = on_save
        self._clock = clock
        number = next(_numbers)
        self._exchange = Exchange(f"checkpoints/{number}")
        self._exchange_saving = Exchange(f"saving/{number}")
        self._steps = self._listed()
        if jax.process_index() == 0:
            saving.remove_leftovers(self._directory)
        self._saving: _Saving | None = None
        self._attempts = itertools.count()
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, "ul2 saves")
        # Of the failures since the last success: the first, and when to try again.
        self._failing_since: float | None = None
        self._again_at = self._pause = 0.0

    def latest_step(self) -> int | None:
        """Returns the newest step that is there, or None."""
        return max(self._steps, default=None)

    def finished_step(self) -> int | None:
        """Waits for the save that is on its way; returns the newest step there is."""
        steps = list(self._steps)
        if self._saving is not None:
            self._saving.attempt.wait()
            if self._saving.attempt.error is None:
                steps.append(self._saving.step)
        return max(steps, default=None)

    def save(
        self,
        step: int,
        state: TrainState,
        position: dict[str, Any],
        *,
        prior_steps: int,
        then: Callable[[bool], None] | None = None,
    ) -> None:
        """Starts saving; does nothing where this step is already saved.

        Args:
            step: updates done.
            state: may be donated once this returns.
            position: of the data.
            prior_steps: updates that the optimizer had done before this run.
            then: of the best checkpoint so far, which takes the place of the one
                before once it is there; told whether it came to be, by a later call
                of this object's methods, at the same step in all processes.

        Raises:
            StorageError: nothing could be saved for too long.
        """
        self._wait_for_last(step)
        if step in self._steps:
            if then is not None:
                then(True)
            return
        outdated = self._outdated(step, step if then else self._best())
        contract = dataclasses.replace(
            self._contract,
            step=step,
            data_position=position,
            prior_steps=prior_steps,
            guard=None if state.guard is None else state.guard.to_json(),
        )
        trees = {PARAMS: state.params, TRAIN_STATE: _without_params(state)}
        if are_copies := is_on_cpus(trees):
            trees = self._snapshot.take(trees)
        attempt = saving.Attempt(
            step_dir(self._directory, step),
            next(self._attempts),
            trees,
            {CONTRACT: {**contract.to_json(), "checksums": integrity.CHECKSUMS}},
            self._exchange_saving,
            self._thread,
            lambda: self._remove(outdated),
            are_copies=are_copies,
        )
        self._saving = _Saving(step, outdated, attempt, then)

    def must_save(self, step: int) -> bool:
        """Returns whether a save that failed shall be made again, with what is there.

        Call it after every update, on all processes.

        Raises:
            StorageError: nothing could be saved for too long.
        """
        if self._saving is not None and self._is_done(self._saving, step):
            self._settle()
        if self._saving is not None or self._failing_since is None:
            return False
        return self._exchange(str(self._clock() >= self._again_at))[0] == "True"

    def wait(self) -> bool:
        """Waits until everything is on disk; returns False where it is not.

        Then the same state is to be saved again, which this has waited for, too.

        Raises:
            StorageError: nothing could be saved for too long.
        """
        self._settle()
        if self._failing_since is None:
            return True
        time.sleep(max(0.0, self._again_at - self._clock()))
        return False

    def close(self) -> None:
        """Waits until nothing is written any more; raises nothing."""
        if self._saving is not None:
            self._saving.attempt.wait()
            self._on_save(self._saving.step, self._saving.attempt.error)
            if error := self._saving.attempt.error:
                logging.error("checkpoint %d: %s.", self._saving.step, error)
            self._saving = None
        self._thread.shutdown()

    def restore_latest(
        self, abstract: TrainState, batches: Batches
    ) -> tuple[TrainState, int]:
        """Returns the newest state that is whole, and moves `batches` to where it was.

        Args:
            abstract: shapes and shardings wanted (`with_shardings`).
            batches: is not touched unless the whole state could be read.

        Returns:
            The state, and how many updates its optimizer did before this run.

        Raises:
            ValueError: all are damaged, or belong to another run or vocabulary, or
                lack the data position.
        """
        assert self._steps, "restore_latest needs a checkpoint"
        unfit: list[_Unfit] = []
        refused: ValueError | None = None
        for step in sorted(self._steps, reverse=True):
            damage = self._find_damage(step)
            if damage is not None:
                unfit.append(_Unfit(step, damage, _DAMAGED))
                continue
            contract = load_contract(self._directory, step)
            check_position(contract, self._directory)
            try:
                self._check_ours(contract)
            except ValueError as error:
                refused = refused or error
                unfit.append(_Unfit(step, str(error), _FOREIGN))
                continue
            found = self._read(step, abstract)
            if isinstance(found, str):
                unfit.append(_Unfit(step, found, _DAMAGED))
                continue
            self._step_over(unfit, step)
            assert contract.data_position is not None
            batches.seek(contract.data_position)
            return found._replace(guard=contract.guard), contract.prior_steps
        if refused is not None:
            raise refused
        reasons = [(one.step, one.reason) for one in unfit]
        raise ValueError(none_is_whole(self._directory, reasons))

    def _listed(self) -> list[int]:
        """Returns what process 0 sees: a network's file systems differ for a while."""
        seen = ",".join(map(str, steps_in(self._directory)))
        first = self._exchange(seen)[0]
        return [int(step) for step in first.split(",") if step]

    def _find_damage(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint, as any process finds."""
        part = (jax.process_index(), jax.process_count())
        damage = find_damage(self._directory, step, part=part)
        if damage is None:
            found = contract_or_damage(self._directory, step)
            damage = found if isinstance(found, str) else None
        return next(filter(None, self._exchange(damage or "")), None)

    def _check_ours(self, contract: Contract) -> None:
        """Refuses a checkpoint that this run cannot go on with.

        Raises:
            ValueError: it is of another vocabulary, model or run.
        """
        what = f"checkpoint step {contract.step}"
        check_vocab(contract.vocab, self._contract.vocab, what=what)
        if contract.model is not None:
            check_model(contract, self._contract.model, what=what)
        if (other := self._is_foreign(contract)) is not None:
            raise ValueError(
                f"{what} in {self._directory} is of another run ({other}); move it "
                "away, or choose another MODEL_DIR."
            )

    def _read(self, step: int, abstract: TrainState) -> TrainState | str:
        """Returns the state, or why it cannot be read where nothing could verify it."""
        if integrity.has_list(step_dir(self._directory, step)):
            return self._read_state(step, abstract)
        logging.warning(
            "checkpoint %d has no checksums: it was written before there were any, or "
            "imported; it is read unverified.",
            step,
        )
        found, error = None, ""
        try:
            found = self._read_state(step, abstract)
        except Exception as caught:  # orbax and tensorstore raise of every kind
            error = f"cannot be read: {saving.one_line(caught)}"
        error = next(filter(None, self._exchange(error)), "")
        return error or found or ""

    def _read_state(self, step: int, abstract: TrainState) -> TrainState:
        params = read_item(self._directory, step, PARAMS, abstract.params)
        rest = read_item(self._directory, step, TRAIN_STATE, _without_params(abstract))
        return TrainState(rest["step"], params, rest["opt_state"])

    def _step_over(self, unfit: list[_Unfit], restored: int) -> None:
        """Moves newer checkpoints aside that are of no use, and names them."""
        for step, reason, suffix in unfit:
            answer = ""
            if jax.process_index() == 0:
                aside = _free_name(step_dir(self._directory, step), suffix)
                try:
                    step_dir(self._directory, step).rename(aside)
                    answer = aside.name
                except OSError as error:
                    answer = f"/{error.strerror}"
            aside_name = self._exchange(answer)[0]
            if aside_name.startswith("/"):
                raise ValueError(
                    f"cannot move {step_dir(self._directory, step)} aside, which "
                    f"cannot be used ({reason}): {aside_name[1:]}."
                )
            logging.warning(
                "checkpoint %d cannot be used: %s; it was moved to %s, going on from "
                "step %d.",
                step,
                reason,
                self._directory / aside_name,
                restored,
            )
            self._steps.remove(step)

    def _is_done(self, one: _Saving, step: int) -> bool:
        """Returns whether a save has ended on all processes, as far as they asked."""
        if jax.process_count() == 1:
            return not one.attempt.is_running()
        updates = step - one.step
        if updates < 1 or updates & (updates - 1):
            return False
        return "True" not in self._exchange(str(one.attempt.is_running()))

    def _wait_for_last(self, step: int) -> None:
        """Waits for the save before; says so where that takes long."""
        if self._saving is None:
            return
        before, start = self._saving.step, self._clock()
        self._settle()
        if (seconds := self._clock() - start) >= _SLOW_SECONDS:
            logging.warning(
                "step %d waited %.0f seconds for checkpoint %d: the storage is slow; "
                "raise SAVE_EVERY_STEPS.",
                step,
                seconds,
                before,
            )

    def _settle(self) -> None:
        """Takes what became of the save that is on its way.

        Raises:
            StorageError: it failed as others did for too long.
        """
        if self._saving is None:
            return
        (step, outdated, attempt, then), self._saving = self._saving, None
        attempt.wait()
        if attempt.error is None:
            if self._failing_since is not None:
                logging.warning("checkpoint %d is saved; all is well again.", step)
            self._failing_since, self._pause = None, 0.0
            self._steps.append(step)
            self._steps = [one for one in self._steps if one not in outdated]
        self._on_save(step, attempt.error)
        if then is not None:
            then(attempt.error is None)
        if attempt.error is not None:
            self._note_failure(step, attempt.error)

    def _note_failure(self, step: int, error: str) -> None:
        """Says that a save failed, and when it is tried again.

        Raises:
            StorageError: it has been tried for long enough.
        """
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        failing = now - self._failing_since
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        self._again_at = now + self._pause
        newest = self.latest_step()
        safe = (
            "there is none yet" if newest is None else f"the last good one is {newest}"
        )
        is_over = failing + self._pause > self._retry_seconds
        if self._exchange(str(is_over))[0] == "True":
            raise StorageError(
                f"checkpoint {step} could not be saved in {self._directory}: {error}. "
                f"Tried for SAVE_RETRY_SECONDS={self._retry_seconds:g}; {safe}. Make "
                "room or mend the storage, and start again: the run goes on."
            )
        logging.warning(
            "checkpoint %d could not be saved in %s: %s; %s. Training goes on, and "
            "saves again in %g s, until SAVE_RETRY_SECONDS=%g are over.",
            step,
            self._directory,
            error,
            safe,
            self._pause,
            self._retry_seconds,
        )

    def _outdated(self, new: int, best: int | None) -> list[int]:
        """Returns which checkpoints need not be kept, once there is a new one."""
        steps = sorted({*self._steps, new})
        return [step for step in steps[: -self._keep] if step != best]

    def _remove(self, steps: list[int]) -> None:
        """Removes old checkpoints; what cannot be removed is in nobody's way."""
        for step in steps:
            folder = step_dir(self._directory, step)
            try:
                saving.remove(folder)
            except OSError as error:
                logging.warning("cannot remove %s: %s.", folder, error.strerror)


def _free_name(folder: Path, suffix: str) -> Path:
    """Returns `1000.damaged`, or `1000.damaged1`... where that is taken."""
    numbers = itertools.chain([""], itertools.count(1))
    names = (folder.with_name(f"{folder.name}{suffix}{number}") for number in numbers)
    return next(name for name in names if not name.exists())


def _without_params(state: TrainState) -> dict[str, Any]:
    """Returns the part of the state that only training needs."""
    return {"step": state.step, "opt_state": state.opt_state}
