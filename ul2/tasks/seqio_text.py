"""The text of a seqio task: what its preprocessors make before they tokenize.

A task of a user's own module is read up to its tokenize step. There it has strings, for
pre-training one document, for a supervised task `inputs` and `targets`:

    preprocessors   rekey  ->  tokenize  ->  append_eos
    read            rekey  ->  {"inputs": "2 + 2?", "targets": "4"}

A task without tokenize step is read to its end; ids are decoded with its vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import seqio
import tensorflow as tf

from ul2.tasks.text_task import Row, Seqio, TextExample, TextTask

_TOKENIZE: Final = (
    seqio.preprocessors.tokenize,
    seqio.preprocessors.tokenize_and_append_eos,
)


def splits_of(task: Any) -> list[str]:
    """Returns the splits of a seqio task, which are known once its data is.

    Raises:
        ValueError: its data is not there.
    """
    try:
        splits = list(task.splits)
        task.source.get_dataset(splits[0], shuffle=False)
    # TFDS raises whatever the code of a data set meets where it is not prepared:
    # a missing library, a missing folder, a failed download.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the data of seqio task {task.name!r} cannot be read ({reason}); prepare "
            "it with `tfds build`, or set TFDS_DATA_DIR to where it lies."
        ) from None
    return splits


def read_text(task: Any, split: str) -> Any:
    """Returns a split as a dataset, as it is before it is tokenized, in its order.

    Training never reads it: it is tokenized once, whole, into a store, whose place is
    a number. What is killed meanwhile begins anew.

    Raises:
        ValueError: it is a stream without an end, whose place nobody can restore.
    """
    dataset = task.source.get_dataset(split, shuffle=False)
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            f"split {split!r} of seqio task {task.name!r} never ends, so it cannot be "
            "tokenized into a store, and a stream's place cannot be restored; take "
            "repeat() out of its source."
        )
    for step in _steps_before_tokenizing(task):
        step = seqio.utils.add_kwargs_to_transform(
            step, sequence_length=None, output_features=task.output_features
        )
        dataset = step(dataset)
    return dataset


def text_fields(dataset: Any) -> list[str]:
    """Returns which fields of a dataset hold one string each."""
    specs = dataset.element_spec
    return [name for name, spec in specs.items() if spec.dtype == tf.string]


def make_text_task(name: str) -> TextTask | None:
    """Returns a user's seqio task as one of ours; None where none has that name.

    Its own postprocessing and metrics score it; the first of their scores, called
    `score`, chooses between checkpoints.

    Raises:
        ValueError: its data is not there.
    """
    if name not in seqio.TaskRegistry.names():
        return None
    task = seqio.TaskRegistry.get(name)
    return TextTask(
        name=name,
        source=Seqio(name, {split: split for split in splits_of(task)}),
        to_examples=_to_examples,
        metrics=(functools.partial(_measure, task.predict_metric_fns),),
        postprocess=functools.partial(_postprocess, task, is_target=False),
        target=lambda example: _postprocess(
            task, example.targets, example, is_target=True
        ),
        validation_metric="score",
    )


def read_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    """Yields the examples of a user's seqio task: `inputs`, `targets` and the rest.

    Raises:
        ValueError: it gives no inputs and targets, as text or ids.
    """
    task = seqio.TaskRegistry.get(name)
    dataset = read_text(task, split)
    missing = [
        side for side in ("inputs", "targets") if side not in dataset.element_spec
    ]
    if missing:
        raise ValueError(
            f"seqio task {name!r} has no field {missing[0]!r} before it tokenizes, "
            f"only {list(dataset.element_spec)}."
        )
    for row in dataset.as_numpy_iterator():
        for side in ("inputs", "targets"):
            row[side] = _as_text(row[side], task.output_features.get(side))
        yield row


def _steps_before_tokenizing(task: Any) -> list[Callable[..., Any]]:
    """Returns the preprocessors that work on text."""
    steps: list[Callable[..., Any]] = []
    for step in task.preprocessors:
        plain = step.func if isinstance(step, functools.partial) else step
        if plain in _TOKENIZE:
            return steps
        steps.append(step)
    return steps


def _as_text(value: Any, feature: Any) -> str:
    """Returns a string, or ids decoded, EOS and padding aside."""
    if isinstance(value, bytes):
        return value.decode()
    vocabulary = feature.vocabulary
    ids = np.asarray(value).tolist()
    special = (vocabulary.eos_id, vocabulary.pad_id)
    text: str = vocabulary.decode([token for token in ids if token not in special])
    return text


def _to_examples(row: Row) -> tuple[TextExample, ...]:
    meta = {
        key: value for key, value in row.items() if key not in ("inputs", "targets")
    }
    return (TextExample(row["inputs"], row["targets"], (), meta),)


def _postprocess(task: Any, text: str, example: TextExample, *, is_target: bool) -> Any:
    """Calls a task's own postprocessing as seqio's Evaluator does."""
    fields: Mapping[str, Any] = {
        **example.meta,
        "inputs_pretokenized": example.inputs.encode(),
        "targets_pretokenized": example.targets.encode(),
    }
    return task.postprocess_fn(text, example=fields, is_target=is_target)


def _measure(
    metrics: Sequence[Callable[..., Any]],
    targets: Sequence[Any],
    predictions: Sequence[Any],
) -> dict[str, float]:
    """Returns the scores of seqio's metrics as plain numbers, and which is first."""
    scores: dict[str, float] = {}
    for metric in metrics:
        found = metric(targets, predictions)
        # Scores may be seqio's objects; texts and images for TensorBoard are none.
        values = {name: getattr(value, "value", value) for name, value in found.items()}
        scores |= {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float | np.number)
        }
    first = next(iter(scores.values()), None)
    return scores if first is None else {"score": first, **scores}
