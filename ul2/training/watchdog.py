"""What a run is doing, and a thread that speaks when it does nothing for too long.

A host that waits for text, for a disk or in a collective for another host looks the
same from outside: nothing moves. So the loop says what it is about to do, and when a
phase lasts longer than it may, every host says on standard error who it is, which phase
stands still and where in the program. When the same time has passed once more, it says
what the others told it by then, and ends, so that a scheduler can start the job again
from its last checkpoint. The host that stands in another phase than all the others, or
says nothing at all, is the cause.

    start        restoring or drawing the first state
    data         waiting for the next batch
    step         starting an update; on one host, waiting for its result as well
    collective   waiting for the result of an update that all hosts make together
    evaluation   held-out batches
    save         writing a checkpoint, or waiting for the one before
    diagnosis    finding what went bad in an update

The first time in a phase compiles its program, so it may take four times as long; so
may every evaluation, which may decode.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final

import jax

from ul2.exit_codes import RESTART
from ul2.sharding.processes import exchange
from ul2.training.metrics import Clock

START, DATA, STEP, COLLECTIVE = "start", "data", "step", "collective"
EVALUATION, SAVE, DIAGNOSIS = "evaluation", "save", "diagnosis"
# How much longer a phase may take that may compile or decode.
_PATIENCE: Final = 4


def _say(text: str) -> None:
    """Writes to standard error at once, and past everything that holds a lock."""
    os.write(2, text.encode())


def _end() -> None:
    """Ends the process; nothing that stands still is waited for."""
    os._exit(RESTART)


def _exchange(line: str) -> Mapping[str, str | None]:
    """Tells the other processes, and returns what they told; takes a few seconds."""
    return exchange("stands still", line, seconds=5.0)


class Watchdog:
    """Watches over a loop while it is entered.

    Args:
        stall_seconds: how long a phase may last; 0 for as long as it likes.
        clock: tells the time.
        say: takes what a person is told.
        end: ends the process.
        exchange: tells the other processes a line, and returns theirs by their names;
            None for one that has told nothing.
    """

    def __init__(
        self,
        stall_seconds: float,
        *,
        clock: Clock = time.monotonic,
        say: Callable[[str], None] = _say,
        end: Callable[[], None] = _end,
        exchange: Callable[[str], Mapping[str, str | None]] = _exchange,
    ) -> None:
        self._limit = stall_seconds
        self._clock, self._say, self._end = clock, say, end
        self._exchange = exchange
        self._main = threading.get_ident()
        self._compiled: set[str] = set()
        self._told = self._has_told = False
        self._over = threading.Event()
        self.step = 0
        self._waiting = STEP if jax.process_count() == 1 else COLLECTIVE
        self._enter(START)

    def __enter__(self) -> "Watchdog":
        if self._limit > 0:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Says what is done inside; after the data, an update is started."""
        self._enter(name)
        yield
        if name != EVALUATION:
            self._compiled.add(name)
        self._enter(STEP if name == DATA else self._waiting)

    def moved(self, step: int) -> None:
        """Says that update `step` is on its way, its program compiled."""
        if self._phase == STEP:
            # Others may compile for longer: the first wait is for them.
            self._compiled.add(COLLECTIVE if STEP in self._compiled else STEP)
        self.step = step
        self._enter(self._waiting)

    def look(self) -> None:
        """Speaks if nothing has moved for too long, and ends the process if it has."""
        phase, since = self._phase, self._since
        limit = self._limit * (1 if phase in self._compiled else _PATIENCE)
        still = self._clock() - since
        if still >= 2 * limit:
            self._say(
                f"error: {_who()}: {phase} has stood still for {still:.0f} seconds "
                f"at step {self.step}{self._others(phase)}; the process ends (exit "
                f"code {RESTART}): start the job again, it goes on from the last "
                "checkpoint.\n"
            )
            self._end()
        elif still >= limit and not self._told:
            self._told = True
            self._say(
                f"warning: {_who()}: {phase} has stood still for {still:.0f} seconds "
                f"at step {self.step} (STALL_SECONDS={self._limit:g}); the process "
                f"ends in {2 * limit - still:.0f} seconds if it goes on so. It is at:\n"
                f"{self._stack()}"
            )
            self._others(phase)  # So that they know when it is their turn to say.
            self._has_told = True
        elif still < limit and self._has_told:
            self._exchange("")  # It moved.
            self._has_told = False

    def _others(self, phase: str) -> str:
        """Tells the others where this process stands; returns what they told."""
        told = self._exchange(f"{phase} at step {self.step}")
        parts = [f"{name}: {line or 'says nothing'}" for name, line in told.items()]
        return f" ({'; '.join(parts)})" if parts else ""

    def _enter(self, phase: str) -> None:
        self._phase, self._since, self._told = phase, self._clock(), False

    def _watch(self) -> None:
        while not self._over.wait(min(self._limit / 10, 10.0)):
            self.look()

    def _stack(self) -> str:
        """Returns where the thread stands that trains."""
        frame = sys._current_frames().get(self._main)
        lines: list[Any] = traceback.format_stack(frame) if frame else []
        return "".join(lines)


def _who() -> str:
    name = f"process {jax.process_index()} of {jax.process_count()}"
    return f"{name} on {socket.gethostname()}"
