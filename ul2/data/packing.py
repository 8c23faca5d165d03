"""Which examples share a packed row, planned once for all batches.

The lengths of every denoiser's examples are known before any text is read, but for
the S-denoiser's split, whose mirrored pairs add up to a constant. So the best filling
is a constant too: examples are dealt to rows until both sides, encoder and decoder,
are as even as they can be, and the rows are as wide as the fullest one.

A row needs about two rounds of the mixture to be full: at 512/512 an R-example fills
the encoder and a fifth of the decoder, an X-example both, and only together do they
leave nothing over.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.data.row_plan import RowWidths, widened
from ul2.data.stream import BatchPlan, MixtureBatches, Practice
from ul2.denoising.denoisers import Denoiser, Fit
from ul2.vocab import round_up

ARCHITECTURES: Final = ("encoder_decoder", "decoder_only")
# Row widths are a multiple of this: the sublanes of a TPU's vector unit.
_WIDTH_MULTIPLE: Final = 8
# And so is each part of a row, in bfloat16: of others, a TPU's compiler sums the whole
# and throws most of it away, instead of scattering the sum.
_PART_MULTIPLE: Final = 16
# Room for batches fuller than all that rows were planned with, where those are some.
_SLACK: Final = 1.02
# Batches that every layout is tried with, where there are more kinds of them.
_FEW: Final = 4
# Few examples per row divide over more devices, so they need not be the very fullest:
# this share of padding is good enough, or this much more than the least possible.
_GOOD_ENOUGH: Final = 0.025
_MARGIN: Final = 0.005
_MOST_EXAMPLES_PER_ROW: Final = 128


class Sizes(NamedTuple):
    """Columns the examples of one denoiser take on each side of a row."""

    single: tuple[int, ...]  # one example, at the longest
    pair: tuple[int, ...] | None  # two mirrored ones together

    @property
    def mean(self) -> float:
        """Columns an example takes on average, all sides together."""
        return sum(self.single) if self.pair is None else sum(self.pair) / 2


def sizes(denoiser: Denoiser, fit: Fit, mode_length: int, architecture: str) -> Sizes:
    """Returns the columns of one denoiser's examples.

    An encoder-decoder has two sides, inputs and targets; a decoder-only model reads
    both as one, on which the split of a suffix leaves no trace.
    """
    marks = fit.spans * denoiser.sentinels
    both = mode_length + fit.text + 2 * marks + 2
    if architecture == "decoder_only":
        return Sizes((both,), None)
    if denoiser.placement == "suffix":
        pair = fit.noise + 2 * (marks + 1)
        return Sizes((both - marks - 2, fit.targets), (2 * both - pair, pair))
    return Sizes((fit.inputs, fit.targets), None)


@dataclasses.dataclass(frozen=True)
class Packing:
    """The rows of a batch.

    Attributes:
        rows: rows per batch.
        examples_per_row: examples in each.
        widths: columns of a row on each side: (encoder, decoder) or (decoder,).
        views: longest example on each side.
        shards: parts that the rows divide into.
        padding_fraction: share of all columns that stay empty, on average.
    """

    rows: int
    examples_per_row: int
    widths: tuple[int, ...]
    views: tuple[int, ...]
    shards: int
    padding_fraction: float
    _sizes: tuple[Sizes, ...]
    _keep_pairs: bool
    # For batches that are not those that the rows were planned with.
    _measure: Callable[[tuple[Fit, ...]], tuple[Sizes, ...]] | None = None
    _width_multiple: int = _WIDTH_MULTIPLE

    def deal(self, composition: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns `[rows, examples_per_row]`: which examples stand in which row.

        Examples are numbered denoiser after denoiser, as `Stream.examples` lists
        them.
        """
        return _deal(
            self._sizes, tuple(composition.tolist()), self.rows, self._keep_pairs
        )[0]

    def deal_batch(self, plan: BatchPlan) -> tuple[NDArray[np.int64], RowWidths]:
        """Deals the examples of any batch, and says how wide its rows are.

        They are `widths`, but where a mixture that moves comes to a batch that is
        fuller than all that it was planned with.
        """
        if plan.fits is None or self._measure is None:
            return self.deal(plan.composition), RowWidths(self.widths, self.views)
        dealt, loads = _deal(
            self._measure(plan.fits),
            tuple(plan.composition.tolist()),
            self.rows,
            self._keep_pairs,
        )
        widths = [
            widened(width, int(needed), self._width_multiple)
            for width, needed in zip(self.widths, loads.max(axis=0), strict=True)
        ]
        return dealt, RowWidths(tuple(widths), self.views)


