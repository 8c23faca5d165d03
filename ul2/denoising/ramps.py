"""`Ramp`: a number as a function of the step; how rates and densities move.

    linear(0.3, 0.15, steps=100)               0.225 at step 50, 0.15 from step 100 on
    cosine(0.3, 0.15, steps=100)               the same ends, level at both
    stages([1, 0, 1], starts=[0, 500, 900])    changes at steps 500 and 900

A step is the number of a batch: update n of a run reads batch n, whatever it holds and
however its examples share rows. From its last step on a ramp stays where it is.

Masking less and less (30 % to 15 %, linear, cosine or at once) is what "Dynamic Masking
Rate Schedules for MLM Pretraining" (2305.15096) does; stages of different objectives
are SpacTor-T5's (2401.13160) and AntLM's (2412.03275).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_FORMS: Final = ("linear", "cosine", "stages")
_MOST_STEPS: Final = 10**8


@dataclasses.dataclass(frozen=True)
class Ramp:
    """Values at some steps, and what is between them.

    Attributes:
        form: `linear` or `cosine` between neighbouring values; `stages` keeps each
            until the next.
        steps: ascending.
        values: at these steps.
    """

    form: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(f"ramps.{self.form}: {problem}")

    def _problem(self) -> str | None:
        if self.form not in _FORMS:
            return f"not one of {list(_FORMS)}."
        whole = all(
            type(step) is int and 0 <= step < _MOST_STEPS for step in self.steps
        )
        ascending = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not (self.steps and whole and ascending):
            return (
                f"steps {list(self.steps)} must be whole numbers of 0..{_MOST_STEPS}, "
                "each larger than the one before; set steps and begin, or starts."
            )
        if len(self.steps) != len(self.values):
            return (
                f"{len(self.values)} values {list(self.values)} for {len(self.steps)} "
                f"starts {list(self.steps)}; give one for each."
            )
        bad = [value for value in self.values if not math.isfinite(value)]
        return f"values {bad} are not finite." if bad else None

    @property
    def last(self) -> int:
        """The step from which on nothing changes."""
        return self.steps[-1]

    @property
    def end(self) -> float:
        """The value from then on."""
        return self.values[-1]

    @property
    def lowest(self) -> float:
        """The least value at any step."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """The largest value at any step."""
        return max(self.values)

    def __call__(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the values at some steps, `[N]`."""
        knots, values = np.array(self.steps), np.array(self.values, np.float64)
        before = np.maximum(np.searchsorted(knots, steps, "right") - 1, 0)
        if self.form == "stages":
            return values[before]
        after = np.minimum(before + 1, len(knots) - 1)
        passed = np.maximum(steps - knots[before], 0)
        share = passed / np.maximum(knots[after] - knots[before], 1)
        # From the last value on there is no next one.
        share = np.minimum(share, 1.0)
        if self.form == "cosine":
            share = (1 - np.cos(np.pi * share)) / 2
        ramped: NDArray[np.float64]
        ramped = values[before] + (values[after] - values[before]) * share
        return ramped

    def to_json(self) -> dict[str, Any]:
        """Returns the ramp as JSON values."""
        return {
            "form": self.form,
            "steps": list(self.steps),
            "values": list(self.values),
        }


def constant(value: float) -> Ramp:
    """Returns `value` at every step."""
    return Ramp("stages", (0,), (float(value),))


def linear(start: float, end: float, *, steps: int, begin: int = 0) -> Ramp:
    """Returns a straight line from `start` to `end`.

    Args:
        start: value up to step `begin`.
        end: value from step `begin + steps` on.
        steps: how many steps it takes.
        begin: the step at which it begins.

    Raises:
        ValueError: `steps` is not positive, or `begin` is negative.
    """
    return Ramp("linear", (begin, begin + steps), (float(start), float(end)))


def cosine(start: float, end: float, *, steps: int, begin: int = 0) -> Ramp:
    """Returns half a cosine from `start` to `end`; as `linear`, but level at both."""
    return Ramp("cosine", (begin, begin + steps), (float(start), float(end)))


def stages(values: Sequence[float], starts: Sequence[int]) -> Ramp:
    """Returns each value from its start on, up to the next one's.

    Raises:
        ValueError: not one start for each value, not in order, or the first is not 0.
    """
    if not starts or starts[0] != 0:
        raise ValueError(
            f"ramps.stages: starts {list(starts)} must begin with 0, the first step."
        )
    return Ramp("stages", tuple(starts), tuple(map(float, values)))
