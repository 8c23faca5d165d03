"""`ul2 completion`: what a shell offers at TAB.

A shell's own script asks `ul2 completion words -- LINE` at every TAB, which imports
nothing heavy. argparse knows the flags; the macros and gin files are read off configs/.
"""

import argparse
import functools
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from ul2.cli.command import add_command

_WORDS: Final = "words"
_GIN: Final = "--gin."
_MACRO: Final = re.compile(r"^([A-Z][A-Z_0-9]*) =|%([A-Z][A-Z_0-9]*)", re.MULTILINE)
_MODES: Final = ("R", "S", "X", "none")
_PACKAGE: Final = Path(__file__).resolve().parents[1]

# In bash `=` ends a word, so what stands before it is there already.
_BASH: Final = """\
_ul2() {
  local line=${COMP_LINE:0:COMP_POINT} IFS=$'\\n'
  COMPREPLY=($(ul2 completion words -- "$line" 2>/dev/null))
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
  [[ ${line##* } == *=* && $COMP_WORDBREAKS == *=* ]] &&
    COMPREPLY=("${COMPREPLY[@]#*=}")
  return 0
}
complete -o default -F _ul2 ul2
"""
_ZSH: Final = """\
#compdef ul2
_ul2() {
  local -a found
  found=(${(f)"$(ul2 completion words -- "$LBUFFER" 2>/dev/null)"})
  (( $#found )) || { _files; return }
  compadd -Q -S '' -- ${(M)found:#*=}
  compadd -Q -- ${found:#*=}
}
compdef _ul2 ul2
"""
_FISH: Final = """\
complete -c ul2 -a '(ul2 completion words -- (commandline -cp) 2>/dev/null)'
"""
_SCRIPTS: Final = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "Print what makes a shell complete commands, flags, macros and gin files."
    command = add_command(commands, "completion", _run, text)
    command.epilog = (
        'bash and zsh: eval "$(ul2 completion bash)" in .bashrc or .zshrc; fish: '
        "ul2 completion fish > ~/.config/fish/completions/ul2.fish"
    )
    command.add_argument(
        "shell", choices=(*_SCRIPTS, _WORDS), metavar="SHELL", help="bash, zsh or fish"
    )
    command.add_argument("line", nargs="?", default="", help=argparse.SUPPRESS)
    command.set_defaults(parsers=commands.choices)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    if options.shell == _WORDS:
        found = words(options.line, options.parsers)
        text = "".join(f"{word}\n" for word in found)
    else:
        found, text = [], _SCRIPTS[options.shell]
    if not options.json:
        sys.stdout.write(text)
    return {"shell": options.shell, "words": found, "script": text}


def words(line: str, parsers: dict[str, argparse.ArgumentParser]) -> list[str]:
    """Returns what the last word of a line may become; nothing where that is a file.

    ul2 train --gin.MES   ->   --gin.MESH=

    Args:
        line: up to the cursor.
        parsers: of the commands, by name.
    """
    typed = _split(line)[1:] or [""]
    *before, last = typed
    if not before:
        return _begin_with(last, [*parsers, "--help", "--version"])
    parser = parsers.get(before[0])
    if parser is None:
        return []
    flag, equals, value = last.partition("=")
    if equals and flag.startswith("--"):
        return [f"{flag}={one}" for one in _begin_with(value, _values(parser, flag))]
    if found := _values(parser, before[-1]):
        return _begin_with(last, found)
    if not last.startswith("-"):
        return _begin_with(last, _positionals(parser))
    return _begin_with(last, _flags(parser, last))


def _flags(parser: argparse.ArgumentParser, typed: str) -> list[str]:
    """Returns the flags of a command; its macros once somebody wants one."""
    flags = list(parser._option_string_actions)
    if "--gin_file" not in flags:
        return flags
    macros = [f"{_GIN}{name}=" for name in _macros()]
    return [*flags, *(macros if typed.startswith(_GIN) else [_GIN])]


def _split(line: str) -> list[str]:
    """Returns the words of a line, the last of which may be empty or half a one."""
    try:
        found = shlex.split(line)
    except ValueError:  # a quote that is still open
        found = line.split()
    return [*found, ""] if not line or line[-1].isspace() else found


def _begin_with(typed: str, known: Iterable[str]) -> list[str]:
    return sorted({one for one in known if one.startswith(typed)})


def _values(parser: argparse.ArgumentParser, flag: str) -> list[str]:
    """Returns what a flag may be given, as far as that is a list."""
    if flag.startswith(_GIN):
        named = _MACRO_VALUES.get(flag.removeprefix(_GIN))
        return named() if named else []
    if flag in _FLAG_VALUES and flag in parser._option_string_actions:
        return _FLAG_VALUES[flag]()
    action = parser._option_string_actions.get(flag)
    return list(map(str, action.choices)) if action and action.choices else []


def _positionals(parser: argparse.ArgumentParser) -> list[str]:
    actions = parser._get_positional_actions()
    return [str(one) for action in actions for one in action.choices or ()]


@functools.cache
def _gin_files() -> dict[str, str]:
    """Returns the texts of the gin files in configs/, by name."""
    return {
        str(path.relative_to(root)): path.read_text(encoding="utf-8")
        for root in (_PACKAGE, _PACKAGE.parent)
        for path in (root / "configs").rglob("*.gin")
    }


def _macros() -> list[str]:
    """Returns the macros that gin files set or read."""
    found = (match for text in _gin_files().values() for match in _MACRO.findall(text))
    return [name for pair in found for name in pair if name]


def _tasks() -> list[str]:
    from ul2.tasks import registry

    return [*registry.names(), *registry.MIXTURES]


_FLAG_VALUES: Final[dict[str, Callable[[], list[str]]]] = {
    "--gin_file": lambda: list(_gin_files()),
    "--task": _tasks,
    "--mode": lambda: [*_MODES],
}
_MACRO_VALUES: Final[dict[str, Callable[[], list[str]]]] = {
    "TASK": _tasks,
    "MODE": lambda: [*_MODES, "auto"],
}
