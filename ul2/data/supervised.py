"""Batches of supervised tasks: batch k is a function of (seed, k).

Which tasks a batch holds is drawn with exact shares, as for denoisers; the i-th
example of a task is found by a permutation of its examples that is computed, not
stored, a fresh one every epoch. So resuming is one number, and nothing is replayed.

    stored     11 12 13        | 14 15                 inputs | targets
    example    [S] 11 12 13 <eos> | 14 15 <eos>        mode and EOS inside the lengths

What is longer than the lengths is cut at its end, before EOS. Room for the mode is
what the longest mode in question needs, so that trials under several modes are cut
alike.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ul2.batch import ALL_ROWS, Batch, HostRows
from ul2.data.example_store import SIDES, ExampleSplit
from ul2.data.features import to_batch
from ul2.data.permutation import NUM_KEYS, permute
from ul2.data.row_plan import RowPlan
from ul2.data.task_mixture import TaskRow, counts_of
from ul2.denoising.denoisers import Examples
from ul2.denoising.mixture import compositions
from ul2.vocab import Vocab

# Of the order of the examples: a position saved under another one means others.
VERSION: Final = 1
# What a generator is for, so that no two draws share their bits.
_ORDER, _EPOCH = range(2)
# Of the order in which held-out examples are taken, in every run the same.
_HELD_OUT_SEED: Final = 0


class Picked(NamedTuple):
    """Which examples a batch holds; the places behind the last one are empty."""

    tasks: NDArray[np.int64]  # [B] index of the task; -1 for an empty place
    rows: NDArray[np.int64]  # [B] which of the task's examples


class Order(Protocol):
    """Which examples each batch holds."""

    def pick(self, batch: int) -> Picked:
        """Returns those of one batch."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shuffled:
    """The examples of several tasks for ever, each epoch of each in a new order.

    Attributes:
        sizes: examples of each task.
        counts: examples of each task in one round.
        batch_size: examples per batch.
        seed: with the batch number, the only source of chance.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    batch_size: int
    seed: int

    @functools.cached_property
    def compositions(self) -> NDArray[np.int64]:
        """`[batches, tasks]`: the kinds of batch in one period, before shuffling."""
        return compositions(self.counts, self.batch_size)

    def pick(self, batch: int) -> Picked:
        """Returns the examples of one batch, task after task."""
        period, index = divmod(batch, len(self.compositions))
        order = self._generator(_ORDER, 0, period).permutation(len(self.compositions))
        composition = self.compositions[order[index]]
        first = self.compositions[order[:index]].sum(axis=0)
        first += period * self.compositions.sum(axis=0)
        rows = [
            self._rows(task, int(first[task]) + np.arange(count))
            for task, count in enumerate(composition.tolist())
        ]
        tasks = np.repeat(np.arange(len(composition)), composition)
        return Picked(tasks, np.concatenate(rows))

    def _rows(self, task: int, uses: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns which example each use of a task is."""
        epochs, places = np.divmod(uses, self.sizes[task])
        rows = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = permute(
                places[here], self.sizes[task], self._keys(task, epoch)
            )
        return rows

    def _keys(self, task: int, epoch: int) -> NDArray[np.uint64]:
        rng = self._generator(_EPOCH, task, epoch)
        return rng.integers(2**64, size=NUM_KEYS, dtype=np.uint64)

    def _generator(self, purpose: int, task: int, number: int) -> np.random.Generator:
        """Returns the generator of (seed, purpose, task, number)."""
        return np.random.Generator(
            np.random.Philox(key=self.seed, counter=[0, purpose, task, number])
        )


