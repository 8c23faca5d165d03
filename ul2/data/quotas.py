"""`Quotas`: how many examples of each denoiser a mixture that moves makes, and when.

The batches up to the last step at which anything moves are cut into at most 4,096
*segments* of equal length; up to as many steps, every batch is one. By the end of every
segment each denoiser has had a whole number of examples that is less than one off the
sum of its shares so far; within a segment the batches differ by at most one example
(`mixture.compositions`). Where nothing moves any more, segments are periods of the
mixture that it ends as, for ever.

    share of a       0    1/4   1/2   3/4      four batches of one example each,
    sum so far       0    1/4   3/4   3/2      of a or of b:
    examples of a    0    0     1     2        b b a a

Each example of a denoiser may be made from the moment that the sum passes the one
before it, and is due when the sum reaches it. Those that are due first go first; as the
sums are a timetable that works, though in fractions, this one works in whole examples
(earliest deadline first: Liu and Layland, 1973). It is made once, of a few thousand
numbers, when a stream is opened; then any batch is looked up.
"""

import functools
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.denoising.mixture import compositions
from ul2.denoising.moving import PARTS, MovingMixture

_MOST_SEGMENTS: Final = 4096
# Steps whose shares are computed at once.
_CHUNK: Final = 65_536


class Segment(NamedTuple):
    """Batches whose shares are exact together."""

    first: NDArray[np.int64]  # [denoisers] examples of each before the segment
    compositions: NDArray[np.int64]  # [batches, denoisers], before shuffling


class Quotas:
    """The segments of a mixture that moves.

    Args:
        mixture: the mixture.
        batch_size: examples per batch.
        order: indices of the denoisers, like ones side by side.
    """

    def __init__(
        self, mixture: MovingMixture, batch_size: int, order: tuple[int, ...]
    ) -> None:
        self._batch_size = batch_size
        self._order = order
        # Batches of a segment, and segments before the mixture stands still.
        self.length = max(1, -(-mixture.last // _MOST_SEGMENTS))
        self.count = -(-mixture.last // self.length)
        sums = self._sums(mixture)
        self._before = np.array(_whole(sums, self.length * batch_size), np.int64)
        self._end = compositions(mixture.end_counts, batch_size, order)

    def _sums(self, mixture: MovingMixture) -> NDArray[np.int64]:
        """Returns the sums of the shares before each segment, in parts of an example.

        Returns:
            `[segments + 1, denoisers]`.
        """
        sums = np.zeros((self.count + 1, len(mixture.denoisers)), np.int64)
        at_once = max(1, _CHUNK // self.length)
        for first in range(0, self.count, at_once):
            last = min(first + at_once, self.count)
            parts = mixture.parts(np.arange(first * self.length, last * self.length))
            parts = parts.reshape(last - first, self.length, -1).sum(axis=1)
            sums[first + 1 : last + 1] = parts * self._batch_size
        return np.cumsum(sums, axis=0)

    @property
    def last(self) -> int:
        """The first batch of the mixture that stands still."""
        return self.length * self.count

    def find(self, batch: int) -> tuple[int, int]:
        """Returns the segment that holds a batch, and which of its batches it is."""
        if batch < self.last:
            return divmod(batch, self.length)
        period, index = divmod(batch - self.last, len(self._end))
        return self.count + period, index

    @functools.lru_cache(maxsize=8)  # noqa: B019 (quotas live as long as the run)
    def segment(self, number: int) -> Segment:
        """Returns a segment."""
        if number >= self.count:
            periods = number - self.count
            first = self._before[-1] + periods * self._end.sum(axis=0)
            return Segment(first, self._end)
        first = self._before[number]
        counts = (self._before[number + 1] - first).tolist()
        return Segment(first, compositions(counts, self._batch_size, self._order))


def _whole(sums: NDArray[np.int64], per_segment: int) -> list[list[int]]:
    """Rounds sums of shares to whole examples, which never fall.

    Args:
        sums: `[segments + 1, denoisers]` in parts of an example; each row adds up to
            the examples before it.
        per_segment: examples of a segment.

    Returns:
        `[segments + 1, denoisers]`, each less than one off its sum.
    """
    floors, rests = np.divmod(sums, PARTS)
    # The segment by whose end the example that is begun must be made; none in sight
    # counts as behind the last.
    due = np.stack(
        [np.searchsorted(column, column + 1) for column in floors.T], axis=1
    ).tolist()
    whole = [[0] * sums.shape[1]]
    pairs = zip(floors[1:].tolist(), rests[1:].tolist(), due[1:], strict=True)
    for least, begun, deadlines in pairs:
        made = [max(a, b) for a, b in zip(whole[-1], least, strict=True)]
        free = per_segment - (sum(made) - sum(whole[-1]))
        waiting = [
            (deadlines[i], -begun[i], i)
            for i in range(len(made))
            if begun[i] and made[i] == least[i]
        ]
        assert 0 <= free <= len(waiting), (free, waiting)
        for _, _, index in sorted(waiting)[:free]:
            made[index] += 1
        whole.append(made)
    return whole
