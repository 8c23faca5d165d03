"""`TaskData`: the examples of supervised tasks, as a run's data."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from ul2.batch import Batch
from ul2.data.example_store import SIDES, ExampleSplit
from ul2.data.row_plan import RowPlan, plan_rows
from ul2.data.run_data import Example, Layout, Measured, RunData
from ul2.data.supervised import (
    EveryExample,
    Order,
    Shuffled,
    SupervisedSource,
    TaskExamples,
)
from ul2.data.task_mixture import AUTO, NO_MODE, TaskRow, counts_of, with_mode
from ul2.vocab import MODES, Vocab

# Examples that are dealt to rows for practice.
_PRACTICE_EXAMPLES: Final = 4096
_NOTEWORTHY_TRUNCATION: Final = 0.01
_SPLITS: Final = ("train", "held_out")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TaskData:
    """Tokenized tasks, and how batches of them are laid out.

    Attributes:
        rows: name, rate and mode of each task; one of mode 'auto' makes no batches
            until `in_mode` has said which.
        train: examples of each task.
        held_out: examples of each task that are evaluated on; None for no evaluation.
        vocab: how modes are written.
        tokenizer: what made the ids.
        layout: of the batches.
        on_long: `truncate` or `refuse`.
        mode_length: tokens kept free for a mode; None for what the modes of `rows`
            need, 'auto' standing for any.
    """

    rows: tuple[TaskRow, ...]
    train: tuple[ExampleSplit, ...]
    held_out: tuple[ExampleSplit, ...] | None
    vocab: Vocab
    tokenizer: bytes
    layout: Layout
    on_long: str = "truncate"
    mode_length: int | None = None

    def __post_init__(self) -> None:
        if self.layout.batch_size < 1:
            raise ValueError(f"BATCH_SIZE={self.layout.batch_size} must be at least 1.")
        if not 0 <= self.layout.seed < 2**32:
            raise ValueError(f"SEED={self.layout.seed} must lie in [0, 2**32).")
        if self.mode_length is None:
            object.__setattr__(self, "mode_length", self._longest_mode())
        if self.on_long == "refuse":
            self._refuse_long()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(row.name for row in self.rows)

    def candidates(self) -> Mapping[str, RunData]:
        """Returns the data in R, S, X and no mode, where 'auto' stands for one."""
        if all(row.mode != AUTO for row in self.rows):
            return {}
        return {mode or NO_MODE: self.in_mode(mode) for mode in (*MODES, None)}

    def in_mode(self, mode: str | None) -> "TaskData":
        """Returns the same batches, those of mode 'auto' in this one.

        Room for the mode stays what any of them needs, so all are cut alike.
        """
        return dataclasses.replace(self, rows=with_mode(self.rows, mode))

    def to_json(self) -> Any:
        """Returns the tasks with their rates and modes."""
        return {"tasks": [dataclasses.asdict(row) for row in self.rows]}

    def source(self, split: str) -> SupervisedSource:
        """Returns this host's rows of every batch of a split.

        Raises:
            ValueError: there is no such split, or the batch does not divide.
        """
        order = self._order(split)
        tasks = self._tasks(split)
        seed = self.layout.seed if split == "train" else 0
        plan = self._plan(split)
        self.layout.host.check(plan.rows)
        return SupervisedSource(order, tasks, plan, self.layout.host, seed)

    def held_out_batches(
        self, count: int | None
    ) -> Callable[[], Iterator[Batch]] | None:
        """Returns a function that makes the same held-out batches each time."""
        if count is not None and count < 0:
            raise ValueError(f"EVAL_BATCHES={count} must be at least 0, or None.")
        if count == 0 or self.held_out is None:
            return None
        source = self.source("held_out")
        every = len(EveryExample(self._tasks("held_out").sizes, self.layout.batch_size))
        number = every if count is None else min(count, every)
        return lambda: (source[index] for index in range(number))

    def measure(self) -> Measured:
        """Returns what the batches hold: examples, lengths, what is cut, padding."""
        examples, plan = self._tasks("train"), self._plan("train")
        counts = counts_of(self.rows)
        # The epoch of a task is over when each of its examples has been seen.
        per_batch = np.array(counts) / sum(counts) * self.layout.batch_size
        cut = {side: examples.too_long(side) for side in SIDES}
        rows = []
        for index, row in enumerate(self.rows):
            split = self.train[index]
            held_out = len(self.held_out[index]) if self.held_out else 0
            measured: dict[str, Any] = {
                **dataclasses.asdict(row),
                "share": counts[index] / sum(counts),
                "examples": len(split),
                "held_out_examples": held_out,
                "batches_per_epoch": float(len(split) / per_batch[index]),
            }
            for side in SIDES:
                lengths = split.lengths(side)
                measured[f"mean_{side}"] = float(lengths.mean())
                measured[f"longest_{side}"] = int(lengths.max())
                measured[f"truncated_{side}"] = int(cut[side][index])
            rows.append(measured)
        report = {
            "tasks": rows,
            "padding_fraction": plan.padding_fraction,
            "batch_size": self.layout.batch_size,
            "rows": plan.rows,
            "examples_per_row": plan.examples_per_row,
            "row_lengths": list(plan.widths),
            "batches_per_epoch": float(max(r["batches_per_epoch"] for r in rows)),
            "warnings": self.warnings(),
        }
        return Measured(report, {})

    def declared(self, split: str, step: int) -> list[dict[str, Any]]:
        """Returns the share of each task, the same at every step."""
        del split, step
        counts = counts_of(self.rows)
        return [
            {"name": row.name, "mode": row.mode, "share": count / sum(counts)}
            for row, count in zip(self.rows, counts, strict=True)
        ]

    def verify(self) -> None:
        """Does nothing: a store of examples is compared whenever it is opened."""

    def warnings(self) -> list[str]:
        """Returns a line for every task of which much is cut."""
        lines = []
        for side in SIDES:
            longest = self.layout.inputs_length, self.layout.targets_length
            for index, cut in enumerate(self._tasks("train").too_long(side).tolist()):
                split = self.train[index]
                if cut > _NOTEWORTHY_TRUNCATION * len(split):
                    lines.append(
                        f"{cut} of {len(split)} {side} of {split.task} are cut at "
                        f"{side.upper()}_LENGTH={longest[SIDES.index(side)]}; the "
                        f"longest has {int(split.lengths(side).max())} tokens"
                    )
        return lines

    def examples(self, split: str, batch: int) -> Iterator[Example]:
        """Yields the examples of a batch."""
        picked = self._order(split).pick(batch)
        tasks = self._tasks(split)
        first = batch * self.layout.batch_size
        for place, (task, row) in enumerate(
            zip(picked.tasks.tolist(), picked.rows.tolist(), strict=True)
        ):
            if task < 0:
                continue
            inputs, targets = tasks.read(task, row)
            of = tasks.splits[task]
            yield Example(
                number=first + place,
                denoiser=self.rows[task].name,
                mode=self.rows[task].mode,
                source=f"{of.split}:{int(of.rows[row])}",
                inputs=inputs,
                targets=targets,
            )

    def _longest_mode(self) -> int:
        """Returns the most tokens that a mode in question takes."""
        modes = {row.mode for row in self.rows}
        if AUTO in modes:
            modes = (modes - {AUTO}) | set(MODES)
        return max(len(self.vocab.mode(mode)) for mode in modes)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (data live as long as the run)
    def _tasks(self, split: str) -> TaskExamples:
        """Returns the examples of a split of all tasks."""
        if split not in _SPLITS:
            raise ValueError(f"split={split!r} is not one of {list(_SPLITS)}.")
        splits = self.train if split == "train" else self.held_out
        if splits is None:
            raise ValueError("there are no held-out examples: EVAL_BATCHES is 0.")
        assert self.mode_length is not None
        lengths = self.layout.inputs_length, self.layout.targets_length
        return TaskExamples(splits, self.rows, self.vocab, lengths, self.mode_length)

    def _order(self, split: str) -> Order:
        """Returns which examples of a split each batch holds."""
        sizes, batch_size = self._tasks(split).sizes, self.layout.batch_size
        if split == "train":
            counts = counts_of(self.rows)
            return Shuffled(sizes, counts, batch_size, self.layout.seed)
        return EveryExample(sizes, batch_size)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (data live as long as the run)
    def _plan(self, split: str) -> RowPlan:
        """Plans the rows of a split's batches."""
        tasks, order = self._tasks(split), self._order(split)
        joined = self.layout.architecture == "decoder_only"
        batches = max(4, _PRACTICE_EXAMPLES // self.layout.batch_size)
        longest = np.max(
            [
                lengths.sum(axis=1, keepdims=True).max(axis=0)
                if joined
                else lengths.max(axis=0)
                for lengths in tasks.planned_lengths
            ],
            axis=0,
        )
        return plan_rows(
            [tasks.plan(order.pick(batch)) for batch in range(batches)],
            longest,
            joined=joined,
            shards=self.layout.shards,
            examples_per_row=self.layout.examples_per_row,
        )

    def _refuse_long(self) -> None:
        """Refuses examples that would be cut.

        Raises:
            ValueError: there is one; says how many, and how long.
        """
        for split in _SPLITS if self.held_out is not None else ("train",):
            tasks = self._tasks(split)
            for side in SIDES:
                for index, cut in enumerate(tasks.too_long(side).tolist()):
                    if cut:
                        longest = int(tasks.splits[index].lengths(side).max())
                        raise ValueError(
                            f"{cut} {side} of task {self.rows[index].name!r} are too "
                            f"long, the longest has {longest} tokens; raise "
                            f"{side.upper()}_LENGTH or set ON_LONG=truncate."
                        )
