"""`ul2 train`: a run, from its start or from where it stopped."""

import argparse
import json
from pathlib import Path
from typing import Any

from ul2.cli.command import (
    add_command,
    add_gin_files,
    add_import_module,
    import_modules,
    make_console,
    say,
)


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    command = add_command(commands, "train", _run, "Train, or go on with a run.")
    add_gin_files(command)
    add_import_module(command)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    import dataclasses

    from ul2 import inspection, launch

    import_modules(options)
    recipe = launch.read(options.gin_file, options.bindings)
    summary = launch.train(recipe)
    report = dataclasses.asdict(summary)
    report["evaluation"] = report["evaluation"] or _last_evaluation(recipe.model_dir)
    console = make_console(options)
    inspection.print_modes(summary.modes, console)
    say(f"{recipe.model_dir} is at step {summary.step}.")
    inspection.print_evaluation(report["evaluation"], console)
    if summary.best is not None:
        best = summary.best
        say(f"best {best['metric']}: {best['value']:.4g} at step {best['step']}.")
    return report


def _last_evaluation(model_dir: str) -> dict[str, Any]:
    """Returns what a finished run was last scored; training it again adds nothing."""
    file = Path(model_dir) / "eval.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return json.loads(lines[-1]) if lines else {}