@dataclasses.dataclass(frozen=True, eq=False)
class EveryExample:
    """Every example of every task once, in an order that is always the same.

    Attributes:
        sizes: examples of each task.
        batch_size: places per batch; those of the last one may stay empty.
    """

    sizes: tuple[int, ...]
    batch_size: int

    def __len__(self) -> int:
        """Returns the number of batches."""
        return -(-sum(self.sizes) // self.batch_size)

    @functools.cached_property
    def _order(self) -> Picked:
        tasks = np.repeat(np.arange(len(self.sizes)), self.sizes)
        rows = np.concatenate([np.arange(size) for size in self.sizes])
        order = np.random.default_rng(_HELD_OUT_SEED).permutation(len(tasks))
        return Picked(tasks[order], rows[order])

    def pick(self, batch: int) -> Picked:
        """Returns the examples of one batch; after the last, the first follows."""
        first = batch % len(self) * self.batch_size
        tasks, rows = (side[first : first + self.batch_size] for side in self._order)
        missing = (0, self.batch_size - len(tasks))
        return Picked(
            np.pad(tasks, missing, constant_values=-1),
            np.pad(rows, missing, constant_values=0),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TaskExamples:
    """The examples of several tasks, with mode and EOS, cut to the lengths.

    Attributes:
        splits: of each task.
        rows: name, rate and mode of each task.
        vocab: how modes are written.
        lengths: longest (inputs, targets), mode and EOS included.
        mode_length: tokens kept free for a mode.

    Raises:
        ValueError: the lengths leave no room.
    """

    splits: tuple[ExampleSplit, ...]
    rows: tuple[TaskRow, ...]
    vocab: Vocab
    lengths: tuple[int, int]
    mode_length: int

    def __post_init__(self) -> None:
        for name, length, room in zip(SIDES, self.lengths, self.rooms, strict=True):
            if room < 1:
                raise ValueError(
                    f"{name.upper()}_LENGTH={length} leaves no room beside mode and "
                    f"EOS; set at least {length - room + 1}."
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Examples of each task."""
        return tuple(map(len, self.splits))

    @property
    def rooms(self) -> tuple[int, int]:
        """Tokens of inputs and of targets that fit."""
        return self.lengths[0] - self.mode_length - 1, self.lengths[1] - 1

    @functools.cached_property
    def planned_lengths(self) -> tuple[NDArray[np.int64], ...]:
        """`[N, 2]` of each task: columns kept for each example's inputs and targets."""
        return tuple(
            np.stack(
                [
                    np.minimum(split.lengths("inputs"), self.rooms[0])
                    + (self.mode_length + 1),
                    np.minimum(split.lengths("targets"), self.rooms[1]) + 1,
                ],
                axis=1,
            )
            for split in self.splits
        )

    def too_long(self, side: str) -> NDArray[np.int64]:
        """Returns how many examples of each task are cut on one side."""
        room = self.rooms[SIDES.index(side)]
        return np.array([(split.lengths(side) > room).sum() for split in self.splits])

    def plan(self, picked: Picked) -> NDArray[np.int64]:
        """Returns `[B, 2]`: the columns of picked examples; 0 for an empty place."""
        planned = np.zeros((len(picked.tasks), 2), np.int64)
        for task, lengths in enumerate(self.planned_lengths):
            here = picked.tasks == task
            planned[here] = lengths[picked.rows[here]]
        return planned

    def read(self, task: int, row: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Returns one example of a task as the model sees it."""
        split = self.splits[task]
        stored = int(split.rows[row])
        mode = np.array(self.vocab.mode(self.rows[task].mode), np.int32)
        eos = np.array([self.vocab.eos_id], np.int32)
        inputs = split.inputs[stored][: self.rooms[0]]
        targets = split.targets[stored][: self.rooms[1]]
        return (
            np.concatenate([mode, inputs, eos]),
            np.concatenate([targets, eos]),
        )

    def read_all(self, picked: Picked) -> tuple[Examples, ...]:
        """Returns picked examples by task; those of empty places have no tokens.

        Empty places are counted to the last task.
        """
        last = len(self.rows) - 1
        made = []
        for task in range(len(self.rows)):
            pairs = [self.read(task, r) for r in picked.rows[picked.tasks == task]]
            if task == last:
                empty = np.empty(0, np.int32)
                pairs += [(empty, empty)] * int((picked.tasks < 0).sum())
            made.append(
                Examples(
                    *_padded([i for i, _ in pairs]), *_padded([t for _, t in pairs])
                )
            )
        return tuple(made)


@dataclasses.dataclass(frozen=True, eq=False)
class SupervisedSource:
    """This host's rows of every batch of some tasks.

    Attributes:
        order: which examples a batch holds.
        tasks: the examples.
        plan: how they share rows.
        host: which rows to read.
        seed: of the order; saved with a position.
    """

    order: Order
    tasks: TaskExamples
    plan: RowPlan
    host: HostRows = ALL_ROWS
    seed: int = 0

    def __getitem__(self, batch: int) -> Batch:
        picked = self.order.pick(batch)
        dealt, shape = self.plan.deal(self.tasks.plan(picked))
        mine = self.host.of(dealt)
        # Only the host's own examples are read, in the order in which `read_all`
        # lists them: task after task, empty places last.
        tasks, rows = picked.tasks[mine.ravel()], picked.rows[mine.ravel()]
        key = np.where(tasks < 0, len(self.tasks.rows), tasks)
        order = np.argsort(key, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        examples = self.tasks.read_all(Picked(tasks[order], rows[order]))
        return to_batch(examples, place.reshape(mine.shape), shape, self.tasks.vocab)

    def identity(self) -> dict[str, Any]:
        """Returns the seed, the lengths, the tasks with their modes, and the text."""
        tasks = self.tasks
        return {
            "version": VERSION,
            "seed": self.seed,
            "batch_size": self.plan.batch_size,
            "inputs_length": tasks.lengths[0],
            "targets_length": tasks.lengths[1],
            "mode_length": tasks.mode_length,
            "tasks": [[row.name, row.mode] for row in tasks.rows],
            "rates": list(counts_of(tasks.rows)),
            "examples": list(tasks.sizes),
            "text": [split.fingerprint for split in tasks.splits],
        }


def _padded(
    rows: Sequence[NDArray[np.int32]],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Returns rows of tokens as one matrix, and their lengths."""
    lengths = np.array([len(row) for row in rows], np.int64)
    tokens = np.zeros((len(rows), int(lengths.max(initial=0))), np.int32)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = row
    return tokens, lengths
