"""`TaskMixture`: which supervised tasks, how often, and in which mode each.

    TaskMixture(tasks="boolq", mode="S")
    TaskMixture(tasks=(("boolq", 1, "R"), ("xsum", 2)), mode="S")     xsum in mode S
    TaskMixture(tasks="super_glue")                                   a mixture, by name

Rates are per example, as weights of any scale.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from ul2.denoising.mixture import whole_counts
from ul2.vocab import MODES, mode_meant

AUTO: Final = "auto"
# What a person writes for no mode; gin's None will do as well.
NO_MODE: Final = "none"
ON_LONG: Final = ("truncate", "refuse")
# The shares of a batch are exact over a round; longer ones are rounded to this many.
_LARGEST_ROUND: Final = 1000


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """One task of a mixture."""

    name: str
    rate: float
    mode: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskMixture:
    """Tasks, and what is done with their examples.

    Attributes:
        tasks: a task, a mixture, or rows of (task, rate) or (task, rate, mode).
        mode: R, S, X, None (or 'none'), or 'auto', for rows without a mode of their
            own. 'auto' finds the best by short trials.
        eval_split: the split that is evaluated on.
        held_out_share: of the training examples, for a task without that split.
        on_long: `truncate` or `refuse` examples longer than the lengths of the recipe.
        data_dir: where data sets lie; None for where their library looks.
    """

    tasks: Any
    mode: str | None = None
    eval_split: str = "validation"
    held_out_share: float = 0.0
    on_long: str = "truncate"
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if self.on_long not in ON_LONG:
            raise ValueError(
                f"ON_LONG={self.on_long!r} is not one of {', '.join(ON_LONG)}."
            )
        if not 0 <= self.held_out_share < 1:
            raise ValueError(
                f"HELD_OUT_SHARE={self.held_out_share} must lie in [0, 1)."
            )
        if self.eval_split == "train":
            raise ValueError(
                "EVAL_SPLIT=train would choose by what was learned by heart; set "
                "another split, or HELD_OUT_SHARE."
            )
        if self.mode != AUTO:
            object.__setattr__(self, "mode", _mode("MODE", self.mode, AUTO))

    def rows(
        self, find_mixture: Callable[[str], Sequence[tuple[str, float]]]
    ) -> tuple[TaskRow, ...]:
        """Returns the tasks with their rates and modes.

        Args:
            find_mixture: returns the (task, rate) rows that a name stands for.

        Raises:
            ValueError: a row is no row, or a task stands there twice.
        """
        given = self.tasks
        if isinstance(given, str):
            given = find_mixture(given)
        if not isinstance(given, list | tuple) or not given:
            raise ValueError(
                f"TASK={given!r} is no task, no mixture and no list of (task, rate, "
                "mode)."
            )
        rows = tuple(self._row(row) for row in given)
        names = [row.name for row in rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"TASK names {twice[0]!r} more than once.")
        return rows

    def _row(self, given: Any) -> TaskRow:
        """Reads one row."""
        row = (given, 1) if isinstance(given, str) else given
        if not isinstance(row, list | tuple) or not 2 <= len(row) <= 3:
            raise ValueError(f"TASK: {given!r} is not (task, rate) or with a mode.")
        name, rate = row[:2]
        if not isinstance(name, str) or type(rate) not in (int, float):
            raise ValueError(f"TASK: {given!r} is not (task, rate) or with a mode.")
        if not 0 < rate < math.inf:
            raise ValueError(f"TASK: the rate of {name!r} is {rate}, not positive.")
        mode = _mode("TASK", row[2]) if len(row) == 3 else self.mode
        return TaskRow(name, rate, mode)


def with_mode(rows: Sequence[TaskRow], mode: str | None) -> tuple[TaskRow, ...]:
    """Returns the rows, those of mode 'auto' in this one."""
    return tuple(
        dataclasses.replace(row, mode=mode) if row.mode == AUTO else row for row in rows
    )


def counts_of(rows: Sequence[TaskRow]) -> tuple[int, ...]:
    """Returns how many examples of each task stand in one round.

    Rates that are numbers of examples would need rounds of a whole data set: those are
    rounded, to at least one example.
    """
    rates = [row.rate for row in rows]
    exact = whole_counts(rates)
    if sum(exact) <= _LARGEST_ROUND:
        return exact
    scale = _LARGEST_ROUND / sum(rates)
    return whole_counts([max(1, round(rate * scale)) for rate in rates])


def _mode(what: str, given: Any, *more: str) -> str | None:
    """Reads a mode."""
    if given in (None, NO_MODE):
        return None
    if given not in MODES:
        allowed = ", ".join((*MODES, NO_MODE, *more))
        raise ValueError(
            f"{what}: mode {given!r} is not one of {allowed}{mode_meant(given)}."
        )
    return str(given)
