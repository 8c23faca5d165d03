import pytest
from glue_toys import ROWS

from ul2.tasks import glue

TASKS = {task.name: task for task in glue.TASKS}

# As t5 0.9.4 (glue_*_v002) writes the toy rows: what stands before the first text,
# before the second, and the targets.
T5_TEXT = {
    "cola": ("cola sentence:", None, ["acceptable", "unacceptable", "acceptable"]),
    "sst2": ("sst2 sentence:", None, ["positive", "negative"]),
    "mrpc": (
        "mrpc sentence1:",
        "sentence2:",
        ["equivalent", "not_equivalent", "equivalent"],
    ),
    "qqp": (
        "qqp question1:",
        "question2:",
        ["duplicate", "not_duplicate", "duplicate"],
    ),
    "stsb": ("stsb sentence1:", "sentence2:", ["4.8", "1.0", "3.2"]),
    "mnli": (
        "mnli hypothesis:",
        "premise:",
        ["neutral", "contradiction", "entailment"],
    ),
    "qnli": (
        "qnli question:",
        "sentence:",
        ["entailment", "not_entailment", "entailment"],
    ),
    "rte": (
        "rte sentence1:",
        "sentence2:",
        ["entailment", "not_entailment", "entailment"],
    ),
    "wnli": (
        "wnli sentence1:",
        "sentence2:",
        ["not_entailment", "entailment", "not_entailment"],
    ),
    "ax": (
        "mnli hypothesis:",
        "premise:",
        ["entailment", "contradiction", "neutral"],
    ),
}


def field_of(before):
    return before.rpartition(" ")[2].removesuffix(":")


def examples_of(name):
    rows = ROWS[f"glue/{name}"]
    return [e for row in rows for e in TASKS[f"glue_{name}"].to_examples(row)]


@pytest.mark.parametrize("name", T5_TEXT)
def test_text_is_t5s(name):
    first, second, targets = T5_TEXT[name]
    wanted = []
    for row in ROWS[f"glue/{name}"]:
        text = f"{first} {row[field_of(first)]}"
        wanted.append(f"{text} {second} {row[field_of(second)]}" if second else text)
    examples = examples_of(name)
    assert [e.inputs for e in examples] == wanted
    assert [e.targets for e in examples] == targets


def test_mnli_is_validated_on_either_kind():
    matched, other = TASKS["glue_mnli"], TASKS["glue_mnli_mismatched"]
    assert matched.source.name == other.source.name
    assert matched.source.splits["validation"] == "validation_matched"
    assert other.source.splits["validation"] == "validation_mismatched"


def test_similarity_is_a_number_and_anything_else_is_none():
    task, examples = TASKS["glue_stsb"], examples_of("stsb")
    values = [task.postprocess(text, examples[0]) for text in (" 3.8", "x", "nan")]
    assert values == [3.8, None, None]
    assert task.score(examples, ["5", "1", "2"])["spearman"] == pytest.approx(100)
    assert task.score(examples, ["5", "1", "2"])["pearson"] < 100


def test_two_scores_are_averaged():
    scores = TASKS["glue_mrpc"].score(examples_of("mrpc"), ["equivalent"] * 3)
    assert scores["accuracy"] == pytest.approx(200 / 3)
    assert scores["f1"] == pytest.approx(80)
    assert scores["average"] == pytest.approx((200 / 3 + 80) / 2)


def test_hidden_labels_make_no_targets():
    for name in T5_TEXT:
        row = {**ROWS[f"glue/{name}"][0], "label": -1}
        (example,) = TASKS[f"glue_{name}"].to_examples(row)
        assert example.targets == ""
