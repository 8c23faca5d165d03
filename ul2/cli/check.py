"""`ul2 check`: what a config will really do."""

import argparse
from typing import Any

from ul2.cli.command import add_command, add_gin_files, make_console


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "Say what a config will really do, and everything wrong with it."
    add_gin_files(add_command(commands, "check", _run, text))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ul2 import inspection, launch

    report = launch.check(options.gin_file, options.bindings)
    inspection.print_check(report, make_console(options))
    return report
