"""Metrics of decoded answers, as training asks for them."""

import numpy as np
import pytest
from evaluation_toys import ToyModel

from ul2.data.example_store import ExampleSplit, Ragged
from ul2.data.task_mixture import TaskRow
from ul2.evaluation.decoded_metrics import DecodedMetrics, read_held_out
from ul2.tasks.example_tokenization import TaskReader
from ul2.tasks.text_task import Function, TextExample, TextTask

QUESTIONS = ["is red", "is blue", "is big", "is small"]
TARGETS = {"a": ["yes", "no", "yes", "no"], "b": ["1", "2", "3", "4"]}


def share_right(targets, predictions):
    hits = [a == b for a, b in zip(targets, predictions, strict=True)]
    return {"right": 100 * sum(hits) / len(hits), "examples": float(len(hits))}


def make_task(name):
    return TextTask(
        name=name,
        source=Function({"validation": "validation"}, read=lambda split: ()),
        to_examples=lambda row: (),
        metrics=(share_right,),
        validation_metric="right",
    )


def read(name, split):
    assert split == "validation"
    for question, target in zip(QUESTIONS, TARGETS[name], strict=True):
        yield TextExample(question, target)


READER = TaskReader(
    splits=lambda name: ("validation",), read=read, find_mixture=lambda name: ()
)


def held_out(task, rows):
    nothing = Ragged(np.empty(0, np.int32), np.zeros(1, np.uint64))
    return ExampleSplit(task, "validation", nothing, nothing, np.array(rows), "")


def tasks_of(limit=None):
    rows = [TaskRow("a", 1, "S"), TaskRow("b", 1, None)]
    splits = [held_out("a", [0, 1, 2, 3]), held_out("b", [1, 3])]
    return read_held_out(rows, splits, make_task, READER, limit)


def test_held_out_examples_alone_are_asked_in_the_mode_of_their_task():
    model = ToyModel(dict(zip(QUESTIONS, ["yes", "yes", "yes", "4"], strict=True)))
    metrics = DecodedMetrics(
        tasks_of(),
        lambda params: model,
        inputs_length=16,
        max_tokens=4,
    )
    assert metrics("params") == {
        "a/right": 50.0,
        "a/examples": 4.0,
        "b/right": 50.0,
        "b/examples": 2.0,
        "task_metric": 50.0,
    }
    asked = [(text, mode) for text, mode, *_ in model.asked]
    assert asked == [
        *((question, "S") for question in reversed(QUESTIONS)),
        ("is small", None),
        ("is blue", None),
    ]
    assert {settings.max_tokens for *_, settings in model.asked} == {4}


@pytest.mark.parametrize(("limit", "counts"), [(1, (1, 1)), (3, (3, 2))])
def test_no_more_than_the_limit_is_read(limit, counts):
    assert tuple(len(one.examples) for one in tasks_of(limit)) == counts


def test_hidden_targets_are_refused_before_anything_is_decoded(monkeypatch):
    monkeypatch.setitem(TARGETS, "a", [""] * 4)
    with pytest.raises(ValueError, match="right outputs of this split are not public"):
        tasks_of()
