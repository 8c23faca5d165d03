import pytest
from published_toys import examples_of, write_files

from ul2.tasks import mmlu

TASKS = {task.name: task for task in mmlu.TASKS}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published")
    write_files(directory)
    return directory


def test_there_are_57_subjects_and_the_whole():
    assert len(mmlu.SUBJECTS) == len(set(mmlu.SUBJECTS)) == 57
    assert len(TASKS) == 58


def test_text_of_a_row(published):
    example = examples_of(TASKS["mmlu_college_biology"], published)[0]
    assert example.inputs == (
        'Which is "hot", of these? A. ice B. fire C. snow D. rain Answer:'
    )
    assert example.targets == "B"
    assert example.choices == ("A", "B", "C", "D")
    assert example.meta == {"subject": "college biology"}


def test_exemplars_are_of_the_same_subject():
    assert all(task.exemplars_share == "subject" for task in TASKS.values())


@pytest.mark.parametrize("name", ["mmlu_anatomy", "mmlu_world_religions"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_letters_are_scored_in_any_form(name, split, published):
    task = TASKS[name]
    examples = examples_of(task, published, split)
    assert len(examples) == 2
    assert task.score(examples, ["B", "D"]) == {"accuracy": 100.0}
    assert task.score(examples, ["The answer is (B).", "d."]) == {"accuracy": 100.0}
    assert task.score(examples, ["A", "D. light"]) == {"accuracy": 50.0}
    assert task.score(examples, ["", "E"]) == {"accuracy": 0.0}


def test_the_whole_has_the_questions_of_all_subjects(published):
    examples = examples_of(TASKS["mmlu"], published, "test")
    assert len(examples) == 2 * 57
    subjects = {example.meta["subject"].replace(" ", "_") for example in examples}
    assert subjects == set(mmlu.SUBJECTS)
    targets = [example.targets for example in examples]
    assert TASKS["mmlu"].score(examples, targets) == {"accuracy": 100.0}


def test_subjects_read_their_own_files_only(published):
    examples = examples_of(TASKS["mmlu_human_aging"], published, "train")
    assert {example.meta["subject"] for example in examples} == {"human aging"}
