"""A file of rows to a file of answers, whatever the rows and wherever it is killed."""

import dataclasses
import json

import pytest
from inference_toys import make_text_model

from ul2.decoding.settings import DecodingSettings
from ul2.inference import run
from ul2.inference.journal import Journal
from ul2.inference.rows import FileRows, survey
from ul2.inference.settings import InferenceSettings

SETTINGS = InferenceSettings(
    decoding=DecodingSettings(max_tokens=6, temperature=1.0, seed=1), batch_size=2
)
ROWS = [
    {"inputs": "the model reads every word"},
    {"inputs": ""},
    {"inputs": "the ___ of the story", "mode": "R", "id": 7},
    {"inputs": "a", "max_tokens": 2},
    {"inputs": "word " * 9},
    {"inputs": "every ___ reads", "mode": "Q"},
    {"inputs": "story", "prefix": "the", "targets": "x"},
]


@pytest.fixture(scope="module")
def model():
    return make_text_model()


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(run, "_BATCHES_PER_WINDOW", 2)


def write_rows(tmp_path, rows=ROWS):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(model, path, output, settings=SETTINGS, say=lambda line: None):
    source = FileRows(path)
    found = survey(source)
    return run.answer_file(
        model, source, found, output, settings, say, show_progress=False
    )


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """The bytes that every run must end with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_BATCHES_PER_WINDOW", 2)
        answer(model, write_rows(folder), folder / "out.jsonl")
    return (folder / "out.jsonl").read_bytes()


def test_every_row_has_an_answer_in_its_place(model, tmp_path, undisturbed):
    output = tmp_path / "out.jsonl"
    summary = answer(model, write_rows(tmp_path), output)
    answers = read(output)
    assert [row["inputs"] for row in answers] == [row["inputs"] for row in ROWS]
    assert [i for i, row in enumerate(answers) if "error" in row] == [1, 5]
    assert answers[2]["id"] == 7
    assert answers[2]["filled"].startswith("the ")
    assert "filled" not in answers[0]
    assert answers[6]["targets"] == "x"
    assert answers[6]["prediction"].startswith("the")
    assert all(row["log_prob"] < 0 for row in answers if "error" not in row)
    assert (summary.rows, summary.bad_rows, summary.resumed) == (7, 2, 0)
    assert summary.first_bad == 'row 2: "inputs" is empty'
    assert output.read_bytes() == undisturbed


def test_answer_does_not_depend_on_other_rows(model, tmp_path):
    output = tmp_path / "out.jsonl"
    settings = dataclasses.replace(SETTINGS, decoding=DecodingSettings(max_tokens=6))
    answer(model, write_rows(tmp_path), output, settings)
    together = read(output)
    for row, expected in zip(ROWS, together, strict=True):
        answer(model, write_rows(tmp_path, [row]), output, settings)
        assert read(output) == [expected]


class KilledError(BaseException):
    """Ends a run like a kill, which runs no handlers of ours."""


@pytest.mark.parametrize("num_batches", [1, 2, 3, 4])
def test_run_that_was_killed_ends_with_the_same_bytes(
    model, tmp_path, undisturbed, monkeypatch, num_batches
):
    output = tmp_path / "out.jsonl"
    rows = write_rows(tmp_path)
    add, calls = Journal.add, []

    def add_some(journal, answers):
        add(journal, answers)
        calls.append(answers)
        if len(calls) == num_batches:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add_some)
        with pytest.raises(KilledError):
            answer(model, rows, output)
    assert not output.exists()
    # The last line was not whole on disk.
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:-1])
    summary = answer(model, rows, output)
    assert summary.resumed == sum(map(len, calls)) - 1
    assert output.read_bytes() == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_what_is_answered_is_not_answered_again(model, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    rows = write_rows(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", lambda journal: None)
        answer(model, rows, output)
    monkeypatch.setattr(run.Answerer, "answer", None)
    assert answer(model, rows, output).resumed == len(ROWS)


def test_other_settings_or_input_do_not_go_on(model, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    rows = write_rows(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", lambda journal: None)
        answer(model, rows, output)
    for change in ({"mode": "R"}, {"decoding": DecodingSettings(max_tokens=7)}):
        with pytest.raises(ValueError, match=r"mode: None|max_tokens: 6 -> 7"):
            answer(model, rows, output, dataclasses.replace(SETTINGS, **change))
    other = dataclasses.replace(model, identity={**model.identity, "step": 4})
    with pytest.raises(ValueError, match="step: 3 -> 4"):
        answer(other, rows, output)
    write_rows(tmp_path, [*ROWS[1:], ROWS[0]])
    with pytest.raises(ValueError, match="sha256"):
        answer(model, rows, output)


def test_modes_that_do_not_fit_are_said_once_each(model, tmp_path):
    told = dataclasses.replace(model, trained_modes=("R", "S"))
    said = []
    answer(told, write_rows(tmp_path), tmp_path / "out.jsonl", say=said.append)
    assert len(said) == 1
    assert "but none is given" in said[0]


def test_targets_are_scored(model, tmp_path):
    rows = [
        {"inputs": "every word", "targets": "of the story"},
        {"inputs": "every word", "targets": ["of the story", "model"]},
        {"inputs": "every word"},
    ]
    settings = dataclasses.replace(SETTINGS, score=True)
    answer(model, write_rows(tmp_path, rows), tmp_path / "out.jsonl", settings)
    one, two, bad = read(tmp_path / "out.jsonl")
    assert one["log_prob"] == pytest.approx(two["log_prob"][0], abs=2e-6)
    (expected,) = model.score(["every word"], ["of the story"])
    assert one["log_prob"] == pytest.approx(expected.log_prob, abs=1e-6)
    assert one["num_tokens"] == expected.num_tokens
    assert "prediction" not in one
    assert bad["error"] == 'no "targets" to score'


def test_mode_that_the_vocabulary_cannot_write_is_refused_at_once(model, tmp_path):
    vocab = dataclasses.replace(model.vocab, mode_ids={})
    unable = dataclasses.replace(model, vocab=vocab)
    settings = dataclasses.replace(SETTINGS, mode="R")
    with pytest.raises(ValueError, match="no tokenizer says how"):
        answer(unable, write_rows(tmp_path), tmp_path / "out.jsonl", settings)
