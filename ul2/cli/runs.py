"""`ul2 runs`: which runs there are, and how each is doing."""

import argparse
from collections.abc import Sequence
from typing import Any, Final

from ul2.cli.command import add_command, make_console, say
from ul2.html.scales import duration
from ul2.run_states import (
    CRASHED,
    FINISHED,
    PREEMPTED,
    RUNNING,
    STATES,
    STOPPED,
    WAITING,
    RunState,
    find_runs,
    in_order,
    read_state,
)

_STYLES: Final = {
    RUNNING: "green",
    WAITING: "cyan",
    FINISHED: "bold",
    PREEMPTED: "yellow",
    STOPPED: "red",
    CRASHED: "red",
}


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "List runs: state, step, loss, speed, last save. Touches none of them."
    command = add_command(commands, "runs", _run, text)
    command.add_argument(
        "folder", nargs="*", default=["."], metavar="DIR", help="where they lie"
    )
    command.add_argument(
        "--state",
        action="append",
        choices=STATES,
        metavar="STATE",
        help=f"list those alone: {', '.join(STATES)}; several allowed",
    )


def _run(options: argparse.Namespace) -> dict[str, Any]:
    found = [path for folder in options.folder for path in find_runs(folder)]
    runs = in_order([read_state(path) for path in dict.fromkeys(found)])
    runs = [run for run in runs if not options.state or run.state in options.state]
    if not runs:
        which = f"{' or '.join(options.state)} " if options.state else ""
        say(f"no {which}runs in {', '.join(options.folder)}.")
    elif not options.json:
        _print(runs, make_console(options))
    return {"runs": [run.to_json() for run in runs]}


def _print(runs: Sequence[RunState], console: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for name in ("step", "of", "loss", "tokens/s", "left", "measured", "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            Text(run.path),
            Text(run.state, _STYLES.get(run.state, "")),
            f"{run.step:,}",
            "" if run.total_steps is None else f"{run.total_steps:,}",
            "" if run.loss is None else f"{run.loss:.4f}",
            "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
            "" if run.seconds_left is None else duration(run.seconds_left),
            _ago(run.measured_seconds_ago),
            _saved(run),
        )
    console.print(table)


def _saved(run: RunState) -> str:
    if run.saved_step is None:
        return "never"
    return f"{run.saved_step:,}, {_ago(run.saved_seconds_ago)}"


def _ago(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} ago"
