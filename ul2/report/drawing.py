"""Columns of runs as charts: one colour per run, one bucket per place on the axis."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from ul2.html.buckets import bucketed
from ul2.html.charts import MOST_BUCKETS, Line, Mark, line_chart
from ul2.html.elements import Html, tag
from ul2.html.scales import number
from ul2.report.run_record import Column, RunRecord

# What is drawn of all lines together, so that a page stays below 5 MB.
_MOST_ALL_BUCKETS: Final = 36_000
_LEAST_BUCKETS: Final = 24
# Charts of one kind; what is more has no chart.
MOST_CHARTS: Final = 24
# Neighbours differ in hue and in lightness.
_RUN_COLOURS: Final = (0, 3, 2, 5, 4, 6, 1, 7)


class Drawing(NamedTuple):
    """How the curves of some runs are drawn.

    Attributes:
        runs: in the order of their colours.
        buckets: of each line, at most.
    """

    runs: Sequence[RunRecord]
    buckets: int

    @property
    def is_single(self) -> bool:
        """Whether there is one run, so that colours are free for its parts."""
        return len(self.runs) == 1

    def line(
        self,
        column: Column,
        label: str,
        colour: int,
        style: str = "solid",
        *,
        labelled: bool = True,
    ) -> Line | None:
        """Returns a line of a chart; None where there is nothing to draw."""
        if not column:
            return None
        points = len(column) <= MOST_BUCKETS // 4 and style != "dashed"
        found = bucketed(column.steps, column.values, self.buckets)
        return Line(label, colour, found, style, labelled, points)

    def per_run(
        self,
        title: str,
        unit: str,
        find: Callable[[RunRecord], Column],
        *,
        form: Callable[[float], str] = number,
        from_zero: bool = False,
        marked: bool = False,
    ) -> Html | None:
        """Returns a chart with a line for each run; None where none has any.

        Args:
            title: of the chart.
            unit: of its values.
            find: returns what is drawn of a run.
            form: how a value is written.
            from_zero: whether the axis of values starts at 0.
            marked: whether restarts and bad updates are shown.
        """
        lines = [
            self.line(find(run), run.name, run_colour(place))
            for place, run in enumerate(self.runs)
        ]
        marks = [mark for run in self.runs for mark in marks_of(run)] if marked else []
        return chart(title, unit, lines, marks, form=form, from_zero=from_zero)


def run_colour(place: int) -> int:
    """Returns the colour of a run."""
    return _RUN_COLOURS[place % len(_RUN_COLOURS)]


def drawing_of(runs: Sequence[RunRecord]) -> Drawing:
    """Returns how runs are drawn, so that the page does not grow too large."""
    columns = [
        c for run in runs for t in (run.metrics, run.evaluations) for c in t.values()
    ]
    longest = sorted(map(len, columns), reverse=True)
    buckets = MOST_BUCKETS
    while buckets > _LEAST_BUCKETS:
        if sum(min(length, buckets) for length in longest) <= _MOST_ALL_BUCKETS:
            break
        buckets = max(_LEAST_BUCKETS, buckets * 9 // 10)
    return Drawing(runs, buckets)


def chart(
    title: str,
    unit: str,
    lines: Iterable[Line | None],
    marks: Iterable[Mark] = (),
    *,
    form: Callable[[float], str] = number,
    from_zero: bool = False,
) -> Html | None:
    """Returns a chart of what there is; None where there is nothing."""
    there = [line for line in lines if line is not None]
    if not there:
        return None
    return line_chart(title, unit, there, marks=marks, form=form, from_zero=from_zero)


def charts(some: Iterable[Html | None]) -> Html | None:
    """Returns charts side by side; None where there is none."""
    there = [one for one in some if one is not None]
    return tag("div", there, class_="charts") if there else None


def marks_of(run: RunRecord) -> list[Mark]:
    """Returns where a run was started again, and what was bad."""
    starts = [line["step"] for line in run.history if line["event"] == "start"]
    marks = [Mark(step, f"{run.name}: started again") for step in starts[1:]]
    return marks + [
        Mark(line["step"], f"{run.name}: {line['event']}", True) for line in run.events
    ]
