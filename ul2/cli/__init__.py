"""`ul2 COMMAND`: flags to calls of `launch`, and errors to exit codes.

Nothing heavy is imported before the flags are parsed, so `--help` answers at once.
Exit codes: 0 done, 2 the input is wrong (one line says how), 75 stopped before the end
through no fault of its own (a signal, a lost process, a stall: the same command goes on
from the last checkpoint), 74 nothing could be saved for too long, 1 anything else.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ul2 import __version__
from ul2.cli import check, convert, infer, inspect, plan, signals, tokenize, train
from ul2.cli import eval as evaluate
from ul2.cli.command import explain, say
from ul2.sharding.processes import EXIT_RESTART

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_GIN_FLAG: Final = "--gin."
# In the order in which a person meets them.
_COMMANDS: Final = (
    tokenize,
    train,
    check,
    inspect,
    plan,
    infer,
    evaluate,
    convert,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code.
    """
    if arguments is None:
        # This process is the command's alone, not a test's or a notebook's.
        signals.listen()
        code = _main(sys.argv[1:])
        signals.ignore()
        return code
    return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    gin_flags, rest = _take_gin_flags(arguments)
    options = _parser().parse_args(rest)
    run: Callable[[argparse.Namespace], dict[str, Any]] = options.run
    if gin_flags and not hasattr(options, "gin_file"):
        say(f"error: this command reads no --gin.{gin_flags[0][0]}.")
        return 2
    options.bindings = gin_flags
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _quiet_libraries()
    if options.run is not train.run:  # It may fork first.
        signals.listen_while_compiling()
    try:
        report = run(options)
    except BaseException as error:
        explained = explain(error)
        if explained is None:
            raise
        line, code = explained
        say(line)
        return code
    if options.json:
        sys.stdout.write(json.dumps(report, allow_nan=False) + "\n")
    if report.get("preempted"):
        say("stopped before the end; the same command goes on from here.")
        return EXIT_RESTART
    return 2 if report.get("errors") else 0


def _quiet_libraries() -> None:
    """Keeps the warnings of libraries off the terminal, but not ours or errors."""
    # absl's own logger knows who called it; it is made when absl is imported.
    import absl.logging

    def is_worth_reading(record: logging.LogRecord) -> bool:
        ours = Path(record.pathname).resolve().is_relative_to(_PACKAGE)
        # orbax shows every error that it raises as well, with its stack.
        is_shown_twice = "orbax" in record.pathname and record.exc_info is not None
        return ours or (record.levelno >= logging.ERROR and not is_shown_twice)

    absl.logging.get_absl_logger().addFilter(is_worth_reading)


def _take_gin_flags(
    arguments: Sequence[str],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Takes `--gin.NAME=VALUE` out: argparse knows no open set of flags.

    --gin.MESH=data=2,fsdp=4 --json   ->   [(MESH, data=2,fsdp=4)], [--json]
    """
    taken, rest = [], []
    for argument in arguments:
        name, equals, value = argument.removeprefix(_GIN_FLAG).partition("=")
        if not argument.startswith(_GIN_FLAG):
            rest.append(argument)
        elif not equals or not name:
            say(f"error: {argument}: write --gin.NAME=VALUE.")
            raise SystemExit(2)
        else:
            taken.append((name, value))
    return taken, rest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ul2",
        description="Mixture-of-Denoisers pre-training (UL2) in JAX.",
        epilog="--gin.NAME=VALUE sets a macro of the gin files; no quoting is needed.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ul2 {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser
