"""GLUE, in T5's text: one task each, and the natural language inference diagnostics.

    glue_cola    cola sentence: The cat sat.                 acceptable
    glue_stsb    stsb sentence1: A. sentence2: B.            3.8

Scores are GLUE's. Where a task has two, `average` is their mean and chooses between
checkpoints. The labels of the test splits, and all of `glue_ax`, are known to the
benchmark's server alone: such rows have no targets.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from ul2.tasks.classification import (
    ALL_SPLITS,
    make_classification_task,
    write_fields,
)
from ul2.tasks.metrics import (
    accuracy,
    f1_binary,
    matthews,
    pearson,
    spearman,
    with_average,
)
from ul2.tasks.text_task import Metric, Row, TextExample, TextTask, Tfds

VERSION: Final = "2.0.0"
_SENTENCES: Final = {"sentence1": "sentence1", "sentence2": "sentence2"}
_PAIR: Final = {"hypothesis": "hypothesis", "premise": "premise"}
_ENTAILMENT: Final = ("entailment", "not_entailment")
_MNLI: Final = ("entailment", "neutral", "contradiction")


def stsb_examples(row: Row) -> Iterable[TextExample]:
    """Makes one of how alike two sentences are, rounded to a fifth.

    inputs   stsb sentence1: A plane lands. sentence2: A plane is landing.
    targets  4.8                                              (of a label of 4.75)
    """
    inputs = write_fields("stsb", {key: row[key] for key in _SENTENCES})
    # In float32 as T5 does: 3.1 * 5 is 15.5 there, a tie, which goes to the even 16.
    fifths = np.round(np.float32(row["label"]) * np.float32(5))
    targets = f"{fifths / 5:.1f}" if row["label"] >= 0 else ""
    yield TextExample(inputs, targets, (), {"idx": row["idx"]})


def read_number(prediction: str, example: TextExample) -> float | None:
    """Returns the number that was written, or None."""
    del example
    try:
        number = float(prediction)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _task(
    config: str,
    fields: Mapping[str, str],
    labels: tuple[str, ...],
    metric: Metric = accuracy,
    validation_metric: str = "accuracy",
) -> TextTask:
    """Makes the task of a configuration whose splits have the usual names."""
    return make_classification_task(
        f"glue_{config}",
        Tfds(f"glue/{config}:{VERSION}", ALL_SPLITS),
        prompt=config,
        fields=fields,
        labels=labels,
        metrics=(metric,),
        validation_metric=validation_metric,
    )


def _mnli_task(name: str, kind: str) -> TextTask:
    """Makes MNLI with one of its two kinds of validation and test splits."""
    splits = {split: f"{split}_{kind}" for split in ("validation", "test")}
    return make_classification_task(
        name,
        Tfds(f"glue/mnli:{VERSION}", {"train": "train", **splits}),
        prompt="mnli",
        fields=_PAIR,
        labels=_MNLI,
    )


TASKS: Final[tuple[TextTask, ...]] = (
    _task(
        "cola",
        {"sentence": "sentence"},
        ("unacceptable", "acceptable"),
        matthews,
        "matthews",
    ),
    _task("sst2", {"sentence": "sentence"}, ("negative", "positive")),
    _task(
        "mrpc",
        _SENTENCES,
        ("not_equivalent", "equivalent"),
        with_average(f1_binary, accuracy),
        "average",
    ),
    _task(
        "qqp",
        {"question1": "question1", "question2": "question2"},
        ("not_duplicate", "duplicate"),
        with_average(f1_binary, accuracy),
        "average",
    ),
    TextTask(
        name="glue_stsb",
        source=Tfds(f"glue/stsb:{VERSION}", ALL_SPLITS),
        to_examples=stsb_examples,
        metrics=(with_average(pearson, spearman),),
        postprocess=read_number,
        validation_metric="average",
        targets_length=8,
    ),
    _mnli_task("glue_mnli", "matched"),
    _mnli_task("glue_mnli_mismatched", "mismatched"),
    _task("qnli", {"question": "question", "sentence": "sentence"}, _ENTAILMENT),
    _task("rte", _SENTENCES, _ENTAILMENT),
    _task("wnli", _SENTENCES, ("not_entailment", "entailment")),
    make_classification_task(
        "glue_ax",
        Tfds(f"glue/ax:{VERSION}", {"test": "test"}),
        prompt="mnli",
        fields=_PAIR,
        labels=_MNLI,
        metrics=(matthews,),
        validation_metric="matthews",
    ),
)
