"""Charts as SVG: lines over steps, and histograms.

A line that was made short (`buckets`) is drawn by its means, over bars from the lowest
to the highest value of each bucket, so that no spike is lost. What was not finite is a
red cross at the foot. Labels stand at the ends of lines, moved apart where they meet.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from ul2.html.buckets import Bucket
from ul2.html.elements import Html, tag
from ul2.html.pages import NUM_COLOURS
from ul2.html.scales import Scale, number, scale_of, tick_labels

WIDTH: Final = 420
HEIGHT: Final = 230
# Buckets of a line: one for each place it can be drawn at.
MOST_BUCKETS: Final = 300
_TOP, _BOTTOM, _LEFT, _CHARACTER = 10, 30, 46, 6.3
_LINE_HEIGHT: Final = 13.0
_LONGEST_LABEL: Final = 17
# From this ratio on, values of one chart are compared by ratios.
_LOG_FROM: Final = 15.0
_MOST_LONG_MARKS: Final = 20
Format = Callable[[float], str]


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        label: what it shows.
        colour: number of a colour.
        buckets: its values.
        style: `solid`, `dashed` or `dotted`.
        labelled: whether its name stands at its end.
        points: whether each value has a dot.
    """

    label: str
    colour: int
    buckets: Sequence[Bucket]
    style: str = "solid"
    labelled: bool = True
    points: bool = False


class Mark(NamedTuple):
    """A vertical line at a step, e.g. a restart."""

    x: float
    label: str
    is_bad: bool = False


def line_chart(
    title: str,
    unit: str,
    lines: Sequence[Line],
    *,
    marks: Iterable[Mark] = (),
    form: Format = number,
    x_label: str = "update",
    from_zero: bool = False,
) -> Html:
    """Returns a chart of lines over steps.

    Args:
        title: of the chart.
        unit: of its values.
        lines: what is shown.
        marks: steps at which something happened.
        form: how a value is written.
        x_label: what x counts.
        from_zero: whether the axis of values starts at 0; where it need not, and values
            differ by much, it is logarithmic.
    """
    xs = [x for line in lines for b in line.buckets for x in (b.first, b.last)]
    ys = [y for line in lines for b in line.buckets for y in (b.low, b.high)]
    finite = [y for y in ys if math.isfinite(y)]
    is_log = (
        not from_zero
        and bool(finite)
        and min(finite) > 0
        and max(finite) / min(finite) > _LOG_FROM
    )
    labels = [line.label for line in lines if line.labelled and len(lines) > 1]
    longest = max((len(_short(label)) for label in labels), default=0)
    right = WIDTH - (_CHARACTER * longest + 14 if longest else 8)
    low, high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    # Charts beside each other are read as one, where their lines begin near the start.
    low = 0.0 if low <= high / 2 else low
    x = Scale(low, high if high > low else low + 1, _LEFT, right)
    y = scale_of(ys, HEIGHT - _BOTTOM, _TOP, is_log=is_log, from_zero=from_zero)
    drawing = [
        *_axes(x, y, form, x_label),
        *_marks(_apart(marks, x), x),
        *(_drawn(line, x, y) for line in lines),
        *(_end_labels(lines, x, y) if labels else ()),
        tag("line", class_="cursor", x1=0, x2=0, y1=_TOP, y2=HEIGHT - _BOTTOM),
    ]
    told = ", ".join(one for one in (unit, "logarithmic axis" * is_log) if one)
    return tag(
        "figure",
        tag("figcaption", title, " ", tag("span", told, class_="unit")),
        _svg(title, drawing),
        tag(
            "script",
            _data(lines, x, x_label, form),
            type="application/json",
        ),
        data_chart="",
    )


def histogram(
    title: str,
    unit: str,
    counts: Sequence[tuple[float, float, float]],
    *,
    colour: int,
    declared: float | None = None,
    within: tuple[float, float] | None = None,
    form: Format = number,
) -> Html:
    """Returns a histogram, and a dashed line at what was declared.

    Args:
        title: of the chart.
        unit: of the values that are counted.
        counts: (from, to, share) of each bar.
        colour: number of a colour.
        declared: value that is declared; None for none.
        within: ends of the axis; None for as far as there are bars.
        form: how a value is written.
    """
    height = 150
    edges = [e for low, high, _ in counts for e in (low, high)]
    marked = [] if declared is None else [declared]
    x = scale_of([*edges, *marked], _LEFT, WIDTH - 12)
    if within is not None:
        x = Scale(*within, _LEFT, WIDTH - 12)
    y = scale_of(
        [share for *_, share in counts], height - _BOTTOM, _TOP + 12, from_zero=True
    )
    bars = [
        tag(
            "rect",
            tag("title", f"{_interval(low, high, form)}: {share:.1%}"),
            x=x(low) + 0.4,
            y=y(share),
            width=max(x(high) - x(low) - 0.8, 0.8),
            height=y(0.0) - y(share),
            fill=_colour(colour),
        )
        for low, high, share in counts
    ]
    line: list[Html] = []
    if declared is not None:
        place = x(declared)
        on_right = place < WIDTH * 0.7
        line = [
            tag("line", class_="declared", x1=place, x2=place, y1=_TOP, y2=y(0.0)),
            tag(
                "text",
                f"declared {form(declared)}",
                x=place + (5 if on_right else -5),
                y=_TOP + 8.0,
                class_="label",
                text_anchor="start" if on_right else "end",
            ),
        ]
    return tag(
        "figure",
        tag("figcaption", title, " ", tag("span", unit, class_="unit")),
        _svg(title, [*_axes(x, y, form, "", height, _share), *bars, *line], height),
    )


