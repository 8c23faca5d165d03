"""docstring_to_name: deterministic, whole modules held out, no copying."""

import pytest

from ul2.tasks import code_names, registry
from ul2.tasks.examples import read_examples

TASK = "docstring_to_name"

MODULE = '''
def get_HTTPServer2(x):
    """Return the second
    of all servers that answer.

    Not read any more.
    """

class A:
    def _count(self):
        """Tell how many count here."""

    def __init__(self):
        """Make one of these things."""

    async def wait(self):
        """Sleeps until someone calls again."""

def short(): "too short"
def undocumented(): pass
'''


def test_functions_of_a_file_are_those_with_words_to_find(tmp_path):
    (tmp_path / "m.py").write_text(MODULE)
    rows = list(code_names._functions(tmp_path / "m.py", "pack/m.py"))
    assert [(row["name"], row["source"]) for row in rows] == [
        ("get http server 2", "pack/m.py:2"),
        ("wait", "pack/m.py:16"),
    ]
    text = "Return the second of all servers that answer."
    assert rows[0]["documentation"] == text
    (tmp_path / "broken.py").write_text("def (")
    assert list(code_names._functions(tmp_path / "broken.py", "b")) == []


def test_whole_modules_are_held_out_and_nothing_is_in_both():
    rows = {split: code_names.read_rows(split) for split in ("train", "validation")}
    modules, texts = (
        {split: {get(row) for row in of} for split, of in rows.items()}
        for get in (
            lambda row: row["source"].rpartition(":")[0],
            lambda row: row["documentation"],
        )
    )
    assert not modules["train"] & modules["validation"]
    assert not texts["train"] & texts["validation"]
    assert len(rows["train"]) > 5 * len(rows["validation"]) > 500
    assert code_names.read_rows("train") == rows["train"]


def test_task_is_found_by_name_and_scores_names():
    task = registry.find(TASK)
    first, second = read_examples(TASK, "validation", limit=2)
    assert first.inputs.startswith("name this function: ")
    assert task.score([first, second], [first.targets, "so it is"]) == {
        "exact_match": 50.0,
        "word_f1": pytest.approx(50.0, abs=25),
    }
    assert task.score([first], [f" {first.targets}\n"])["word_f1"] == 100


@pytest.mark.parametrize(
    ("target", "found", "f1"),
    [("get all", "get all", 100), ("get all", "get", 100 * 2 / 3), ("a b", "c", 0)],
)
def test_words_are_scored_by_their_f1(target, found, f1):
    assert code_names._word_f1([target], [found])["word_f1"] == pytest.approx(f1)


def test_libraries_without_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs the source files of the installed"):
        code_names._read(tmp_path)
