"""How a command line is read: argparse, which says what is wrong in one line.

`--gin.NAME=VALUE` is an open set of flags, which argparse does not know; it is taken
out before. Whoever comes from T5X, or forgets `gin.`, is told the flag of ul2.
"""

import argparse
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from ul2 import t5x_names
from ul2.cli.command import say
from ul2.exit_codes import USAGE
from ul2.spelling import did_you_mean

_GIN_FLAG: Final = "--gin."
_CHOICE: Final = re.compile(
    r"invalid choice: '(?P<given>.*)' \(choose from (?P<all>.*)\)$"
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest name."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Reads the flags of this parser; refuses others where a command is known.

        A command's own parser knows the flags that may have been meant.
        """
        options, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            self.error(self._unknown(unknown[0]))
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line, and exit code 2."""
        if found := _CHOICE.search(message):
            known = re.findall(r"[^\s',]+", found["all"])
            message = self._no_choice(message[: found.start()], found["given"], known)
        say(f"error: {message} (see {self.prog} --help).")
        raise SystemExit(USAGE)

    def _no_choice(self, where: str, given: str, known: Sequence[str]) -> str:
        """Says that something is none of what there is."""
        near = did_you_mean(given, known)
        if near and self._subparsers is not None:
            return f"{self.prog} has no command {given!r}{near}"
        return f"{where}{given!r} is not one of {', '.join(known)}{near}"

    def _unknown(self, flag: str) -> str:
        """Says that there is no such flag, and what to write instead.

        --SEED=3   ->   ul2 train has no --SEED: write --gin.SEED=3
        """
        name, equals, value = flag.partition("=")
        name = name.lstrip("-")
        theirs = t5x_names.instead_of_flag(name)
        macro = name.removeprefix("gin_")
        if theirs is not None:
            hint = f"; here it is {theirs}"
        elif macro.isupper():
            hint = f": write {_GIN_FLAG}{macro}={value if equals else 'VALUE'}"
        else:
            hint = did_you_mean(f"--{name}", self._option_string_actions)
        what = f"--{name}" if flag.startswith("-") else repr(flag)
        return f"{self.prog} has no {what}{hint}"


def take_gin_flags(
    arguments: Sequence[str],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Takes `--gin.NAME=VALUE` out.

    --gin.MESH=data=2,fsdp=4 --json   ->   [(MESH, data=2,fsdp=4)], [--json]
    """
    taken, rest = [], []
    for argument in arguments:
        name, equals, value = argument.removeprefix(_GIN_FLAG).partition("=")
        if not argument.startswith(_GIN_FLAG):
            rest.append(argument)
        elif not equals or not name:
            say(f"error: {argument}: write {_GIN_FLAG}{name or 'NAME'}=VALUE.")
            raise SystemExit(USAGE)
        else:
            taken.append((name, value))
    return taken, rest