def timeline(rows: Sequence[tuple[str, bool, Sequence[float]]], last: float) -> Html:
    """Returns lines of ticks: what happened, and at which update.

    Args:
        rows: name, whether it is bad, and the steps of each kind.
        last: step at the end of the axis.
    """
    wide, high = 2 * WIDTH, 18
    foot = _TOP + high * len(rows)
    left = 12 + _CHARACTER * max((len(name) for name, *_ in rows), default=0)
    x = Scale(0, last, left, wide - 20)
    drawn = []
    for row, (name, is_bad, steps) in enumerate(rows):
        middle = _TOP + high * (row + 0.5)
        places = sorted({round(x(min(max(step, 0), last)), 1) for step in steps})
        ticks = "".join(f"M{place:.1f} {middle - 6:.1f}v12" for place in places)
        drawn += [
            tag(
                "text",
                name,
                class_="label",
                x=left - 10,
                y=middle + 4,
                text_anchor="end",
            ),
            tag("line", class_="grid", x1=x.start, x2=x.end, y1=middle, y2=middle),
            tag("path", class_="tick bad" if is_bad else "tick", d=ticks),
        ]
    values = [v for v in x.ticks(8) if v == int(v)]
    for value, text in zip(values, tick_labels(values, number), strict=True):
        drawn.append(tag("text", text, x=x(value), y=foot + 16.0, text_anchor="middle"))
    drawn.append(tag("text", "update", x=x.end, y=foot + 30.0, text_anchor="end"))
    drawing = tag(
        "svg", drawn, viewBox=f"0 0 {wide} {foot + 34}", role="img", aria_label="events"
    )
    return tag("figure", drawing, class_="timeline")


def _share(value: float) -> str:
    return f"{value * 100:.3g} %"


def _interval(low: float, high: float, form: Format) -> str:
    return form((low + high) / 2) if high - low == 1 else f"{form(low)} to {form(high)}"


def _svg(title: str, drawing: Sequence[Html], height: int = HEIGHT) -> Html:
    return tag(
        "svg", drawing, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=title
    )


def _axes(
    x: Scale,
    y: Scale,
    form: Format,
    x_label: str,
    height: int = HEIGHT,
    y_form: Format | None = None,
) -> list[Html]:
    """Returns grid, ticks and their labels."""
    foot = height - _BOTTOM
    drawn = []
    values = y.ticks(5 if height == HEIGHT else 3)
    for value, text in zip(values, tick_labels(values, y_form or form), strict=True):
        drawn += [
            tag("line", class_="grid", x1=x.start, x2=x.end, y1=y(value), y2=y(value)),
            tag("text", text, x=x.start - 6, y=y(value) + 4, text_anchor="end"),
        ]
    drawn.append(tag("line", class_="axis", x1=x.start, x2=x.end, y1=foot, y2=foot))
    counted = number if x_label else form
    values = [v for v in x.ticks() if not x_label or v == int(v)]
    for value, text in zip(values, tick_labels(values, counted), strict=True):
        place = x(value)
        drawn += [
            tag("line", class_="axis", x1=place, x2=place, y1=foot, y2=foot + 4),
            tag("text", text, x=place, y=foot + 16.0, text_anchor="middle"),
        ]
    if x_label:
        drawn.append(tag("text", x_label, x=x.end, y=foot + 28.0, text_anchor="end"))
    return drawn


def _apart(marks: Iterable[Mark], x: Scale) -> list[Mark]:
    """Returns marks on the axis, those at one place joined; bad ones come last."""
    places: dict[int, Mark] = {}
    for mark in sorted(marks, key=lambda one: one.is_bad):
        if x.low <= mark.x <= x.high:
            places[round(x(mark.x))] = mark
    return list(places.values())


def _marks(marks: Sequence[Mark], x: Scale) -> list[Html]:
    """Returns vertical lines; where there are many, short ones."""
    foot = HEIGHT - _BOTTOM if len(marks) <= _MOST_LONG_MARKS else _TOP + 8
    return [
        tag(
            "line",
            tag("title", f"{mark.label} at {mark.x:,.0f}"),
            class_="mark bad" if mark.is_bad else "mark",
            x1=x(mark.x),
            x2=x(mark.x),
            y1=_TOP,
            y2=foot,
        )
        for mark in marks
    ]


