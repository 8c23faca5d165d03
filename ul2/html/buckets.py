"""Long series made short: every bucket keeps its lowest, its highest and its mean."""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple


class Bucket(NamedTuple):
    """Neighbouring values of a series.

    Attributes:
        first: x of the first.
        last: x of the last.
        low: the lowest finite value; NaN where there is none.
        high: the highest.
        mean: of the finite ones.
        lacking: how many were not finite.
    """

    first: float
    last: float
    low: float
    high: float
    mean: float
    lacking: int

    @property
    def middle(self) -> float:
        """The x at which it is drawn."""
        return (self.first + self.last) / 2


def bucketed(x: Sequence[float], y: Sequence[float], most: int) -> list[Bucket]:
    """Returns at most `most` buckets, equally wide in x; of a short series, each value.

    A spike of one value in a million is its bucket's `high`: nothing is left out.

    Args:
        x: rising.
        y: a value of each; NaN and infinities are allowed.
        most: buckets, at least 1.
    """
    if not x:
        return []
    if len(x) <= most:
        cuts = list(range(len(x) + 1))
    else:
        width = (x[-1] - x[0]) / most
        inner = (bisect.bisect_left(x, x[0] + n * width) for n in range(1, most))
        cuts = sorted({0, *inner, len(x)})
    return [_bucket(x, y, begin, end) for begin, end in itertools.pairwise(cuts)]


def _bucket(x: Sequence[float], y: Sequence[float], begin: int, end: int) -> Bucket:
    finite = [value for value in y[begin:end] if math.isfinite(value)]
    lacking = end - begin - len(finite)
    if not finite:
        nan = math.nan
        return Bucket(x[begin], x[end - 1], nan, nan, nan, lacking)
    mean = math.fsum(finite) / len(finite)
    return Bucket(x[begin], x[end - 1], min(finite), max(finite), mean, lacking)
