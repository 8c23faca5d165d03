import pytest
from published_toys import examples_of

from ul2.tasks import summarization
from ul2.tasks.summarization import xsum_examples

TASKS = {task.name: task for task in summarization.TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_own_summaries_score_best(name, tmp_path):
    task = TASKS[name]
    examples = examples_of(task, tmp_path)
    assert len(examples) == 2
    targets = [example.targets for example in examples]
    best = task.score(examples, targets)
    assert best.keys() == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert set(best.values()) == {100.0}
    worse = task.score(examples, [targets[0], "nothing of it"])
    assert all(worse[name] == pytest.approx(50, abs=10) for name in best)
    assert set(task.score(examples, ["", ""]).values()) == {0.0}
    assert task.validation_metric in best


@pytest.mark.parametrize(
    ("name", "inputs", "targets"),
    [
        (
            "xsum",
            "summarize: The council met on Monday.\nIt talked about a park.",
            "A town is to get a park.",
        ),
        (
            "cnn_dailymail",
            "summarize: A whale was seen off the pier. Crowds came. It left.",
            "A whale was seen .\nIt drew crowds .",
        ),
        (
            "samsum",
            "summarize: Ann: Tea at 5?\nBo: Yes!\nAnn: :)",
            "Ann and Bo will have tea at 5.",
        ),
    ],
)
def test_text_of_the_first_row(name, inputs, targets, tmp_path):
    example = examples_of(TASKS[name], tmp_path)[0]
    assert (example.inputs, example.targets) == (inputs, targets)


def test_rows_without_text_or_summary_make_no_example():
    assert list(xsum_examples({"document": " \n", "summary": "A town."})) == []
    assert list(xsum_examples({"document": "A town.", "summary": ""})) == []
