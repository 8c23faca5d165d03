"""What a checkpoint holds against what it should hold, in one line."""

from collections.abc import Collection, Mapping
from typing import Final

Shapes = Mapping[str, tuple[int, ...]]
_SHOWN: Final = 5


def check(expected: Shapes, found: Shapes, *, what: str, hint: str) -> None:
    """Refuses a checkpoint whose arrays are not the expected ones.

    Args:
        expected: shape of every array that must be there.
        found: shape of every array that is there.
        what: what was opened, and what it was taken for.
        hint: what to do about it.

    Raises:
        ValueError: names what is missing, what is extra and what has another shape.
    """
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    parts = [
        _listed("missing", expected.keys() - found.keys()),
        _listed("extra", found.keys() - expected.keys()),
        _listed("of another shape", wrong),
    ]
    problems = [part for part in parts if part]
    if problems:
        raise ValueError(f"{what}: {'; '.join(problems)}. {hint}")


def _listed(title: str, names: Collection[str]) -> str:
    """Returns the first few names and how many there are."""
    shown = sorted(names)[:_SHOWN]
    if not shown:
        return ""
    more = len(names) - len(shown)
    return f"{title}: {', '.join(shown)}" + (f" and {more} more" if more else "")