def pack(
    batches: MixtureBatches,
    architecture: str,
    *,
    shards: int = 1,
    column_shards: int = 1,
    examples_per_row: int | None = None,
) -> Packing:
    """Plans the rows of a mixture's batches.

    Args:
        batches: what will be packed; no text is needed for that.
        architecture: one of `ARCHITECTURES`.
        shards: the rows must divide into this many equal parts (devices along the
            batch axes, times microbatches).
        column_shards: the columns of a row must, into this many.
        examples_per_row: None takes the fewest that leave next to no padding.

    Raises:
        ValueError: the batch does not divide.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r} is not in {ARCHITECTURES}.")
    batch_size = batches.batch_size
    if batch_size % shards:
        raise ValueError(
            f"BATCH_SIZE={batch_size} does not divide over {shards} parts (devices "
            f"along the mesh's batch axes x microbatches); use a multiple of {shards}, "
            f"such as {round_up(batch_size, shards)}, or change MESH."
        )
    per_shard = batch_size // shards
    if examples_per_row is not None and (
        examples_per_row < 1 or per_shard % examples_per_row
    ):
        raise ValueError(
            f"EXAMPLES_PER_ROW={examples_per_row} does not divide the {per_shard} "
            f"examples of each of {shards} parts of BATCH_SIZE={batch_size}; use a "
            f"divisor of {per_shard}."
        )
    choices = [examples_per_row] if examples_per_row else _divisors(per_shard)
    multiple = _PART_MULTIPLE * column_shards if column_shards > 1 else _WIDTH_MULTIPLE
    practice = batches.practice()
    # Of many kinds of batches, a few say which layout is best.
    few = practice[:: -(-len(practice) // _FEW)]
    plan = functools.partial(_packing, batches, architecture, shards, multiple)
    packings = [
        plan(batch_size // choice, keep_pairs, few)
        for choice in choices
        for keep_pairs in (True, False)
    ]
    least = min(packing.padding_fraction for packing in packings)
    enough = max(_GOOD_ENOUGH, least + _MARGIN)
    best = min(
        (p for p in packings if p.padding_fraction <= enough),
        key=lambda p: (p.examples_per_row, p.padding_fraction),
    )
    return best if few == practice else plan(best.rows, best._keep_pairs, practice)


def _divisors(number: int) -> list[int]:
    return [
        divisor
        for divisor in range(1, min(number, _MOST_EXAMPLES_PER_ROW) + 1)
        if number % divisor == 0
    ]


def _packing(
    batches: MixtureBatches,
    architecture: str,
    shards: int,
    width_multiple: int,
    rows: int,
    keep_pairs: bool,
    practice: Sequence[Practice],
) -> Packing:
    measure = functools.partial(_measure, batches, architecture)
    longest = measure(batches.fits)
    loads, filled = [], []
    for fits, compositions in practice:
        measured = measure(fits)
        for counts in {tuple(row) for row in compositions.tolist()}:
            loads.append(_deal(measured, counts, rows, keep_pairs)[1])
        filled.append(compositions.mean(axis=0) @ [size.mean for size in measured])
    # Where there are too many kinds of batches to try them all.
    slack = _SLACK if len(practice) > 1 else 1
    fullest = np.max(loads, axis=(0, 1)) * slack
    widths = [round_up(math.ceil(width), width_multiple) for width in fullest]
    return Packing(
        rows=rows,
        examples_per_row=batches.batch_size // rows,
        widths=tuple(widths),
        views=tuple(np.max([size.single for size in longest], axis=0).tolist()),
        shards=shards,
        padding_fraction=float(1 - np.mean(filled) / (rows * sum(widths))),
        _sizes=longest,
        _keep_pairs=keep_pairs,
        _measure=measure,
        _width_multiple=width_multiple,
    )


def _measure(
    batches: MixtureBatches, architecture: str, fits: tuple[Fit, ...]
) -> tuple[Sizes, ...]:
    """Returns the columns of every denoiser's examples."""
    return tuple(
        sizes(denoiser, fit, len(batches.vocab.mode(denoiser.mode)), architecture)
        for denoiser, fit in zip(batches.mixture.denoisers, fits, strict=True)
    )


# Dealing a large batch takes milliseconds, and a period has at most one kind of batch
# per denoiser and one more.
@functools.lru_cache(maxsize=512)
def _deal(
    measured: tuple[Sizes, ...],
    composition: tuple[int, ...],
    rows: int,
    keep_pairs: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deals examples to rows, the largest first, each to the emptiest row it fits.

    Returns:
        `[rows, examples_per_row]` example numbers, and `[rows, sides]` loads.
    """
    units = _units(measured, composition, keep_pairs)
    even = np.maximum(np.sum([size for _, size in units], axis=0) / rows, 1)
    units.sort(key=lambda unit: -float((unit[1] / even).sum()))
    loads = np.zeros((rows, len(even)), np.int64)
    free = np.full(rows, sum(composition) // rows)
    dealt: list[list[int]] = [[] for _ in range(rows)]
    for members, size in units:
        fits = free >= len(members)
        if not fits.any():  # a pair, and no row has two places left
            return _deal(measured, composition, rows, False)
        weight = loads @ (size / even**2)
        row = int(np.argmin(np.where(fits, weight, np.inf)))
        dealt[row] += members
        loads[row] += size
        free[row] -= len(members)
    return np.array(dealt, np.int64), loads


def _units(
    measured: tuple[Sizes, ...], composition: tuple[int, ...], keep_pairs: bool
) -> list[tuple[tuple[int, ...], NDArray[np.int64]]]:
    """Returns what is dealt as one: (examples, columns). Mirrored pairs, if kept."""
    units = []
    first = 0
    for size, count in zip(measured, composition, strict=True):
        members = range(first, first + count)
        paired = 0
        if keep_pairs and size.pair is not None:
            paired = count // 2 * 2
            pair = np.array(size.pair)
            units += [(tuple(members[i : i + 2]), pair) for i in range(0, paired, 2)]
        units += [((member,), np.array(size.single)) for member in members[paired:]]
        first += count
    return units
