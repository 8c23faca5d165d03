"""Which of the names there are somebody may have meant."""

from collections.abc import Iterable
from typing import Final

_LEAST_RATIO: Final = 0.6
# A shorter name is a part of too many others.
_LEAST_PART: Final = 3


def nearest(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Returns the names that are most like another, the likeliest first.

    Capitals, `_`, `-` and `.` do not count; a part of a name will do.

        boolQ, ["glue_cola", "super_glue_boolq"]   ->   ["super_glue_boolq"]

    Args:
        name: what was typed.
        known: the names there are.
        count: how many to return, at most.
    """
    # Only who has made a mistake waits for this import.
    from difflib import SequenceMatcher

    typed, scores = _plain(name), []
    for one in sorted(set(known)):
        plain = _plain(one)
        score = SequenceMatcher(None, typed, plain).ratio()
        if len(typed) >= _LEAST_PART and typed in plain:
            score += 1
        if score >= _LEAST_RATIO:
            scores.append((-score, one))
    return [one for _, one in sorted(scores)[:count]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'NAME'?)`, or nothing where no name is like it."""
    near = nearest(name, known)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in "_-. ")
