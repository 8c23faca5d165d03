import json
import os

import pytest

from ul2.inference.journal import Journal

IDENTITY = {"checkpoint": "/runs/one", "mode": None, "temperature": 0.0}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def partial(output):
    return output.with_name("out.jsonl.partial")


def test_answers_are_put_in_order_and_nothing_else_is_left(output):
    with Journal(output, 3, IDENTITY) as journal:
        journal.add({2: {"a": "c"}})
        assert not output.exists()
        journal.add({0: {"a": "ä\u2028"}, 1: {"a": "\ud800"}})
        assert [one["a"] for one in journal.answers()] == ["ä\u2028", "\ud800", "c"]
        journal.finish()
    assert output.read_bytes().decode() == (
        '{"a": "ä\\u2028"}\n{"a": "\\ud800"}\n{"a": "c"}\n'
    )
    assert os.listdir(output.parent) == ["out.jsonl"]


def test_what_was_answered_is_known_again(output):
    with Journal(output, 3, IDENTITY) as journal:
        journal.add({2: {"a": 2}, 0: {"a": 0}})
    with Journal(output, 3, IDENTITY) as journal:
        assert journal.num_answered == 2
        assert journal.has([0, 2])
        assert not journal.has([0, 1])
        journal.add({1: {"a": 1}})
        journal.finish()
    lines = output.read_text().splitlines()
    assert [json.loads(line)["a"] for line in lines] == [0, 1, 2]


def test_every_torn_tail_is_dropped(output):
    with Journal(output, 2, IDENTITY) as journal:
        journal.add({0: {"a": "first"}})
        whole = partial(output).stat().st_size
        journal.add({1: {"a": "{second}"}})
    complete = partial(output).read_bytes()
    for size in range(whole, len(complete)):
        partial(output).write_bytes(complete[:size])
        with Journal(output, 2, IDENTITY) as journal:
            assert (journal.has([0]), journal.has([1])) == (True, False)
        assert partial(output).read_bytes() == complete[:whole]


def test_answers_of_another_command_are_refused_with_the_difference(output):
    with Journal(output, 1, IDENTITY) as journal:
        journal.add({0: {"a": 0}})
    before = partial(output).read_bytes()
    other = {**IDENTITY, "temperature": 0.7}
    with (
        pytest.raises(ValueError, match=r"temperature: 0\.0 -> 0\.7"),
        Journal(output, 1, other),
    ):
        pass
    assert partial(output).read_bytes() == before


def test_command_that_answered_nothing_stands_in_nobodys_way(output):
    with Journal(output, 1, IDENTITY):
        pass
    with Journal(output, 1, {**IDENTITY, "mode": "R"}) as journal:
        journal.add({0: {"a": 0}})
    with Journal(output, 1, {**IDENTITY, "mode": "R"}) as journal:
        assert journal.has([0])


def test_two_processes_do_not_mix_their_lines(output):
    with (
        Journal(output, 1, IDENTITY),
        pytest.raises(ValueError, match=r"out\.jsonl is in use by process \d+ on"),
        Journal(output, 1, IDENTITY),
    ):
        pass


def test_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(ValueError, match="is a directory"),
        Journal(tmp_path / "folder", 1, {}),
    ):
        pass
    missing = tmp_path / "none" / "out.jsonl"
    with pytest.raises(ValueError, match="cannot write"), Journal(missing, 1, {}):
        pass
