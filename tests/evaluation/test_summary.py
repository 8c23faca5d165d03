"""Many results as one table."""

import io
import json

import pytest
from rich.console import Console

from ul2.evaluation.candidates import Candidate
from ul2.evaluation.summary import (
    check_reference,
    choose_columns,
    print_table,
    reference_scores,
    summarize,
)


def result(checkpoint, mode, task, scores, metric=None, **fields):
    return {
        "key": f"{checkpoint}{mode}{task}",
        "checkpoint": checkpoint,
        "path": f"runs/{checkpoint}",
        "mode": mode,
        "task": task,
        "metric": metric or next(iter(scores)),
        "scores": scores,
        "method": "rank",
        "road": "direct",
        **fields,
    }


RESULTS = [
    result("a", "R", "boolq", {"accuracy": 60.0}),
    result("a", "R", "cb", {"accuracy": 40.0, "f1": 30.0}, "f1"),
    result("b", "R", "boolq", {"accuracy": 66.0}),
    result("b", "R", "cb", {"accuracy": 50.0, "f1": 33.0}, "f1"),
]


def shown(results, summary):
    console = Console(file=io.StringIO(), width=120)
    print_table(results, summary, console)
    return console.file.getvalue()


def test_rows_have_means_of_whole_mixtures_and_gains():
    mixtures = {"both": ["boolq", "cb"], "more": ["boolq", "rte"]}
    summary = summarize(RESULTS, mixtures, "a")
    first, second = summary["rows"]
    assert first["means"] == {"both": 45.0}
    assert second["means"] == {"both": 49.5}
    assert first["relative_gain"]["mean"] == 0
    assert second["relative_gain"]["mean"] == pytest.approx(10)
    assert second["relative_gain"]["tasks"] == pytest.approx({"boolq": 10, "cb": 10})


def test_table_shows_every_score_and_the_gain():
    text = shown(RESULTS, summarize(RESULTS, {"both": ["boolq", "cb"]}, "a"))
    for word in ("60.000", "33.000", "49.500", "+10.0 %", "boolq", "f1", "boolq: rank"):
        assert word in text


def test_troubles_and_tasks_left_out_are_said_under_the_table():
    counts = {"examples": 9, "unanswered": 3, "truncated_inputs": 0}
    results = [
        *RESULTS,
        result("b", "R", "wic", {"accuracy": 1.0}, counts=counts, road="seqio"),
        result("a", "R", "wic", {"accuracy": 0.0}),
    ]
    text = shown(results, summarize(results, {}, "a"))
    assert "b, wic, mode R: 3 of 9 predictions hold no answer" in text
    assert "inputs were cut" not in text
    assert "relative gain without wic: the reference's accuracy is zero" in text
    assert "wic: rank, through seqio" in text


def test_many_scores_are_one_column_a_task():
    results = [
        result("a", "R", task, {"x": 1.0, "y": 2.0, "z": 3.0}, "y") for task in "klm"
    ]
    assert choose_columns(results) == [("k", "y"), ("l", "y"), ("m", "y")]
    assert len(choose_columns(results[:2])) == 6


def test_held_out_text_has_a_column_per_denoiser():
    scores = {
        "loss": 3.0,
        "accuracy": 0.1,
        "denoisers": {"r": {"loss": 2.5}, "s": {"loss": 3.5}},
    }
    results = [result("a", "own", "text", scores, "loss")]
    assert choose_columns(results) == [("text", "loss"), ("text", "r"), ("text", "s")]
    text = shown(results, summarize(results, {}, None))
    for number in ("3.000", "2.500", "3.500"):
        assert number in text


def test_reference_is_compared_in_the_same_mode():
    results = [
        result("a", mode, "boolq", {"accuracy": value})
        for mode, value in (("R", 10.0), ("S", 20.0))
    ]
    assert reference_scores("a", results, "S") == {"boolq": ("accuracy", 20.0)}
    assert reference_scores("runs/a", results, "R") == {"boolq": ("accuracy", 10.0)}
    with pytest.raises(ValueError, match="found a in mode R, a in mode S"):
        reference_scores("a", results, "X")


def test_reference_may_be_another_evaluation(tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"results": RESULTS[:2]}))
    for reference in (tmp_path, file):
        summary = summarize(RESULTS[2:], {}, str(reference))
        assert summary["rows"][0]["relative_gain"]["mean"] == pytest.approx(10)
    with pytest.raises(ValueError, match="--reference=c is none of the checkpoints"):
        summarize(RESULTS, {}, "c")


def test_reference_is_checked_before_anything_is_evaluated(tmp_path):
    candidates = [Candidate(tmp_path / "run", 3, "run@3", True)]
    check_reference("run@3", candidates)
    check_reference(str(tmp_path / "run"), candidates)
    with pytest.raises(ValueError, match="--reference=c is none of the checkpoints"):
        check_reference("c", candidates)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no results\.json of ul2 eval"):
        check_reference(str(tmp_path), candidates)


def test_score_that_is_no_number_is_a_dash():
    results = [result("a", "R", "boolq", {"accuracy": None})]
    assert " - " in shown(results, summarize(results, {"one": ["boolq"]}, None))
