"""The files of a run beside its checkpoints: what it is, and that it stays so."""

import os
import re
from pathlib import Path
from typing import Final

from ul2.training.checkpoints import CHECKPOINTS, checkpoints_dir, is_step_dir

CONFIG: Final = "config.gin"
TOKENIZER: Final = "tokenizer.model"
# What may change while a run goes on. Everything else is what the run is.
_MAY_CHANGE: Final = frozenset(
    {
        "MODEL_DIR",
        "DATA",
        "TOTAL_STEPS",
        "MESH",
        "MICROBATCHES",
        "EXAMPLES_PER_ROW",
        "LOG_EVERY_STEPS",
        "EVAL_EVERY_STEPS",
        "EVAL_BATCHES",
        "SAVE_EVERY_STEPS",
        "KEEP_CHECKPOINTS",
        "REMAT",
    }
)
_FREE_READERS: Final = ("recipe.Recipe.", "loop.TrainSettings.", "config.ModelConfig.")


def has_checkpoint(model_dir: str | Path) -> bool:
    """Returns whether a run has saved anything, so that it can go on."""
    # A step that is being written has a longer name.
    return any(path.name.isdigit() for path in checkpoints_dir(model_dir).glob("*"))


def tokenizer_path(path: str | Path) -> Path:
    """Returns where the tokenizer of a checkpoint is.

    Args:
        path: a run, its `checkpoints` folder, or one checkpoint.
    """
    return checkpoints_dir(path).parent / TOKENIZER


def check_same_run(model_dir: str | Path, config_text: str) -> None:
    """Refuses a directory that holds another run.

    Raises:
        ValueError: it holds checkpoints of a run with another config; the message
            names the differences.
    """
    kept = Path(model_dir) / CONFIG
    if not kept.is_file() or not has_checkpoint(model_dir):
        return
    old, new = _values(kept.read_text()), _values(config_text)
    changes = [
        f"{name}: {old.get(name, 'unset')} -> {new.get(name, 'unset')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changes:
        raise ValueError(
            f"{model_dir} holds a run with another config ({'; '.join(changes)}); "
            "choose another MODEL_DIR or set these back."
        )


def check_writable(model_dir: str | Path) -> None:
    """Refuses a directory that cannot be made or written to; makes none.

    Raises:
        ValueError: names what is in the way.
    """
    path = Path(model_dir).absolute()
    if path.name == CHECKPOINTS or is_step_dir(path):
        raise ValueError(
            f"{model_dir} is where a run keeps its checkpoints; choose another "
            "MODEL_DIR (to go on with that run: the folder above `checkpoints`)."
        )
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(
            f"cannot write to {model_dir}: {nearest} is no directory that you may "
            "write to; choose another MODEL_DIR."
        )


def keep(model_dir: str | Path, name: str, content: bytes) -> None:
    """Writes a file of the run, whole or not at all.

    Raises:
        ValueError: the directory cannot be written to.
    """
    model_dir = Path(model_dir)
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        partial = model_dir / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(model_dir / name)
    except OSError as error:
        raise ValueError(
            f"cannot write to {model_dir}: {error.strerror}; choose another MODEL_DIR."
        ) from None


def _values(config_text: str) -> dict[str, str]:
    """Returns what makes the run what it is: macro, or parameter, to value.

    What a macro may change it may change where the loop or the recipe read it; a
    schedule that reads TOTAL_STEPS is another schedule when that changes.
    """
    statements = _statements(config_text)
    values = {}
    for name, value in statements.items():
        macro = value.removeprefix("%")
        is_free = macro in _MAY_CHANGE and name.startswith(_FREE_READERS)
        if "." not in name or (value.startswith("%") and is_free):
            continue
        shown = macro if value.startswith("%") else name
        while value.startswith("%") and value[1:] in statements:
            value = statements[value[1:]]
        values[shown] = value
    return values


def _statements(config_text: str) -> dict[str, str]:
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
