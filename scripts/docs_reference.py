"""Writes the parts of the documentation that are read off the code; a hook of mkdocs.

`[[commands]]`, `[[gin_files]]`, `[[macros]]` and `[[tasks]]` in a page become the help
of every command, the gin files, their macros, and the tasks.
"""

import argparse
import collections
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_MACRO = re.compile(r"^([A-Z][A-Z0-9_]*) = (.*?)(?:  # (.*))?$", re.MULTILINE)


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Fills in what a page leaves to the code."""
    del context
    for name, make in _PARTS.items():
        mark = f"[[{name}]]"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def commands() -> str:
    """Returns a section for each command, with its flags."""
    from ul2 import cli

    parser = cli._parser()
    (found,) = (
        action
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    parts = []
    for name, command in found.choices.items():
        rows = [
            (_flag(action), _help(action, command))
            for action in command._actions
            if not isinstance(action, argparse._HelpAction)
        ]
        parts += [f"## ul2 {name}", command.description or "", _table("flag", rows)]
        if command.epilog:
            parts.append(command.epilog)
    return "\n\n".join(parts)


def _flag(action: argparse.Action) -> str:
    """Returns a flag as it is written, with what stands behind it."""
    name = ", ".join(action.option_strings)
    if action.nargs == 0:
        return f"`{name}`"
    choices = "{" + ",".join(map(str, action.choices or ())) + "}"
    value = action.metavar or (choices if action.choices else action.dest.upper())
    return f"`{name} {value}`".replace("` ", "`")


def _help(action: argparse.Action, command: argparse.ArgumentParser) -> str:
    """Returns what a flag does, with its default."""
    text = command._get_formatter()._expand_help(action) if action.help else ""
    return f"{text} (required)" if action.required else text


def _table(head: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head} | |", "|---|---|"]
    lines += [f"| {a.replace('|', chr(92) + '|')} | {_cell(b)} |" for a, b in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Returns text that a table can hold, and that markdown leaves alone."""
    text = re.sub(r"(?<![`\w])(-?-?[\w./]*[_*][\w./*]*)(?![`\w])", r"`\1`", text)
    for mark in "|[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("<", "&lt;")


def gin_files() -> str:
    """Returns every gin file, with the sentence at its top."""
    parts = []
    for folder in sorted((ROOT / "configs").iterdir()):
        rows = []
        for file in sorted(folder.glob("*.gin")):
            comment = re.match(r"(?:#.*\n)+", file.read_text())
            text = " ".join(re.sub(r"(?m)^# ?", "", comment[0]).split())
            text = re.split(r" (?:Required|Often overridden): ", text)[0]
            rows.append((f"`configs/{folder.name}/{file.name}`", text))
        parts += [f"### {folder.name}", _table("file", rows)]
    return "\n\n".join(parts)


def macros() -> str:
    """Returns every macro: its values, by file, and what is said of it."""
    values: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    said: dict[str, str] = {}
    read: set[str] = set()
    for file in sorted((ROOT / "configs").rglob("*.gin")):
        text = file.read_text()
        read |= set(re.findall(r"%([A-Z][A-Z0-9_]*)", re.sub(r"#.*", "", text)))
        for name, value, comment in _MACRO.findall(text):
            values[name].setdefault(value, []).append(file.stem)
            if comment:
                said.setdefault(name, comment)
    lines = ["| macro | values in | |", "|---|---|---|"]
    for name in sorted(read | values.keys()):
        known = values.get(name, {})
        shown = [
            f"`{value}` ({_some(files)})" for value, files in list(known.items())[:4]
        ]
        shown += ["..."] * (len(known) > 4)
        given = "; ".join(shown) or "no default: give it"
        lines.append(f"| `{name}` | {given} | {_cell(said.get(name, ''))} |")
    return "\n".join(lines)


def _some(files: list[str]) -> str:
    return ", ".join(files[:3]) + ", ..." * (len(files) > 3)


def tasks() -> str:
    """Returns the tasks by where they are defined, and the mixtures."""
    from ul2.tasks import registry

    lines = ["| task | inputs, targets | chosen by |", "|---|---|---|"]
    for name in registry.names():
        task = registry.find(name)
        lines.append(
            f"| `{name}` | {task.inputs_length}, {task.targets_length} tokens | "
            f"`{task.validation_metric}` |"
        )
    lines += ["", "| mixture | tasks |", "|---|---|"]
    lines += [
        f"| `{name}` | {', '.join(f'`{task}`' for task in parts)} |"
        for name, parts in registry.MIXTURES.items()
    ]
    return "\n".join(lines)


_PARTS = {
    "commands": commands,
    "gin_files": gin_files,
    "macros": macros,
    "tasks": tasks,
}
