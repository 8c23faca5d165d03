"""What a page may name: flags, macros, files, tasks, presets, as they really are."""

import argparse
import functools
import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from ul2 import cli
from ul2.interop.presets import PRESETS
from ul2.tasks import registry

ROOT = Path(__file__).parents[2]


@functools.cache
def macros() -> frozenset[str]:
    """Returns every macro that a gin file sets or reads."""
    text = "\n".join(file.read_text() for file in (ROOT / "configs").rglob("*.gin"))
    code = re.sub(r"#.*", "", text)
    return frozenset(re.findall(r"(?m)(?:^|%)([A-Z][A-Z0-9_]+)\b", code))


@functools.cache
def flags() -> frozenset[str]:
    """Returns every flag of every command, and of every script."""
    parser = cli._parser()
    (commands,) = (
        action.choices
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    found = {
        flag
        for command in (parser, *commands.values())
        for action in command._actions
        for flag in action.option_strings
    }
    for folder in ("scripts", "benchmarks", "examples"):
        for file in (ROOT / folder).glob("*.*"):
            found |= set(re.findall(r"--[a-z][a-z0-9_-]+", file.read_text()))
    return frozenset(found)


def is_task(name: str) -> bool:
    """Returns whether there is such a task or mixture."""
    for module in ("ul2.tasks.code_names",):
        importlib.import_module(module)
    return name in registry.names() or name in registry.MIXTURES


def problems_of(
    options: argparse.Namespace, bindings: Sequence[tuple[str, str]]
) -> list[str]:
    """Returns what a parsed command names and nothing is called."""
    given = vars(options)
    problems = [
        f"there is no {name}"
        for name in given.get("gin_file", ())
        if name.startswith("configs/") and not (ROOT / name).is_file()
    ]
    problems += [f"no macro is called {n}" for n, _ in bindings if n not in macros()]
    tasks = given.get("task") or []
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    tasks += [value for name, value in bindings if name == "TASK"]
    if not given.get("import_module"):
        problems += [f"no task is called {name}" for name in tasks if not is_task(name)]
    preset = given.get("preset")
    if preset and preset not in PRESETS:
        problems.append(f"no preset is called {preset}")
    return problems
