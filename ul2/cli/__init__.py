"""`ul2 COMMAND`: flags to calls of `launch`, and errors to exit codes.

Nothing heavy is imported before the flags are parsed, so `--help` answers at once.
Exit codes are those of `ul2.exit_codes`, whatever the command.
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
from ul2.cli import (
    check,
    completion,
    config,
    convert,
    infer,
    inspect,
    plan,
    report,
    runs,
    signals,
    tokenize,
    train,
)
from ul2.cli import eval as evaluate
from ul2.cli.command import explain, say
from ul2.cli.flags import Parser, take_gin_flags
from ul2.exit_codes import CLOSED_PIPE, DONE, RESTART, USAGE

_PACKAGE: Final = Path(__file__).resolve().parents[1]
# In the order in which a person meets them.
_COMMANDS: Final = (
    tokenize,
    train,
    check,
    config,
    runs,
    inspect,
    plan,
    report,
    infer,
    evaluate,
    convert,
    completion,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code.
    """
    if arguments is None:
        # This process is the command's alone, not a test's or a notebook's.
        signals.listen()
        try:
            code = _main(sys.argv[1:], is_alone=True)
            sys.stdout.flush()
        except BrokenPipeError:
            # `ul2 runs | head` has seen enough. Python would say so once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = CLOSED_PIPE
        signals.ignore()
        return code
    return _main(arguments)


def _main(arguments: Sequence[str], *, is_alone: bool = False) -> int:
    gin_flags, rest = take_gin_flags(arguments)
    options = _parser().parse_args(rest)
    run: Callable[[argparse.Namespace], dict[str, Any]] = options.run
    if gin_flags and not hasattr(options, "gin_file"):
        say(f"error: this command reads no --gin.{gin_flags[0][0]}.")
        return USAGE
    options.bindings = gin_flags
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _quiet_libraries()
    if is_alone:
        _log_plainly()
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
        return RESTART
    return USAGE if report.get("errors") else DONE


class _Said(logging.Handler):
    """Says what is logged as a command says the rest, above a live line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Says a record."""
        say(self.format(record))


def _log_plainly() -> None:
    """Lets what is logged be said without the names of libraries."""
    import absl.logging

    logger = absl.logging.get_absl_logger()
    logger.addHandler(_Said())
    logger.propagate = False


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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
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
