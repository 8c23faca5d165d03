"""Example k is a function of (seed, k): nothing has to be replayed to find it.

Time is cut into *batches* of a fixed number of examples, text into *rounds*: one
example of each denoiser, as often as its rate says, takes a known number of tokens,
so round r of an epoch starts at r times that number.

    tokens   |r3   |r8   |s   |x3     |x8      |x64 ... |r3   |r8   |s   |...
             '------------ round 0 --------------------''------- round 1 ----

Which denoisers batch b holds is drawn from (seed, b) with exact shares over every
period. The i-th example of a denoiser is then sent to a place among all places of
that denoiser in the epoch by a permutation that is computed, not stored; every token
is read once per epoch, but for less than a round at the end. Each epoch starts its
rounds somewhere else, so a document meets other denoisers and other cuts the next time.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.data.permutation import NUM_KEYS, permute
from ul2.data.token_store import Split
from ul2.denoising.denoisers import Denoiser, Examples, Fit, denoise
from ul2.denoising.mixture import Mixture
from ul2.vocab import Vocab

# What a generator is for, so that no two draws share their bits.
ORDER, _EPOCH, _SPANS = range(3)


class BatchPlan(NamedTuple):
    """Which examples a batch holds, counted before any text is read."""

    composition: NDArray[np.int64]  # [denoisers] examples of each in the batch
    first: NDArray[np.int64]  # [denoisers] examples of each before the batch
    # What its texts become, where that differs from batch to batch.
    fits: tuple[Fit, ...] | None = None


class Practice(NamedTuple):
    """Batches to plan rows with."""

    fits: tuple[Fit, ...]
    compositions: NDArray[np.int64]  # [batches, denoisers]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MixtureBatches:
    """What is known of a mixture's batches before there is any text.

    Attributes:
        mixture: what is done to text.
        vocab: ids of sentinels, modes and EOS.
        inputs_length: longest inputs of an example, mode and EOS included.
        targets_length: longest targets of an example, EOS included.
        batch_size: examples per batch.

    Raises:
        ValueError: too few sentinels, or nothing fits.
    """

    mixture: Mixture
    vocab: Vocab
    inputs_length: int
    targets_length: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"BATCH_SIZE={self.batch_size} must be at least 1.")

    @functools.cached_property
    def fits(self) -> tuple[Fit, ...]:
        """How much text each denoiser takes."""
        return self.mixture.fit(self.inputs_length, self.targets_length, self.vocab)

    @functools.cached_property
    def compositions(self) -> NDArray[np.int64]:
        """`[batches, denoisers]`: the kinds of batch in one period, before shuffling.

        Denoisers of like target lengths stand side by side, so that each batch has
        almost the same number of long targets.
        """
        return self.mixture.compositions(self.batch_size, self.order)

    @property
    def order(self) -> list[int]:
        """Indices of the denoisers, those of like target lengths side by side."""
        order = sorted(range(len(self.fits)), key=lambda index: self.fits[index])
        order.sort(key=lambda index: self.fits[index].targets)
        return order

    def practice(self) -> list[Practice]:
        """Returns all kinds of batches that there are."""
        return [Practice(self.fits, self.compositions)]

    @functools.cached_property
    def round_tokens(self) -> int:
        """Tokens of text that one round of the mixture takes."""
        return sum(
            count * fit.text
            for count, fit in zip(self.mixture.counts, self.fits, strict=True)
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Stream(MixtureBatches):
    """The examples of one split under one mixture, in order, for ever.

    Attributes:
        split: where the text comes from.
        seed: with the batch number, the only source of chance.
        pieces: returns the characters of every id, for denoisers with a rule.

    Raises:
        ValueError: too few sentinels, nothing fits, or the split is too small for
            one round of the mixture.
    """

    split: Split
    seed: int
    pieces: Callable[[], Sequence[str]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"SEED={self.seed} must lie in [0, 2**32).")
        self._check_text()

    def _check_text(self) -> None:
        """Refuses a split that is too small."""
        if not self.rounds_per_epoch:
            raise ValueError(
                f"split {self.split.name!r} has {self.split.num_tokens} tokens, but "
                f"one round of the mixture takes {self.round_tokens} at "
                f"INPUTS_LENGTH={self.inputs_length}, "
                f"TARGETS_LENGTH={self.targets_length}; add text or lower the lengths."
            )

    @functools.cached_property
    def rounds_per_epoch(self) -> int:
        """Rounds of the mixture that the split holds."""
        return self.split.num_tokens // self.round_tokens

    @property
    def batches_per_epoch(self) -> float:
        """Batches until the text begins anew."""
        return self.rounds_per_epoch * self.mixture.round_size / self.batch_size

    def plan(self, batch: int) -> BatchPlan:
        """Returns what batch number `batch` holds."""
        period, index = divmod(batch, len(self.compositions))
        order = self._generator(ORDER, 0, period).permutation(len(self.compositions))
        before = self.compositions[order[:index]].sum(axis=0)
        before += period * self.compositions.sum(axis=0)
        return BatchPlan(self.compositions[order[index]], before)

    def examples(self, batch: int) -> tuple[Examples, ...]:
        """Returns the examples of a batch: element i holds those of denoiser i."""
        plan = self.plan(batch)
        return tuple(
            denoise(
                denoiser,
                self.split.take(self.starts(index, plan), self.fits[index].text),
                vocab=self.vocab,
                rng=self._generator(_SPANS, index, batch),
                max_spans=self.mixture.max_spans(self.vocab),
                pieces=self._pieces,
            )
            if plan.composition[index]
            else _NONE
            for index, denoiser in enumerate(self.denoisers_at(batch))
        )

    @functools.cached_property
    def _pieces(self) -> Sequence[str] | None:
        """Characters of every id, if a denoiser reads them."""
        has_rule = any(denoiser.has_rule for denoiser in self.mixture.denoisers)
        return self.pieces() if has_rule and self.pieces is not None else None

    def denoisers_at(self, batch: int) -> tuple[Denoiser, ...]:
        """Returns what is done to the texts of a batch."""
        del batch
        return self.mixture.denoisers

    def starts(self, index: int, plan: BatchPlan) -> NDArray[np.int64]:
        """Returns where in the split each text of denoiser `index` starts, `[C]`."""
        count = self.mixture.counts[index]
        places = count * self.rounds_per_epoch
        offset = sum(self.mixture.counts[i] * self.fits[i].text for i in range(index))
        uses = plan.first[index] + np.arange(plan.composition[index])
        epochs, uses = np.divmod(uses, places)
        starts: NDArray[np.int64] = np.empty_like(uses)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rotation, keys = self._epoch(epoch)
            turns, slots = np.divmod(permute(uses[here], places, keys[index]), count)
            starts[here] = (
                rotation
                + turns * self.round_tokens
                + offset
                + slots * self.fits[index].text
            )
        starts %= self.split.num_tokens
        return starts

    @functools.lru_cache(maxsize=4)  # noqa: B019 (streams live as long as the run)
    def _epoch(self, epoch: int) -> tuple[int, NDArray[np.uint64]]:
        """Returns where an epoch's first round starts, and its permutations' keys."""
        rng = self._generator(_EPOCH, 0, epoch)
        rotation = int(rng.integers(self.split.num_tokens))
        shape = (len(self.fits), NUM_KEYS)
        return rotation, rng.integers(2**64, size=shape, dtype=np.uint64)

    def _generator(self, purpose: int, index: int, number: int) -> np.random.Generator:
        """Returns the generator of (seed, purpose, denoiser, batch).

        Philox is counter-based: its low counter word runs, the others name the draw.
        """
        return np.random.Generator(
            np.random.Philox(key=self.seed, counter=[0, purpose, index, number])
        )


_NONE = Examples(
    np.empty((0, 0), np.int32),
    np.empty(0, np.int64),
    np.empty((0, 0), np.int32),
    np.empty(0, np.int64),
)
