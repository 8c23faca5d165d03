"""Tells on stderr how many rows are answered: a bar, or lines in a log."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console

from ul2.terminal import LiveLine

_SECONDS_BETWEEN_LINES: Final = 10.0


class Progress:
    """A progress report, used as a context manager."""

    def __init__(
        self,
        num_rows: int | None,
        *,
        show: bool,
        label: str = "infer",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the report.

        Args:
            num_rows: rows in all; None if nobody knows.
            show: whether to report at all.
            label: what is being done.
            console: where to; stderr if None.
            clock: returns seconds.
        """
        self._label = label
        self._of = "" if num_rows is None else f" of {num_rows:,}"
        self._clock = clock
        self._done = self._done_before = 0
        self._line = LiveLine(label, num_rows, console=console, show=show)
        self._prints = show and not self._line.is_live

    def __enter__(self) -> Self:
        self._started = self._reported = self._clock()
        self._line.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.stop()

    def start_at(self, done: int) -> None:
        """Notes rows that were answered before."""
        self._done = self._done_before = done
        self._line.update(done, "")

    def add(self, rows: int) -> None:
        """Counts rows that were answered, and reports them when it is time."""
        self._done += rows
        now = self._clock()
        new = self._done - self._done_before
        rate = f"{new / max(now - self._started, 1e-9):.1f} rows/s"
        self._line.update(
            self._done, rate if self._of else f"{self._done:,} rows, {rate}"
        )
        if self._prints and now - self._reported >= _SECONDS_BETWEEN_LINES:
            self._reported = now
            self._line.console.print(
                f"{self._label}: {self._done:,}{self._of} rows, {rate}",
                soft_wrap=True,
            )
