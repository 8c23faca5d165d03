"""`ul2 report`: the files of runs as a page."""

import argparse
from typing import Any

from ul2.cli.command import add_command, check_can_write, say


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "Draw runs, finished or not, as one page for a browser."
    command = add_command(commands, "report", _run, text)
    command.add_argument("runs", nargs="+", metavar="RUN", help="MODEL_DIR of a run")
    command.add_argument(
        "--out", default="report.html", metavar="FILE", help="where the page goes"
    )


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ul2.html import pages
    from ul2.report.report import make_report, summary
    from ul2.report.run_record import read_runs

    check_can_write("out", options.out)
    runs = read_runs(options.runs)
    pages.write(options.out, make_report(runs))
    say(f"wrote {options.out}")
    return {"out": options.out, "runs": [summary(run) for run in runs]}