def _drawn(line: Line, x: Scale, y: Scale) -> Html:
    """Returns ranges, means and what is lacking of a line."""
    colour = _colour(line.colour)
    ranges, means, dots, lacking = [], [], [], []
    pen = "M"
    for bucket in line.buckets:
        place = x(bucket.middle)
        if bucket.lacking:
            lacking.append(f"M{place - 3:.1f} {y.start - 7:.1f}l6 6m0 -6l-6 6")
        if not math.isfinite(bucket.mean) or (y.is_log and bucket.low <= 0):
            pen = "M"
            continue
        if bucket.low < bucket.high:
            ranges.append(f"M{place:.1f} {y(bucket.low):.1f}V{y(bucket.high):.1f}")
        means.append(f"{pen}{place:.1f} {y(bucket.mean):.1f}")
        dots.append((place, y(bucket.mean)))
        pen = "L"
    if line.points or len(dots) == 1:
        radius = 2.6 if len(dots) < 60 else 1.2
        means_dots = [tag("circle", cx=a, cy=b, r=radius, fill=colour) for a, b in dots]
    else:
        means_dots = []
    return tag(
        "g",
        tag("path", class_="range", stroke=colour, d="".join(ranges)) if ranges else "",
        tag("path", class_=f"line {line.style}", stroke=colour, d="".join(means)),
        means_dots,
        tag("path", tag("title", "not finite"), class_="lacking", d="".join(lacking))
        if lacking
        else "",
    )


def _end_labels(lines: Sequence[Line], x: Scale, y: Scale) -> list[Html]:
    """Returns the names of lines, at their ends."""
    ends = []
    for line in lines:
        finite = [b for b in line.buckets if math.isfinite(b.mean)]
        if line.labelled and finite and not (y.is_log and finite[-1].mean <= 0):
            last = finite[-1]
            ends.append((y(last.mean), x(last.middle), line))
    ends.sort(key=lambda end: end[0])
    places = spread([end[0] for end in ends], _LINE_HEIGHT, _TOP, HEIGHT - _BOTTOM - 6)
    drawn = []
    for (own, end, line), place in zip(ends, places, strict=True):
        drawn += [
            tag(
                "path",
                d=f"M{end + 2:.1f} {own:.1f}L{x.end + 8:.1f} {place:.1f}",
                class_="leader",
            ),
            tag(
                "text",
                tag("title", line.label),
                _short(line.label),
                class_="label",
                x=x.end + 11,
                y=place + 4,
            ),
        ]
    return drawn


def spread(
    places: Sequence[float], least: float, low: float, high: float
) -> list[float]:
    """Returns rising places at least `least` apart, moved as little as that takes.

    10, 12, 30 at least 10 apart   ->   6, 16, 30
    """
    groups: list[list[float]] = []  # (sum of wishes of the first, count)
    for place in places:
        groups.append([place, 1])
        while len(groups) > 1 and _meet(groups[-2], groups[-1], least):
            total, count = groups.pop()
            before, many = groups[-1]
            groups[-1] = [before + total - count * many * least, many + count]
    found = []
    for total, count in groups:
        first = min(max(total / count, low), max(high - (count - 1) * least, low))
        found += [first + n * least for n in range(int(count))]
    return found


def _meet(before: list[float], after: list[float], least: float) -> bool:
    """Returns whether a group reaches into the next."""
    last = before[0] / before[1] + (before[1] - 1) * least
    return after[0] / after[1] < last + least


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"


def _colour(number: int) -> str:
    return f"var(--c{number % NUM_COLOURS})"


def _data(lines: Sequence[Line], x: Scale, x_label: str, form: Format) -> Html:
    """Returns what the page's script shows under the pointer."""
    found: dict[str, Any] = {
        "xlabel": x_label,
        "width": WIDTH,
        "start": x.start,
        "end": x.end,
        "low": x.low,
        "high": x.high,
        "lines": [
            {
                "label": line.label,
                "colour": line.colour % NUM_COLOURS,
                "x": [round(b.middle, 1) for b in line.buckets],
                "text": [_told(bucket, form) for bucket in line.buckets],
            }
            for line in lines
        ],
    }
    written = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
    for mark in "<>&\u2028\u2029":
        written = written.replace(mark, f"\\u{ord(mark):04x}")
    return Html(written.encode("utf-8", "replace").decode())


def _told(bucket: Bucket, form: Format) -> str:
    if not math.isfinite(bucket.mean):
        return "not finite"
    text = form(bucket.mean)
    if bucket.low < bucket.high:
        text += f" ({form(bucket.low)} to {form(bucket.high)})"
    return text + (f", {bucket.lacking} not finite" if bucket.lacking else "")
