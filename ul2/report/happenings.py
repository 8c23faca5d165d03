"""What happened to runs: starts, saves, ends, skipped updates, spikes, roll-backs."""

import datetime
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ul2.html import pages
from ul2.html.charts import timeline
from ul2.html.elements import Child, Html, join, tag
from ul2.html.scales import data_size
from ul2.report.drawing import Drawing
from ul2.report.run_record import RunRecord, as_number

_MOST_ROWS: Final = 200
_BAD: Final = ("skip", "spike", "rollback", "stop")
_KINDS: Final = ("start", "save", "end", *_BAD)


def status(run: RunRecord) -> tuple[str, str]:
    """Returns how a run stands, in words, and whether that is good, bad or neither."""
    total, done = run.total_steps, run.step
    place = f"update {done:,}" + (f" of {total:,}" if total else "")
    last = run.history[-1] if run.history else {}
    how = str(last.get("how")) if last.get("event") == "end" else None
    if run.events and run.events[-1]["event"] == "stop":
        return f"stopped by bad numbers at {place}", "bad"
    if how == "stopped":
        return f"stopped by a signal at {place}", "warn"
    if how == "done" or (how is None and total and done >= total):
        return f"done, {done:,} updates", "good"
    if how is not None:
        return f"ended by {how[:60]} at {place}", "bad"
    return f"at work, or killed, after {place}", "warn"


def happenings(drawing: Drawing) -> Html | None:
    """Returns a line of time and a table for each run."""
    parts = [
        part for run in drawing.runs if (part := _of_run(run, drawing)) is not None
    ]
    return join(parts) if parts else None


def _of_run(run: RunRecord, drawing: Drawing) -> Html | None:
    lines = sorted([*run.history, *run.events], key=_order)
    if not lines:
        return None
    counts = Counter(str(line["event"]) for line in lines)
    kinds = [kind for kind in _KINDS if counts[kind]]
    rows = [
        (
            f"{kind}, {counts[kind]:,}",
            kind in _BAD,
            [line["step"] for line in lines if line["event"] == kind],
        )
        for kind in kinds
    ]
    told = [line for line in lines if line["event"] != "save"]
    more = len(told) - _MOST_ROWS
    return join(
        None if drawing.is_single else tag("h3", run.name),
        timeline(rows, max(run.step, 1)),
        tag("p", f"The last {_MOST_ROWS} of {len(told):,}.", class_="quiet")
        if more > 0
        else None,
        tag(
            "details",
            tag("summary", "All but saves, the newest first"),
            pages.table(
                ("update", "what", "when", "more"),
                [_row(line) for line in reversed(told[-_MOST_ROWS:])],
                words=True,
            ),
        ),
    )


def _order(line: Mapping[str, Any]) -> tuple[int, float]:
    now = as_number(line.get("time"))
    return line["step"], now if math.isfinite(now) else 0.0


def _row(line: Mapping[str, Any]) -> list[Child]:
    more = {k: v for k, v in line.items() if k not in ("event", "step", "time")}
    return [
        f"{line['step']:,}",
        tag(
            "td",
            str(line["event"])[:40],
            class_="status-bad" if line["event"] in _BAD else None,
        ),
        _when(line.get("time")),
        tag("td", ", ".join(_told(more)), class_="wrap"),
    ]


def _told(more: Mapping[str, Any]) -> Sequence[str]:
    """Returns what else a line says, for a person."""
    found = []
    for name, value in more.items():
        if value is None or value == {} or value == []:
            continue
        if name.endswith("_bytes"):
            size = data_size(as_number(value))
            found.append(f"{name.removesuffix('_bytes')}: {size}")
        elif isinstance(value, float):
            found.append(f"{name}: {value:.4g}")
        else:
            found.append(f"{name}: {str(value)[:300]}")
    return found


def _when(seconds: Any) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(as_number(seconds), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
