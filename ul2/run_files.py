"""What a run's files are called, and how they are read without training anything.

config.gin        what the run is, every value that was used
metrics.jsonl     a measurement every LOG_EVERY_STEPS updates
eval.jsonl        held-out scores every EVAL_EVERY_STEPS
events.jsonl      what happened to updates: skip, spike, rollback, stop
history.jsonl     starts, saves, ends
best.json         the best evaluation, where BEST_METRIC chooses
checkpoints/1000/ a checkpoint: 1,000 updates done
.lock             who works in it, while somebody does
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ul2 import json_files

CONFIG: Final = "config.gin"
METRICS: Final = "metrics.jsonl"
EVALUATIONS: Final = "eval.jsonl"
EVENTS: Final = "events.jsonl"
HISTORY: Final = "history.jsonl"
BEST: Final = "best.json"
CHECKPOINTS: Final = "checkpoints"
LOCK: Final = ".lock"
_MAX_CONFIG_BYTES: Final = 2**24
_MAX_LINE_BYTES: Final = 2**20


def read_measurements(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Yields step, line and content of every measurement in a file of JSON lines.

    Lines that are none are left out: a kill leaves half a one, a disk worse.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        while line := lines.readline(_MAX_LINE_BYTES):
            measurement = json_files.parse_line(line) if line.endswith(b"}\n") else None
            step = measurement and measurement.get("step")
            if measurement is not None and type(step) is int:
                yield step, line, measurement


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps in a folder of checkpoints, in order; [] where there is none.

    Raises:
        OSError: the folder cannot be read.
    """
    names = os.listdir(folder) if folder.is_dir() else ()
    # What is being written or removed has a longer name.
    return sorted(int(name) for name in names if name.isdecimal())


def read_config(file: Path, *, errors: str = "strict") -> str:
    """Returns the text of a run's config.

    Args:
        file: of the config.
        errors: what to do about bytes that are not UTF-8, as of `open`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or larger than such files are.
    """
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError("too large")
    return file.read_text(encoding="utf-8", errors=errors)


def statements(config_text: str) -> dict[str, str]:
    """Returns what each name is bound to; values may go on over several lines."""
    found: dict[str, str] = {}
    name = None
    for line in config_text.splitlines():
        if match := re.match(r"([\w./]+) =(.*)", line):
            name = match[1]
            found[name] = match[2].strip()
        elif name and line.startswith(" "):
            found[name] += " " + line.strip()
    return {name: value.replace("\\ ", "") for name, value in found.items()}


def values(statements: Mapping[str, str]) -> dict[str, str]:
    """Returns the statements with the values of macros in their place."""
    return {name: _value(name, statements) for name in statements}


def total_steps(statements: Mapping[str, str]) -> int | None:
    """Returns the updates that were asked for; None where a config does not say."""
    value = _value("loop.TrainSettings.total_steps", statements)
    return int(value) if re.fullmatch(r"[0-9]{1,15}", value) else None


def _value(name: str, statements: Mapping[str, str]) -> str:
    """Returns what a name is bound to, by however many macros; "" if to nothing."""
    value = statements.get(name, "")
    # Not for ever, where a damaged file has a macro that is itself.
    for _ in statements:
        value = statements.get(value[1:], value) if value[:1] == "%" else value
    return value
