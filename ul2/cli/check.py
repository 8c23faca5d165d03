"""`ul2 check`: what a config will really do."""

import argparse
from typing import Any

from ul2.cli.command import (
    add_command,
    add_gin_files,
    add_import_module,
    import_modules,
    make_console,
)


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "Say what a config will really do, and everything wrong with it."
    command = add_command(commands, "check", _run, text)
    add_gin_files(command)
    add_import_module(command)
    command.add_argument(
        "--verify_data",
        action="store_true",
        help="read all of the token store and compare it with its checksums",
    )


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ul2 import inspection, launch

    import_modules(options)
    report = launch.check(
        options.gin_file, options.bindings, verify_data=options.verify_data
    )
    inspection.print_check(report, make_console(options))
    return report
