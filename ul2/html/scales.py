"""Axes: from values to places in a drawing, and the round values worth a label."""

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

_NUM_TICKS: Final = 5
# Of large numbers on an axis; what is smaller is written out.
_UNITS: Final = ((1e9, "G"), (1e6, "M"), (1e4, "k"))
_SECONDS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


class Scale(NamedTuple):
    """One axis.

    Attributes:
        low: value at `start`.
        high: value at `end`; more than `low`.
        start: place of the lowest value.
        end: place of the highest.
        is_log: whether equal distances are equal ratios; both values are then > 0.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the place of a value."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = _NUM_TICKS) -> list[float]:
        """Returns about `count` round values on the axis."""
        if self.is_log and self.high / self.low >= 10:
            return self._log_ticks(count)
        step = nice_step(self.high - self.low, count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(n * step, 12) for n in range(first, last + 1)]

    def _log_ticks(self, count: int) -> list[float]:
        first, last = math.log10(self.low), math.log10(self.high)
        decades = range(math.floor(first), math.ceil(last) + 1)
        every = max(1, math.ceil(len(decades) / (count + 1)))
        digits = (
            (1, 2, 5) if len(decades) <= 2 else (1, 3) if len(decades) <= 3 else (1,)
        )
        values = [d * 10.0**n for n in decades if n % every == 0 for d in digits]
        return [
            v for v in values if self.low <= v * (1 + 1e-9) <= self.high * (1 + 2e-9)
        ]


def scale_of(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    is_log: bool = False,
    from_zero: bool = False,
) -> Scale:
    """Returns a scale that holds all finite values, with a little room.

    Args:
        values: what is shown.
        start: place of the lowest.
        end: place of the highest.
        is_log: see `Scale`.
        from_zero: let it start at 0.
    """
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not is_log)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if is_log:
        low, high = (low, high) if finite else (1.0, 10.0)
        room = max((high / low) ** 0.04, 1.02)
        return Scale(low / room, high * room, start, end, True)
    if from_zero:
        low = min(low, 0.0)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        spread = abs(high) * 0.1 or 1.0
        low, high = (low, high + spread) if from_zero else (low - spread, high + spread)
    room = (high - low) * 0.05
    return Scale(low if from_zero and not low else low - room, high + room, start, end)


def nice_step(extent: float, count: int) -> float:
    """Returns 1, 2 or 5 times a power of ten: about `count` of it make `extent`."""
    rough = extent / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def number(value: float, digits: int = 3) -> str:
    """Returns a number as a person reads it: 0.0125, 4.59, 81,234, 1.2 M.

    Args:
        value: any; one that is not finite is said so.
        digits: significant ones, of what is shown in short.
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    size = abs(value)
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e5, " k")):
        if size >= factor:
            factor = 1e3 if unit == " k" else factor
            return f"{value / factor:.{digits}g}{unit}"
    if value == int(value):
        return f"{int(value):,}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if size >= 1e-3 else f"{value:.1e}"


def tick_labels(values: Sequence[float], form: Callable[[float], str]) -> list[str]:
    """Returns labels of one axis; as exact as they need to be, and all in one unit."""
    if form is not number:
        return [form(value) for value in values]
    largest = max(map(abs, values), default=0.0)
    least, unit = next((one for one in _UNITS if largest >= one[0]), (1.0, ""))
    factor = 1e3 if unit == "k" else least
    for digits in range(1, 13):
        labels = [f"{v / factor:.{digits}g}" for v in values]
        told = [float(label) * factor for label in labels]
        if all(
            math.isclose(*pair, abs_tol=1e-15)
            for pair in zip(told, values, strict=True)
        ):
            break
    return [
        f"{_plain(label)} {unit}".strip() if float(label) else "0" for label in labels
    ]


def _plain(label: str) -> str:
    """Returns a number without an exponent, where that is short."""
    return f"{float(label):g}" if "e" in label else label


def percent(value: float) -> str:
    """Returns a share as a person reads it."""
    if not math.isfinite(value):
        return number(value)
    return f"{value * 100:.3g} %"


def data_size(value: float) -> str:
    """Returns bytes as a person reads them."""
    for factor, unit in (
        (2**40, "TiB"),
        (2**30, "GiB"),
        (2**20, "MiB"),
        (2**10, "KiB"),
    ):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B" if math.isfinite(value) else number(value)


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units: 93784 -> 1d 2h."""
    rest, parts = int(seconds), list[str]()
    for size, unit in _SECONDS:
        if rest >= size or (unit == "s" and not parts):
            parts.append(f"{rest // size}{unit}")
            rest %= size
        elif parts:
            break
    return " ".join(parts[:2])
