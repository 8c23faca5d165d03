import pytest
from published_toys import examples_of

from ul2.tasks import question_answering
from ul2.tasks.question_answering import squad_examples

TASKS = {task.name: task for task in question_answering.TASKS}


def test_squad_counts_every_answer(tmp_path):
    task = TASKS["squad"]
    examples = examples_of(task, tmp_path)
    assert examples[0].inputs == (
        "question: What does Rome stand on? "
        "context: Rome was founded on the Tiber. It has seven hills."
    )
    assert [example.targets for example in examples] == ["the Tiber", "seven"]
    best = {"em": 100.0, "f1": 100.0}
    assert task.score(examples, ["the Tiber", "seven"]) == best
    assert task.score(examples, ["Tiber.", " Seven "]) == best
    found = task.score(examples, ["the river Tiber", "Rome"])
    assert found["em"] == 0
    assert found["f1"] == pytest.approx(100 * (2 / 3) / 2)
    assert task.validation_metric in found


def test_squad_without_answers_makes_no_example():
    assert list(squad_examples({"answers": {"text": []}})) == []


@pytest.mark.parametrize("name", ["race_middle", "race_high"])
def test_race_makes_an_example_of_each_question(name, tmp_path):
    task = TASKS[name]
    examples = examples_of(task, tmp_path)
    assert [(example.inputs, example.targets) for example in examples] == [
        (
            "question: Who ran? options: (A) Ann (B) Bo (C) Cy (D) Di "
            "context: Ann ran home. Bo stayed at school with Cy.",
            "Ann",
        ),
        (
            "question: Bo stayed at _ . options: (A) home (B) work (C) school (D) sea "
            "context: Ann ran home. Bo stayed at school with Cy.",
            "school",
        ),
    ]
    assert task.score(examples, ["Ann", "school"]) == {"accuracy": 100.0}
    assert task.score(examples, ["Ann", "sea"]) == {"accuracy": 50.0}
    assert task.score(examples, ["", "A"]) == {"accuracy": 0.0}
