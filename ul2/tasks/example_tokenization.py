"""A task's text to stores of examples, made on the first start and used ever after.

    EXAMPLES_DIR/boolq-3f2a9c10/train/         of each task, tokenizer and split
    EXAMPLES_DIR/boolq-3f2a9c10/validation/

TensorFlow is loaded where a store must be made and the task's data set needs it, and
nowhere else.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ul2.data.example_store import ExampleSplit, is_store, open_store, write_store
from ul2.data.run_data import Layout
from ul2.data.task_data import TaskData
from ul2.data.task_mixture import TaskMixture
from ul2.tasks.progress import Progress
from ul2.tasks.text_task import TextExample
from ul2.tasks.tokenizer import Tokenizer
from ul2.vocab import Vocab

TRAIN: Final = "train"
_EXAMPLES_AT_ONCE: Final = 4096


@dataclasses.dataclass(frozen=True)
class TaskReader:
    """Where the text of tasks comes from.

    Attributes:
        splits: returns the names of a task's splits.
        read: yields the examples of a split of a task.
        find_mixture: returns the (task, rate) rows that a name stands for.
    """

    splits: Callable[[str], Sequence[str]]
    read: Callable[[str, str], Iterable[TextExample]]
    find_mixture: Callable[[str], Sequence[tuple[str, float]]]


def registered_tasks(data_dir: str | None) -> TaskReader:
    """Returns the reader of the tasks in the registry.

    Args:
        data_dir: where data sets lie; None for where their library looks.
    """
    from ul2.tasks import examples, registry

    def find_mixture(name: str) -> Sequence[tuple[str, float]]:
        if name in registry.MIXTURES:
            return registry.find_mixture(name)
        return ((registry.find(name).name, 1.0),)

    return TaskReader(
        splits=lambda name: list(registry.find(name).source.splits),
        read=lambda name, split: examples.read_examples(name, split, data_dir=data_dir),
        find_mixture=find_mixture,
    )


def open_tasks(
    mixture: TaskMixture,
    layout: Layout,
    tokenizer: Tokenizer,
    vocab: Vocab,
    folder: str | Path,
    *,
    evaluates: bool,
    reader: TaskReader,
    scratch: str | Path | None = None,
) -> TaskData:
    """Opens the examples of tasks; what was not tokenized yet is.

    Args:
        mixture: the tasks.
        layout: of the batches.
        tokenizer: makes the ids.
        vocab: of the model, which may have more rows than the tokenizer has ids.
        folder: where stores are kept.
        evaluates: whether held-out examples are needed.
        reader: where the text comes from.
        scratch: where stores are made that are not kept yet; None to keep them.

    Raises:
        ValueError: a task or split is unknown, or a store is damaged.
    """
    rows = mixture.rows(reader.find_mixture)
    for row in rows:
        # Before hours of tokenizing.
        _check_splits(row.name, reader.splits(row.name), mixture, evaluates=evaluates)
    train, held_out = [], []
    for row in rows:

        def open_split(split: str, task: str = row.name) -> ExampleSplit:
            path = store_path(folder, task, split, tokenizer)
            if scratch is not None and not is_store(path):
                path = store_path(scratch, task, split, tokenizer)
            return _open_or_make(path, task, split, tokenizer, reader)

        examples = open_split(TRAIN)
        if evaluates:
            if mixture.eval_split in reader.splits(row.name):
                held_out.append(open_split(mixture.eval_split))
            else:
                examples, held = _hold_out(examples, mixture.held_out_share)
                held_out.append(held)
        train.append(examples)
    return TaskData(
        rows=rows,
        train=tuple(train),
        held_out=tuple(held_out) if evaluates else None,
        vocab=vocab,
        tokenizer=tokenizer.model,
        layout=layout,
        on_long=mixture.on_long,
    )


def store_path(folder: str | Path, task: str, split: str, tokenizer: Tokenizer) -> Path:
    """Returns where the store of a split of a task is kept."""
    name = re.sub(r"[^\w.-]", "_", f"{task}-{tokenizer.sha256[:8]}").lstrip(".")
    return Path(folder) / name / re.sub(r"\W", "_", split)


def tokenizer_of(path: Path, model: bytes, vocab: Vocab) -> Tokenizer:
    """Returns the tokenizer that a vocabulary came from, sentinels included.

    Args:
        path: where it is said to lie.
        model: the SentencePiece model.
        vocab: of the checkpoint beside it.
    """
    convention = vocab.mode_convention
    plain = Tokenizer(path, model, mode_convention=convention, extra_sentinels=0)
    added = vocab.size - plain.vocab.size
    if plain.vocab.sentinel_ids or added <= 0:
        return plain
    return Tokenizer(path, model, mode_convention=convention, extra_sentinels=added)


def _check_splits(
    task: str, splits: Sequence[str], mixture: TaskMixture, *, evaluates: bool
) -> None:
    """Refuses a task that cannot be trained or evaluated on.

    Raises:
        ValueError: says which splits there are, and what to set.
    """
    there = ", ".join(splits)
    if TRAIN not in splits:
        raise ValueError(
            f"task {task!r} has no split {TRAIN!r} to train on, only {there}."
        )
    if evaluates and mixture.eval_split not in splits and not mixture.held_out_share:
        raise ValueError(
            f"task {task!r} has no split {mixture.eval_split!r}, only {there}; set "
            "EVAL_SPLIT to one of these, HELD_OUT_SHARE=0.05 to hold out a share of "
            "the training examples, or EVAL_BATCHES=0."
        )


def _open_or_make(
    path: Path, task: str, split: str, tokenizer: Tokenizer, reader: TaskReader
) -> ExampleSplit:
    """Opens a store; makes it first if it is not there."""
    if not is_store(path):
        with Progress({}, show=True, label=f"tokenize {split} of {task}") as progress:
            write_store(
                path,
                _encode(reader.read(task, split), tokenizer, progress),
                task=task,
                split=split,
                tokenizer_sha256=tokenizer.sha256,
            )
    examples = open_store(path, tokenizer_sha256=tokenizer.sha256)
    if (examples.task, examples.split) != (task, split):
        raise ValueError(
            f"{path} holds {examples.split} of {examples.task}, not {split} of "
            f"{task}; choose another EXAMPLES_DIR."
        )
    return examples


def _encode(
    examples: Iterable[TextExample], tokenizer: Tokenizer, progress: Progress
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the ids of examples, many at a time encoded together."""
    rest = iter(examples)
    while some := list(itertools.islice(rest, _EXAMPLES_AT_ONCE)):
        inputs = tokenizer.encode([one.inputs for one in some])
        targets = tokenizer.encode([one.targets for one in some])
        progress.add(
            len(some),
            sum(map(len, inputs)) + sum(map(len, targets)),
            sum(len(f"{one.inputs}{one.targets}".encode()) for one in some),
        )
        yield from zip(inputs, targets, strict=True)


def _hold_out(
    examples: ExampleSplit, share: float
) -> tuple[ExampleSplit, ExampleSplit]:
    """Returns the examples to train on, and those held out.

    Raises:
        ValueError: one of them is empty.
    """
    rest, held_out = examples.hold_out(share)
    if not len(rest) or not len(held_out):
        raise ValueError(
            f"HELD_OUT_SHARE={share} parts the {len(examples)} examples of "
            f"{examples.task!r} into {len(rest)} and {len(held_out)}; set another."
        )
    return rest, held_out
