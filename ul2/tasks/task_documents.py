"""The text of a registered seqio task, before it is tokenized."""

from collections.abc import Iterator
from typing import Any, Final

import seqio

# Registers the corpora that have a name.
import ul2.tasks.pretraining  # noqa: F401
from ul2.tasks.seqio_text import read_text, splits_of, text_fields
from ul2.tasks.sources import Document
from ul2.tasks.splits import split_documents

# Names that tasks give to what training must not see, best first.
_HELD_OUT: Final = ("validation", "held_out", "test")


def read_task_documents(
    name: str, text_field: str, held_out_share: float
) -> Iterator[tuple[str, Document]]:
    """Yields the documents of a task's splits, train first.

    The task's preprocessors run up to its tokenize step, or all of them where there is
    none; what comes out there is the text. A task without a validation split is split
    by the hash of its texts.

    Raises:
        ValueError: there is no such task, its data is not there, or it has no split
            `train` or no such field of text.
    """
    task = _find_task(name)
    known = splits_of(task)
    if "train" not in known:
        raise ValueError(f"seqio task {name!r} has no split 'train', only {known}.")
    splits = [split for split in _HELD_OUT if split in known]
    train = _read_split(task, "train", text_field)
    if not splits:
        yield from split_documents(train, held_out_share)
        return
    for document in train:
        yield "train", document
    for document in _read_split(task, splits[0], text_field):
        yield "held_out", document


def _find_task(name: str) -> Any:
    """Returns a registered task."""
    if name not in seqio.TaskRegistry.names():
        raise ValueError(
            f"no seqio task is registered as {name!r}; there are "
            f"{sorted(seqio.TaskRegistry.names())[:20]}."
        )
    return seqio.TaskRegistry.get(name)


def _read_split(task: Any, split: str, text_field: str) -> Iterator[Document]:
    """Yields the texts of one split in the order of its source."""
    dataset = read_text(task, split)
    texts = text_fields(dataset)
    # T5's tasks call their text `targets` by then.
    fields = [name for name in (text_field, "targets") if name in texts]
    if not fields:
        raise ValueError(
            f"seqio task {task.name!r} has no text {text_field!r} before it tokenizes, "
            f"only {texts} (--text_field)."
        )
    source = f"{task.name}/{split}"
    for record, example in enumerate(dataset.as_numpy_iterator(), 1):
        try:
            text = example[fields[0]].decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{source}: example {record}: not UTF-8 ({error.reason})."
            ) from None
        if text.strip():
            yield Document(text, source, record)
