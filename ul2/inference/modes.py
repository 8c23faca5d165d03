"""Which modes a checkpoint knows, and what to say where a text does not fit them."""

from collections.abc import Mapping
from typing import Any, Final

from ul2.interop.checkpoint import Checkpoint
from ul2.interop.vocabulary import CONTRACT
from ul2.vocab import MODES

# Families of published models. UL2 was trained with modes; Flan-UL2 unlearned them.
_WITH_MODES: Final = ("ul2_",)
_WITHOUT_MODES: Final = ("flan_ul2_", "t5_", "flan_t5_", "mt5_", "umt5_")


def trained_modes(checkpoint: Checkpoint, objective: Any) -> tuple[str, ...] | None:
    """Returns the modes a checkpoint was trained with.

    Args:
        checkpoint: any.
        objective: what its contract says of its examples, as JSON values; None for a
            checkpoint that does not say.

    Returns:
        Some of R, S and X; none of them for a model that has never seen one; None if
        nobody knows.
    """
    if objective is not None:
        return modes_of(objective)
    preset = checkpoint.preset or ""
    if preset.startswith(_WITH_MODES):
        return MODES
    # What we exported may have the sizes of a T5 and still know the modes.
    is_theirs = not (checkpoint.path / CONTRACT).is_file()
    return () if is_theirs and preset.startswith(_WITHOUT_MODES) else None


def modes_of(objective: Any) -> tuple[str, ...] | None:
    """Returns the modes that the denoisers, or the tasks, of a run announce.

    {"tasks": [{"name": "boolq", "rate": 1, "mode": "S"}]}  ->  ("S",)
    """
    if not isinstance(objective, Mapping):
        return None
    rows = objective.get("tasks", objective.get("denoisers"))
    if not isinstance(rows, list | tuple):
        return None
    told = {row.get("mode") for row in rows if isinstance(row, Mapping)}
    return tuple(mode for mode in MODES if mode in told)


def misfit(
    trained: tuple[str, ...] | None, mode: str | None, *, knob: str = "--mode"
) -> str | None:
    """Returns a line about a mode that a checkpoint was not trained with, or None.

    Args:
        trained: the modes that it was trained with; None if unknown.
        mode: R, S, X or None.
        knob: what to set.
    """
    if trained is None or mode in trained:
        return None
    if mode is None:
        if not trained:
            return None
        return (
            f"the checkpoint was trained with modes {', '.join(trained)}, but none is "
            f"given; set {knob} ({', '.join(trained)})."
        )
    if trained:
        return (
            f"mode {mode} is given, but the checkpoint was trained with "
            f"{', '.join(trained)}; set {knob} to one of them."
        )
    return (
        f"mode {mode} is given, but the checkpoint was trained without modes; set "
        f"{knob} to none."
    )
