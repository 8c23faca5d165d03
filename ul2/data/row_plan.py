"""How the examples of tasks share packed rows: one shape, planned from the lengths.

Examples of a task differ in length, so the fullest row of a batch differs a little from
batch to batch; a shape of its own for each would be a program of its own for each.
So batches are dealt for practice, without reading a token, and the rows are as wide as
the fullest one that was seen. A batch that needs more, later, gets wider rows in large
steps: few programs, whatever comes.

    lengths  9 3 5 4 1 6     two rows of three:   9 4 1 | 6 5 3     14 columns each
"""

import dataclasses
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.vocab import round_up

# Row widths are a multiple of this: the sublanes of a TPU's vector unit.
_WIDTH_MULTIPLE: Final = 8
# Room for batches fuller than all that were dealt for practice.
_SLACK: Final = 1.02
# How much wider rows get where they are too narrow nevertheless.
_WIDEN: Final = 1.25
_MOST_EXAMPLES_PER_ROW: Final = 16
# This share of padding, or this much more than the least, is good enough: fewer
# examples per row divide over more devices.
_GOOD_ENOUGH: Final = 0.1
_MARGIN: Final = 0.02


class RowWidths(NamedTuple):
    """Columns of a row, and of the longest example, on each side."""

    widths: tuple[int, ...]
    views: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """The rows of a batch.

    Attributes:
        rows: rows per batch.
        examples_per_row: examples in each.
        widths: columns of a row on each side, of all but rare batches.
        views: longest example on each side.
        joined: whether inputs and targets are one side (decoder-only).
        padding_fraction: share of all columns that stayed empty when it was planned.
    """

    rows: int
    examples_per_row: int
    widths: tuple[int, ...]
    views: tuple[int, ...]
    joined: bool
    padding_fraction: float

    @property
    def batch_size(self) -> int:
        """Examples per batch."""
        return self.rows * self.examples_per_row

    def deal(self, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], RowWidths]:
        """Deals the examples of a batch to rows.

        Args:
            lengths: `[B, 2]` columns of each example's inputs and targets.

        Returns:
            `[rows, examples_per_row]` example numbers, and how wide the rows are.
        """
        dealt, loads = _deal(_sides(lengths, self.joined), self.rows)
        widths = [
            widened(width, int(needed))
            for width, needed in zip(self.widths, loads.max(axis=0), strict=True)
        ]
        return dealt, RowWidths(tuple(widths), self.views)


def plan_rows(
    batches: Iterable[NDArray[np.int64]],
    longest: NDArray[np.int64],
    *,
    joined: bool,
    shards: int,
    examples_per_row: int | None,
) -> RowPlan:
    """Plans the rows of batches from the lengths of some of them.

    Args:
        batches: `[B, 2]` columns of each example's inputs and targets.
        longest: of all examples there are, `[S]` columns on each side.
        joined: whether inputs and targets are one side.
        shards: the rows must divide into this many equal parts.
        examples_per_row: None takes the fewest that leave little padding.

    Raises:
        ValueError: the batch does not divide.
    """
    measured = [_sides(lengths, joined) for lengths in batches]
    batch_size = len(measured[0])
    if batch_size % shards:
        raise ValueError(
            f"BATCH_SIZE={batch_size} does not divide over {shards} parts (devices "
            f"along the mesh's batch axes x microbatches); use a multiple of {shards}, "
            f"such as {round_up(batch_size, shards)}, or change MESH."
        )
    per_shard = batch_size // shards
    choices = [
        count
        for count in range(1, min(per_shard, _MOST_EXAMPLES_PER_ROW) + 1)
        if per_shard % count == 0
    ]
    if examples_per_row is not None:
        if examples_per_row < 1 or per_shard % examples_per_row:
            raise ValueError(
                f"EXAMPLES_PER_ROW={examples_per_row} does not divide the {per_shard} "
                f"examples of each of {shards} parts of BATCH_SIZE={batch_size}; use a "
                f"divisor of {per_shard}."
            )
        choices = [examples_per_row]
    views = tuple(longest.tolist())
    plans = [_plan(measured, batch_size // count, views, joined) for count in choices]
    least = min(plan.padding_fraction for plan in plans)
    enough = max(_GOOD_ENOUGH, least + _MARGIN)
    return next(plan for plan in plans if plan.padding_fraction <= enough)


def _plan(
    measured: list[NDArray[np.int64]], rows: int, views: tuple[int, ...], joined: bool
) -> RowPlan:
    """Deals batches for practice."""
    loads = [_deal(lengths, rows)[1].max(axis=0) for lengths in measured]
    per_row = len(measured[0]) // rows
    # One example in a row is as wide as the longest there is: the attention then
    # finds it where it is.
    widths = [
        view if per_row == 1 else round_up(int(fullest * _SLACK), _WIDTH_MULTIPLE)
        for fullest, view in zip(np.max(loads, axis=0), views, strict=True)
    ]
    filled = np.mean([lengths.sum() for lengths in measured])
    return RowPlan(
        rows=rows,
        examples_per_row=per_row,
        widths=tuple(widths),
        views=views,
        joined=joined,
        padding_fraction=float(1 - filled / (rows * sum(widths))),
    )


def _sides(lengths: NDArray[np.int64], joined: bool) -> NDArray[np.int64]:
    """Returns `[B, S]`: the columns of each example on each side of a row."""
    return lengths.sum(axis=1, keepdims=True) if joined else lengths


def _deal(
    lengths: NDArray[np.int64], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deals examples to rows, the largest first, each to the emptiest row it fits.

    Returns:
        `[rows, examples_per_row]` example numbers, and `[rows, sides]` loads.
    """
    per_row = len(lengths) // rows
    if per_row == 1:
        return np.arange(rows)[:, None], lengths
    even = np.maximum(lengths.sum(axis=0) / rows, 1)
    sizes = lengths / even
    loads = np.zeros((rows, lengths.shape[1]))
    free = np.full(rows, per_row)
    dealt: list[list[int]] = [[] for _ in range(rows)]
    for example in np.argsort(-sizes.sum(axis=1), kind="stable").tolist():
        weight = np.where(free > 0, loads @ sizes[example], np.inf)
        row = int(np.argmin(weight))
        dealt[row].append(example)
        loads[row] += sizes[example]
        free[row] -= 1
    order = np.array(dealt, np.int64)
    return order, lengths[order].sum(axis=1)


def widened(width: int, needed: int, multiple: int = _WIDTH_MULTIPLE) -> int:
    """Returns the width, or the next larger one that is enough."""
    while width < needed:
        width = round_up(int(width * _WIDEN), multiple)
    return width
