"""One line that changes while a command works, for a terminal; nothing for a log.

Whoever shows it writes plain lines where `is_live` says no: in a pipe, a file, under a
scheduler, or on a terminal that cannot move its cursor (TERM=dumb). Colours are off
there, too, and wherever NO_COLOR is set.
"""

from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

_BAR_WIDTH: Final = 20


class LiveLine:
    """A label, a bar, how far it is, what else there is to say, and the time left.

    What does not fit into the width of the terminal is cut off, so it stays one line.
    What is written to standard error meanwhile appears above it.

    Args:
        label: what is being done.
        total: how much there is to do; None if nobody knows.
        done: how much was done before.
        console: where to; standard error by default.
        show: whether to show anything.
        counts: show `3/10`; else a percentage.
        transient: leave nothing behind at the end.
    """

    def __init__(
        self,
        label: str,
        total: float | None,
        *,
        done: int = 0,
        console: Console | None = None,
        show: bool = True,
        counts: bool = True,
        transient: bool = True,
    ) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        can_move = self.console.is_terminal and not self.console.is_dumb_terminal
        self.is_live = show and can_move
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(_BAR_WIDTH),
            *_columns(total, counts),
            TextColumn(
                "{task.fields[summary]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=transient,
            expand=True,
            disable=not self.is_live,
        )
        self._task = self._progress.add_task(
            label, total=total, completed=done, summary=""
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Shows it."""
        self._progress.start()

    def update(self, done: float, summary: str) -> None:
        """Changes it."""
        self._progress.update(self._task, completed=done, summary=summary)

    def stop(self) -> None:
        """Gives the terminal back."""
        self._progress.stop()


def _columns(total: float | None, counts: bool) -> list[ProgressColumn]:
    if not counts:
        return [TaskProgressColumn()]
    return [MofNCompleteColumn()] if total is not None else []
