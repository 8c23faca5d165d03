import pytest
from published_rows import TFDS_ROWS
from published_toys import examples_of

from ul2.tasks import data_to_text
from ul2.tasks.data_to_text import totto_examples

TASKS = {task.name: task for task in data_to_text.TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_own_texts_score_best(name, tmp_path):
    task = TASKS[name]
    examples = examples_of(task, tmp_path)
    assert len(examples) == 2
    targets = [example.targets for example in examples]
    best = task.score(examples, targets)
    assert all(score == pytest.approx(100) for score in best.values())
    worse = task.score(examples, [targets[0], "something else"])
    assert worse["bleu"] < 100
    assert worse["rougeL"] < 100
    assert task.validation_metric in best


@pytest.mark.parametrize("name", ["totto", "web_nlg"])
def test_every_reference_counts(name, tmp_path):
    task = TASKS[name]
    examples = examples_of(task, tmp_path)
    second = [examples[0].meta["references"][1], examples[1].targets]
    assert second[0] != examples[0].targets
    scores = task.score(examples, second)
    assert all(score == pytest.approx(100) for score in scores.values())


@pytest.mark.parametrize(
    ("name", "inputs", "targets"),
    [
        (
            "schema_guided_dialogue",
            "say: OFFER(city = Rome, Oslo); REQUEST(date); REQ_MORE "
            "service: Travel_1 prompt: Where could I go?",
            "How about Rome or Oslo? When? Anything else?",
        ),
        (
            "totto",
            "describe: page: Ann Lee section: Films "
            "cells: Dawn (1999; Work) | Eve (1999; Work) | lead (1999; Notes)",
            "Ann Lee was Eve in Dawn (1999).",
        ),
        (
            "web_nlg",
            "describe: Rome | country | Italy; Italy | leader | Ann_Lee",
            "Rome is in Italy, led by Ann Lee.",
        ),
    ],
)
def test_text_of_the_first_row(name, inputs, targets, tmp_path):
    example = examples_of(TASKS[name], tmp_path)[0]
    assert (example.inputs, example.targets) == (inputs, targets)


def test_training_rows_have_their_target_as_reference(tmp_path):
    row = TFDS_ROWS["totto"][0] | {"references": []}
    [example] = totto_examples(row)
    assert example.meta["references"] == ["Ann Lee was Eve in Dawn (1999)."]


def test_rows_without_any_reference_make_no_example():
    row = TFDS_ROWS["totto"][0] | {"references": [], "target": ""}
    assert list(totto_examples(row)) == []


def test_headers_above_follow_the_columns_that_cells_cover():
    # "Both" covers columns 0 and 1, so "Late" stands over column 2.
    table = {
        "value": [["Both", "Late"], ["a", "b", "c"], ["x", "wide"]],
        "is_header": [[True, True], [False, False, False], [False, False]],
        "column_span": [[2, 1], [1, 1, 1], [1, 2]],
    }
    row = TFDS_ROWS["totto"][0] | {
        "table": table,
        "highlighted_cells": [[1, 1], [1, 2], [2, 1]],
    }
    [example] = totto_examples(row)
    assert example.inputs.endswith("cells: b (Both) | c (Late) | wide (Both; Late)")
