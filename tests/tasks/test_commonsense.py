import pytest
from published_toys import examples_of, write_files

from ul2.tasks import commonsense
from ul2.tasks.commonsense import (
    anli_examples,
    arc_examples,
    commonsenseqa_examples,
    hellaswag_examples,
    openbookqa_examples,
    piqa_examples,
    winogrande_examples,
)
from ul2.tasks.multiple_choice import multiple_choice

TASKS = {task.name: task for task in commonsense.TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_right_options_score_all_and_wrong_ones_none(name, tmp_path):
    write_files(tmp_path)
    task = TASKS[name]
    examples = examples_of(task, tmp_path)
    assert len(examples) == 2
    right = [example.targets for example in examples]
    wrong = [next(c for c in e.choices if c != e.targets) for e in examples]
    assert task.score(examples, right) == {"accuracy": 100.0}
    assert task.score(examples, [right[0], wrong[1]]) == {"accuracy": 50.0}
    assert task.score(examples, ["", "  "]) == {"accuracy": 0.0}
    assert task.validation_metric in task.score(examples, wrong)
    assert all(example.targets in example.choices for example in examples)


@pytest.mark.parametrize(
    ("name", "inputs", "targets"),
    [
        (
            "anli_r1",
            "anli hypothesis: An animal sleeps. premise: The cat naps on the mat.",
            "entailment",
        ),
        (
            "hellaswag",
            "context: Cooking: She cracks an egg. Then she options: (A) flies away. "
            "(B) stirs it. (C) sells the pan. (D) paints a door.",
            "stirs it.",
        ),
        (
            "piqa",
            "goal: Dry a shirt. options: (A) Hang it up. (B) Rinse it.",
            "Hang it up.",
        ),
        (
            "winogrande",
            "sentence: The cup did not fit the bag because the _ was too big. "
            "options: (A) cup (B) bag",
            "cup",
        ),
        (
            "arc_challenge",
            "question: Which of these is hot? options: (A) ice (B) fire (C) snow",
            "fire",
        ),
        (
            "openbookqa",
            "question: Fire is options: (A) wet (B) hot (C) blue (D) old",
            "hot",
        ),
        (
            "commonsenseqa",
            "question: Where does milk stay cold? options: (A) fridge (B) oven "
            "(C) sun (D) bed (E) lamp",
            "fridge",
        ),
    ],
)
def test_text_of_the_first_row(name, inputs, targets, tmp_path):
    write_files(tmp_path)
    example = examples_of(TASKS[name], tmp_path)[0]
    assert (example.inputs, example.targets) == (inputs, targets)


@pytest.mark.parametrize(
    ("to_examples", "row"),
    [
        (anli_examples, {"label": -1}),
        (hellaswag_examples, {"label": -1}),
        (piqa_examples, {"label": -1}),
        (winogrande_examples, {"label": -1}),
        (arc_examples, {"answerKey": -1, "choices": {"label": [0, 1]}}),
        (openbookqa_examples, {"answerKey": -1}),
        (commonsenseqa_examples, {"answerKey": "", "question": {"choices": []}}),
    ],
)
def test_rows_without_label_make_no_example(to_examples, row):
    assert list(to_examples(row)) == []


def test_sizes_of_winogrande_share_their_validation_split():
    splits = {n: t.source.splits for n, t in TASKS.items() if "winogrande" in n}
    assert splits["winogrande"]["train"] == "train_xl"
    assert splits["winogrande_xs"]["train"] == "train_xs"
    assert {split["validation"] for split in splits.values()} == {"validation"}


def test_spaces_of_an_option_do_not_matter():
    example = multiple_choice({"question": "a\n b"}, ["x  y", "z"], 0, context="c\nd")
    assert example.inputs == "question: a b options: (A) x y (B) z context: c d"
    task = TASKS["piqa"]
    assert task.score([example], ["x y\n"]) == {"accuracy": 100.0}
