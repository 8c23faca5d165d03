"""What the commands share: how a flag is added and checked, and how to speak."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ul2 import is_ours
from ul2.exit_codes import FAILURE, STORAGE, USAGE

_MAX_LINE: Final = 2000


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows defaults, where there is something to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", []):
            return action.help
        return super()._get_help_string(action)


def add_command(
    commands: Any, name: str, run: Callable[..., dict[str, Any]], text: str
) -> argparse.ArgumentParser:
    """Adds a command, its help and what it runs; every command has `--json`."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        allow_abbrev=False,
        formatter_class=_Help,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    return command


def add_gin_files(command: argparse.ArgumentParser) -> None:
    """Adds `--gin_file`; `--gin.NAME=VALUE` is then allowed, too."""
    command.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file; several compose, and later ones override",
    )


def add_import_module(command: argparse.ArgumentParser) -> None:
    """Adds `--import_module`, for tasks and span rules that are a user's own."""
    command.add_argument(
        "--import_module",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module that registers tasks or span rules; several allowed",
    )


def import_modules(options: argparse.Namespace) -> None:
    """Imports what `--import_module` names; gin files may name what is in it.

    Raises:
        ValueError: there is no such module.
    """
    for module in options.import_module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"--import_module={module}: {error}.") from None
        if hasattr(options, "gin_file"):
            from ul2 import gin_config

            gin_config.trust(module)


def say(line: str) -> None:
    """Says a line to a person: standard output is for results."""
    sys.stderr.write(line + "\n")


def explain(error: BaseException) -> tuple[str, int] | None:
    """Returns what a person is told of an error, and the exit code.

    None for an error that nobody foresaw: it keeps its traceback.
    """
    if isinstance(error, KeyboardInterrupt):
        return "stopped.", FAILURE
    if isinstance(error, FloatingPointError):
        return f"error: {error}", FAILURE
    if isinstance(error, ValueError) and is_ours(error):
        return f"error: {one_line(str(error))}", USAGE
    from ul2.training import failures

    if isinstance(error, failures.StorageError):
        return f"error: {error}", STORAGE
    report = failures.explain(error)
    return None if report is None else (f"error: {report}", FAILURE)


def one_line(text: str) -> str:
    """Returns a message that may quote a foreign file, safe to print.

    A name in such a file may hold line ends, and codes that a terminal obeys.
    """
    if text.isprintable() and len(text) <= _MAX_LINE:
        return text
    words = " ".join(text.split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
    return shown if len(shown) <= _MAX_LINE else f"{shown[:_MAX_LINE]} ..."


def make_console(options: argparse.Namespace) -> Any:
    """Returns where a person reads: standard output, unless a machine reads that."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 160
    return Console(stderr=options.json, width=wide)


def check_at_least(minimum: int, flag: str, value: int | None) -> None:
    """Refuses a number that is too small."""
    if value is not None and value < minimum:
        raise ValueError(f"--{flag}={value} must be at least {minimum}.")


def check_can_write(flag: str, path: str) -> None:
    """Refuses a place that nothing can be written to, before the work is done."""
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--{flag}={path}: {folder}: {error.strerror}.") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--{flag}={path}: no permission to write to {folder}.")
