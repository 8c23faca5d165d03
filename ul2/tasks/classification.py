"""T5's text for tasks that label sentences: GLUE, and most of SuperGLUE.

    row         {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}
    inputs      rte hypothesis: It is wet. premise: It rains.
    targets     entailment

The name of the task, then each field behind its name, in T5's order, which is the
alphabet's but where a task says otherwise. A row without a label (-1) has no targets.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ul2.tasks.metrics import accuracy
from ul2.tasks.text_task import Metric, Row, TextExample, TextTask, Tfds

ALL_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
# Longest label and EOS, also with a tokenizer of characters and bytes.
LABEL_LENGTH = 24


def write_fields(name: str, fields: Mapping[str, str]) -> str:
    """Returns "rte hypothesis: ... premise: ..."."""
    return " ".join([name, *(f"{key}: {text}" for key, text in fields.items())])


def label_text(label: int, labels: Sequence[str]) -> str:
    """Returns the text of a label; nothing for -1, which stands for an unknown one.

    Raises:
        ValueError: there is no such label.
    """
    if not -1 <= label < len(labels):
        raise ValueError(f"label {label} is not one of 0 to {len(labels) - 1}")
    return labels[label] if label >= 0 else ""


def label_reader(labels: Sequence[str]) -> Callable[[str, TextExample], int | None]:
    """Returns a postprocessor: the number of the label that was written, or None."""

    def read_label(prediction: str, example: TextExample) -> int | None:
        del example
        text = prediction.strip()
        return labels.index(text) if text in labels else None

    return read_label


def make_classification_task(
    name: str,
    source: Tfds,
    *,
    prompt: str,
    fields: Mapping[str, str],
    labels: tuple[str, ...],
    metrics: tuple[Metric, ...] = (accuracy,),
    validation_metric: str = "accuracy",
) -> TextTask:
    """Makes a task whose output is one of a few labels.

    Args:
        name: of the task.
        source: its rows, their label in the field `label`.
        prompt: what the inputs begin with.
        fields: what the inputs call each field of a row, in order.
        labels: the texts of the labels 0, 1, ...
        metrics: of numbers of labels.
        validation_metric: one of their scores.
    """

    def to_examples(row: Row) -> Iterable[TextExample]:
        texts = {shown: row[field] for shown, field in fields.items()}
        meta: dict[str, Any] = {"idx": row["idx"]}
        targets = label_text(row["label"], labels)
        yield TextExample(write_fields(prompt, texts), targets, labels, meta)

    return TextTask(
        name=name,
        source=source,
        to_examples=to_examples,
        metrics=metrics,
        postprocess=label_reader(labels),
        validation_metric=validation_metric,
        targets_length=LABEL_LENGTH,
    )
