"""Losses: of all targets, by denoiser, by source, and under each mode."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from ul2.html import pages
from ul2.html.elements import Child, Html, join, tag
from ul2.html.scales import number
from ul2.report.drawing import MOST_CHARTS, Drawing, chart, charts, run_colour
from ul2.report.run_record import Column, Columns, RunRecord

_NATS: Final = "nats per token"
_MODE_COLOURS: Final = (0, 2, 3, 7, 5, 4)  # R blue, S green, X red, none grey
# Line styles, where colours are runs.
_TRAIN, _HELD_OUT, _UNIGRAM = "solid", "dotted", "dashed"


def overall(drawing: Drawing) -> Html | None:
    """Returns the loss and the accuracy of all targets, trained on and held out."""
    return charts(
        [
            drawing.per_run(
                "Training loss", _NATS, lambda run: run.metrics.of("loss"), marked=True
            ),
            drawing.per_run(
                "Held-out loss", _NATS, lambda run: run.evaluations.of("loss")
            ),
            drawing.per_run(
                "Training accuracy",
                "share of target tokens",
                lambda run: run.metrics.of("accuracy"),
                from_zero=True,
            ),
            drawing.per_run(
                "Held-out accuracy",
                "share of target tokens",
                lambda run: run.evaluations.of("accuracy"),
                from_zero=True,
            ),
        ]
    )


def by_denoiser(drawing: Drawing) -> Html | None:
    """Returns a chart per denoiser or task; of a single run, all in one as well."""
    names = _names(drawing.runs, "denoisers")
    if not names:
        return None
    shown = names[:MOST_CHARTS]
    together = None
    if drawing.is_single:
        [run] = drawing.runs
        together = charts(
            chart(
                title,
                _NATS,
                [
                    drawing.line(columns.of("denoisers", name, "loss"), name, colour)
                    for colour, name in enumerate(shown)
                ],
            )
            for title, columns in (
                ("All, training", run.metrics),
                ("All, held out", run.evaluations),
            )
        )
    styles = [
        (pages.swatch(7, _TRAIN), "training"),
        (pages.swatch(7, _HELD_OUT), "held out"),
        (
            pages.swatch(7, _UNIGRAM),
            "unigram entropy of the same targets, which counting alone reaches",
        ),
    ]
    return join(
        together,
        pages.legend(styles),
        charts(_of_denoiser(drawing, name, names.index(name)) for name in shown),
        _left_out(names),
    )


def _of_denoiser(drawing: Drawing, name: str, place: int) -> Html | None:
    lines = []
    for number_of_run, run in enumerate(drawing.runs):
        colour = place if drawing.is_single else run_colour(number_of_run)
        label = "training" if drawing.is_single else run.name
        place_of = ("denoisers", name)
        lines += [
            drawing.line(run.metrics.of(*place_of, "loss"), label, colour, _TRAIN),
            drawing.line(
                run.evaluations.of(*place_of, "loss"),
                "held out" if drawing.is_single else f"{run.name}, held out",
                colour,
                _HELD_OUT,
                labelled=drawing.is_single,
            ),
            drawing.line(
                run.evaluations.of(*place_of, "unigram_entropy"),
                "unigram" if drawing.is_single else f"{run.name}, unigram entropy",
                colour,
                _UNIGRAM,
                labelled=drawing.is_single,
            ),
        ]
    return chart(name, _NATS, lines)


def by_source(drawing: Drawing) -> Html | None:
    """Returns the held-out loss of each source of text."""
    names = _names(drawing.runs, "sources")
    if not names:
        return None
    shown = names[:MOST_CHARTS]
    if drawing.is_single:
        [run] = drawing.runs
        return charts(
            [
                chart(
                    "Held-out loss by source",
                    _NATS,
                    [
                        drawing.line(
                            run.evaluations.of("sources", name, "loss"), name, colour
                        )
                        for colour, name in enumerate(shown)
                    ],
                )
            ]
        )
    return join(
        charts(drawing.per_run(name, _NATS, _source(name)) for name in shown),
        _left_out(names),
    )


def _source(name: str) -> Callable[[RunRecord], Column]:
    return lambda run: run.evaluations.of("sources", name, "loss")


def by_mode(drawing: Drawing) -> Html | None:
    """Returns the mode probe: the same held-out text under each mode, over time."""
    parts = [
        part for run in drawing.runs if (part := _modes_of(drawing, run)) is not None
    ]
    if not parts:
        return None
    text = (
        "The same held-out text, with the same spans, scored under every mode and "
        "under none. Where the lines are one, the model does not listen to its modes; "
        "a denoiser that is best under its own mode has learned what that mode means. "
        "As trained is each denoiser under its own."
    )
    return join(tag("p", text), parts)


def _modes_of(drawing: Drawing, run: RunRecord) -> Html | None:
    scores = run.evaluations
    modes = scores.groups("modes")
    if not modes:
        return None
    names = scores.groups("denoisers")[:MOST_CHARTS]
    colours = list(zip(_MODE_COLOURS, modes, strict=False))

    def difference(title: str, *of: str) -> Html | None:
        own = scores.of(*of, "loss")
        return chart(
            title,
            f"{_NATS} above the loss as trained",
            [
                drawing.line(scores.of("modes", mode, *of, "loss").less(own), mode, n)
                for n, mode in colours
            ],
            from_zero=True,
        )

    small = [difference(name, "denoisers", name) for name in names]
    lines = [
        drawing.line(scores.of("modes", mode, "loss"), mode, n) for n, mode in colours
    ]
    return join(
        None if drawing.is_single else tag("h3", run.name),
        charts(
            [chart("All denoisers", _NATS, lines), difference("All denoisers"), *small]
        ),
        _mode_table(scores, modes, names),
    )


def _mode_table(columns: Columns, modes: Sequence[str], names: Sequence[str]) -> Html:
    """Returns the newest losses: denoisers by modes, the lowest of each set bold."""
    rows: list[list[Child]] = []
    for name in names:
        own = columns.of("denoisers", name, "loss").last
        losses = [columns.of("modes", m, "denoisers", name, "loss").last for m in modes]
        best = min((v for v in losses if math.isfinite(v)), default=math.nan)
        cells: list[Child] = [
            tag("td", f"{loss:.4f}", class_="best" if loss == best else None)
            for loss in losses
        ]
        rows.append([name, f"{own:.4f}", *cells])
    step = columns.last_step
    return join(
        tag("p", f"After update {step:,}, {_NATS}; the lowest of a line is bold."),
        pages.table(["denoiser", "as trained", *modes], rows),
    )


def _names(runs: Sequence[RunRecord], group: str) -> list[str]:
    """Returns the names below a group in any run, in their order."""
    tables = (table for run in runs for table in (run.metrics, run.evaluations))
    return list(dict.fromkeys(name for table in tables for name in table.groups(group)))


def _left_out(names: Sequence[str]) -> Html | None:
    more = len(names) - MOST_CHARTS
    if more <= 0:
        return None
    return tag("p", f"{number(more)} more have no chart.", class_="quiet")
