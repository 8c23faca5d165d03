"""The page of `ul2 report`: runs beside each other, from their files alone."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ul2.html import pages
from ul2.html.elements import Child, Html, join, tag
from ul2.html.pages import Section
from ul2.html.scales import duration, number, percent
from ul2.report import configs, happenings, losses, samples, speed
from ul2.report.drawing import drawing_of, run_colour
from ul2.report.run_record import RunRecord


def make_report(runs: Sequence[RunRecord]) -> str:
    """Returns the page."""
    drawing = drawing_of(runs)
    made = (
        ("loss", "Loss", losses.overall),
        ("denoisers", "By denoiser", losses.by_denoiser),
        ("sources", "By source", losses.by_source),
        ("modes", "Modes", losses.by_mode),
        ("optimizer", "Optimizer", speed.optimizer),
        ("speed", "Speed and memory", speed.speed),
        ("events", "Events", happenings.happenings),
        ("samples", "Samples", samples.samples),
        ("config", "Config", configs.configs),
    )
    sections = [
        Section(anchor, title, content)
        for anchor, title, make in made
        if (content := make(drawing)) is not None
    ]
    title = "ul2 report: " + ", ".join(run.name for run in runs)
    return pages.page(title, _overview(runs), sections, _footer(runs, drawing.buckets))


def summary(run: RunRecord) -> dict[str, Any]:
    """Returns what is said of a run first, as JSON values."""
    words, _ = happenings.status(run)
    held_out = run.evaluations.of("loss")
    lowest = held_out.lowest()
    return {
        "name": run.name,
        "status": words,
        "step": run.step,
        "total_steps": run.total_steps,
        "loss": _or_none(run.metrics.of("loss").last),
        "held_out_loss": _or_none(held_out.last),
        "lowest_held_out_loss": lowest and lowest[0],
        "lowest_held_out_step": lowest and int(lowest[1]),
        "tokens_per_second": _or_none(_median(run, "tokens_per_second")),
        "seconds": run.seconds(),
        "lines": run.metrics.num_lines,
        "events": len(run.events),
    }


def _overview(runs: Sequence[RunRecord]) -> Html:
    """Returns a line for each run."""
    head = (
        *("run", tag("th", "status", class_="words"), "target tokens", "training loss"),
        *("held-out loss", "lowest", "tokens/s", "padding", "wait for data", "at work"),
    )
    notes = [
        tag("p", f"{run.name}: {file} could not be read: {why}.", class_="status-bad")
        for run in runs
        for file, why in run.unread.items()
    ]
    empty = [
        tag("p", f"{run.name} has no measurement yet.", class_="quiet")
        for run in runs
        if not run.metrics.num_lines
    ]
    rows = [_row(n, run) for n, run in enumerate(runs)]
    return join(pages.table(head, rows), empty, notes)


def _row(place: int, run: RunRecord) -> list[Child]:
    words, kind = happenings.status(run)
    found = summary(run)
    tokens = run.metrics.of("target_tokens").values
    lowest = found["lowest_held_out_loss"]
    return [
        join(pages.swatch(run_colour(place)), " ", tag("b", run.name)),
        tag("td", words, class_=f"words status-{kind}"),
        number(math.fsum(v for v in tokens if math.isfinite(v))) if tokens else "",
        _shown(found["loss"]),
        _shown(found["held_out_loss"]),
        "" if lowest is None else f"{lowest:.4f} at {found['lowest_held_out_step']:,}",
        _shown(found["tokens_per_second"], number),
        _shown(_or_none(_median(run, "padding_fraction")), percent),
        _shown(_or_none(_median(run, "data_wait_fraction")), percent),
        _shown(found["seconds"], duration),
    ]


def _median(run: RunRecord, name: str) -> float:
    finite = [v for v in run.metrics.of(name).values if math.isfinite(v)]
    return statistics.median(finite) if finite else math.nan


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float | None, form: Any = "{:.4f}".format) -> str:
    return "" if value is None else str(form(value))


def _footer(runs: Sequence[RunRecord], buckets: int) -> Child:
    lines = sum(run.metrics.num_lines for run in runs)
    text = f"Made by ul2 report of {lines:,} measurements; the page needs no network."
    if any(len(c) > buckets for run in runs for c in run.metrics.values()):
        text += (
            f" Long curves are drawn in {buckets} buckets: their mean, over bars from "
            "the lowest to the highest value, so no spike is lost."
        )
    return text + " A red cross is a value that is not finite."
