"""The text of a registered seqio task, before it is tokenized."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Final

import seqio
import tensorflow as tf

# Registers the corpora that have a name.
import ul2.tasks.pretraining  # noqa: F401
from ul2.tasks.sources import Document, split_documents

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
        ValueError: there is no such task, its data is not there, or it has no such
            field of text.
    """
    task = _find_task(name)
    steps = _steps_before_tokenizing(task)
    splits = [split for split in _HELD_OUT if split in _splits_of(task)]
    train = _read_split(task, steps, "train", text_field)
    if not splits:
        yield from split_documents(train, held_out_share)
        return
    for document in train:
        yield "train", document
    for document in _read_split(task, steps, splits[0], text_field):
        yield "held_out", document


def _splits_of(task: Any) -> list[str]:
    """Returns the task's splits, which are known once its data is."""
    try:
        task.source.get_dataset("train", shuffle=False)
    # TFDS raises whatever the code of a data set meets where it is not prepared:
    # a missing library, a missing folder, a failed download.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the data of seqio task {task.name!r} cannot be read ({reason}); prepare "
            "it with `tfds build`, or set TFDS_DATA_DIR to where it lies."
        ) from None
    return list(task.splits)


def _find_task(name: str) -> Any:
    """Returns a registered task."""
    if name not in seqio.TaskRegistry.names():
        raise ValueError(
            f"no seqio task is registered as {name!r}; there are "
            f"{sorted(seqio.TaskRegistry.names())[:20]}."
        )
    return seqio.TaskRegistry.get(name)


def _steps_before_tokenizing(task: Any) -> list[Callable[..., Any]]:
    """Returns the preprocessors that work on text."""
    steps: list[Callable[..., Any]] = []
    tokenize = (
        seqio.preprocessors.tokenize,
        seqio.preprocessors.tokenize_and_append_eos,
    )
    for step in task.preprocessors:
        plain = step.func if isinstance(step, functools.partial) else step
        if plain in tokenize:
            return steps
        steps.append(step)
    return steps


def _read_split(
    task: Any, steps: list[Callable[..., Any]], split: str, text_field: str
) -> Iterator[Document]:
    """Yields the texts of one split in the order of its source."""
    dataset = task.source.get_dataset(split, shuffle=False)
    for step in steps:
        step = seqio.utils.add_kwargs_to_transform(
            step, sequence_length=None, output_features=task.output_features
        )
        dataset = step(dataset)
    # T5's tasks call their text `targets` by then.
    specs = dataset.element_spec
    texts = [name for name, spec in specs.items() if spec.dtype == tf.string]
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
