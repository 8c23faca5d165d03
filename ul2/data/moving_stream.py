"""The stream of a mixture that moves: still example k from (seed, k), and no replay.

How many examples of a denoiser come before a batch is looked up (`data.quotas`), so
the tokens that come before it are, too; and where so many tokens are an epoch's, the
batches of an epoch are known, and how many texts of which length they take. These are
laid out along the split, each denoiser's as even as they go: text p of n_i of denoiser
i is in row r = ceil((p + 1) R / n_i) - 1 of R rows, and before it stand

    p texts of i,  floor((r + 1) n_j / R) of every j before i,  floor(r n_j / R) of
    every j behind

For a mixture that does not move that is what `data.stream` does, round after round. So
here, too, every token is read once per epoch, but for less than two batches at the end.
A text has one length for all steps; how much of it is noise is what moves.
"""

import bisect
import dataclasses
import functools
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.data.permutation import permute
from ul2.data.quotas import Quotas
from ul2.data.stream import ORDER, BatchPlan, MixtureBatches, Practice, Stream
from ul2.denoising.denoisers import Denoiser, Fit
from ul2.denoising.moving import MovingMixture

# Batches that rows are planned with: of all the way, and of its end.
_PRACTICE: Final = 24
_AT_END: Final = 8


class Epoch(NamedTuple):
    """The batches that read the split once."""

    first: NDArray[np.int64]  # [denoisers] examples of each before the epoch
    counts: NDArray[np.int64]  # [denoisers] examples of each in it
    rotation: int  # where in the split the first text starts
    keys: NDArray[np.uint64]  # of the permutations


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MovingBatches(MixtureBatches):
    """What is known of the batches of a mixture that moves before there is any text."""

    mixture: MovingMixture

    @functools.cached_property
    def quotas(self) -> Quotas:
        """How many examples of each denoiser are made, and when."""
        return Quotas(self.mixture, self.batch_size, tuple(self.order))

    def fits_at(self, batch: int) -> tuple[Fit, ...]:
        """Returns what the texts of a batch become."""
        return self.mixture.fits_at(batch, self.fits, self.vocab)

    def practice(self) -> list[Practice]:
        """Returns batches from every part of the way, and those at its turns.

        Any other may need a little more room than these.
        """
        last, knots = self.quotas.last, self.mixture.knots[:_PRACTICE]
        even = np.linspace(0, last, _PRACTICE).astype(np.int64).tolist()
        turns = [max(0, knot - 1) for knot in knots]
        found = []
        for batch in sorted({*even, *knots, *turns, *range(last, last + _AT_END)}):
            segment, index = self.quotas.find(batch)
            rows = self.quotas.segment(segment).compositions
            found.append(Practice(self.fits_at(batch), rows[index : index + 1]))
        return found


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MovingStream(MovingBatches, Stream):
    """The examples of one split under a mixture that moves, in order, for ever.

    Raises:
        ValueError: too few sentinels, nothing fits, or the split is too small for two
            batches.
    """

    def _check_text(self) -> None:
        """Refuses a split that is too small."""
        if self.epoch_tokens < self._batch_tokens:
            raise ValueError(
                f"split {self.split.name!r} has {self.split.num_tokens} tokens, but "
                f"two batches of this moving mixture take up to "
                f"{2 * self._batch_tokens} at BATCH_SIZE={self.batch_size}, "
                f"INPUTS_LENGTH={self.inputs_length}, "
                f"TARGETS_LENGTH={self.targets_length}; add text or lower one of these."
            )

    @functools.cached_property
    def _texts(self) -> NDArray[np.int64]:
        """Tokens that a text of each denoiser has."""
        return np.array([fit.text for fit in self.fits], np.int64)

    @functools.cached_property
    def _batch_tokens(self) -> int:
        """The most tokens of text that a batch takes."""
        return self.batch_size * int(self._texts.max())

    @functools.cached_property
    def epoch_tokens(self) -> int:
        """Tokens after which an epoch ends, with the batch that reaches them."""
        return self.split.num_tokens - self._batch_tokens

    @property
    def batches_per_epoch(self) -> float:
        """Batches until the text begins anew, the first time."""
        return float(self._first_batch(1))

    def plan(self, batch: int) -> BatchPlan:
        """Returns what batch number `batch` holds."""
        number, index = self.quotas.find(batch)
        segment = self.quotas.segment(number)
        rows = segment.compositions
        order = self._generator(ORDER, 0, number).permutation(len(rows))
        before = segment.first + rows[order[:index]].sum(axis=0)
        return BatchPlan(rows[order[index]], before, self.fits_at(batch))

    def denoisers_at(self, batch: int) -> tuple[Denoiser, ...]:
        """Returns what is done to the texts of a batch."""
        return self.mixture.denoisers_at(batch)

    def starts(self, index: int, plan: BatchPlan) -> NDArray[np.int64]:
        """Returns where in the split each text of denoiser `index` starts, `[C]`."""
        if not plan.composition[index]:
            return np.empty(0, np.int64)
        epoch = self._texts_of(int(plan.first @ self._texts) // self.epoch_tokens)
        count, rows = int(epoch.counts[index]), int(epoch.counts.max())
        uses = plan.first[index] - epoch.first[index]
        uses = uses + np.arange(plan.composition[index])
        places = permute(uses, count, epoch.keys[index])
        row = -(-(places + 1) * rows // count) - 1
        starts: NDArray[np.int64] = epoch.rotation + places * self._texts[index]
        for other, number in enumerate(epoch.counts):
            if other != index:
                texts = (row + (other < index)) * number // rows
                starts += texts * self._texts[other]
        starts %= self.split.num_tokens
        return starts

    @functools.lru_cache(maxsize=4)  # noqa: B019 (streams live as long as the run)
    def _texts_of(self, number: int) -> Epoch:
        """Returns how the texts of an epoch lie in the split."""
        first, last = (
            self.plan(self._first_batch(one)).first for one in (number, number + 1)
        )
        return Epoch(first, last - first, *self._epoch(number))

    def _first_batch(self, epoch: int) -> int:
        """Returns the first batch of an epoch: that before which its tokens stand."""
        tokens = epoch * self.epoch_tokens
        most = -(-tokens // (self.batch_size * int(self._texts.min())))
        return bisect.bisect_left(
            range(most),
            tokens,
            key=lambda batch: int(self.plan(batch).first @ self._texts),
        )
