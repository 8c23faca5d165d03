import pytest

from ul2.tasks.few_shot import Exemplars, add_exemplars, write_prompt
from ul2.tasks.text_task import TextExample


def example(number, **meta):
    return TextExample(f"q: {number} + {number}", str(2 * number), (), meta)


POOL = [example(number) for number in range(20)]


def test_prompt_is_that_of_the_docstring():
    prompt = write_prompt([example(1), example(2)], "q: 3 + 3")
    assert prompt == "q: 1 + 1\n2\n\nq: 2 + 2\n4\n\nq: 3 + 3"
    assert write_prompt([], "q: 3 + 3") == "q: 3 + 3"


def test_targets_follow_a_colon_on_the_same_line():
    solved = TextExample("Q: 1 + 1 A:", "1 and 1 are 2. The answer is 2.")
    prompt = write_prompt([solved], "Q: 2 + 2 A:")
    assert prompt == "Q: 1 + 1 A: 1 and 1 are 2. The answer is 2.\n\nQ: 2 + 2 A:"


def test_infill_ends_with_a_blank():
    assert write_prompt([example(1)], "q", infill=True) == "q: 1 + 1\n2\n\nq ___"


def test_exemplars_are_the_same_for_a_task_and_a_seed():
    exemplars = Exemplars(POOL, 3, seed=5)
    drawn = exemplars.draw(example(100), 0)
    assert len({e.inputs for e in drawn}) == 3
    assert exemplars.draw(example(101), 7) == drawn
    assert Exemplars(POOL, 3, seed=5).draw(example(100), 0) == drawn
    assert Exemplars(POOL, 3, seed=6).draw(example(100), 0) != drawn


def test_exemplars_can_be_drawn_for_each_example():
    exemplars = Exemplars(POOL, 3, seed=5, per="example")
    drawn = [exemplars.draw(example(100), number) for number in range(8)]
    assert len({tuple(e.inputs for e in some) for some in drawn}) > 5
    assert exemplars.draw(example(100), 3) == drawn[3]


@pytest.mark.parametrize("per", ["task", "example"])
def test_example_is_never_its_own_exemplar(per):
    exemplars = Exemplars(POOL, 19, seed=0, per=per)
    for number, one in enumerate(POOL):
        drawn = exemplars.draw(one, number)
        assert len(drawn) == 19
        assert one not in drawn


def test_others_keep_the_exemplars_that_an_example_among_them_lacks():
    exemplars = Exemplars(POOL, 3, seed=5)
    drawn = exemplars.draw(example(100), 0)
    rest = exemplars.draw(drawn[1], 1)
    assert rest[:2] == [drawn[0], drawn[2]]
    assert rest[2] not in drawn


def test_same_inputs_are_drawn_once_and_hidden_targets_never():
    pool = [TextExample("q", "a"), TextExample("q", "b"), TextExample("r", "")]
    assert Exemplars(pool, 1, seed=0).draw(example(1), 0) == pool[:1]


def test_exemplars_share_what_the_task_says():
    pool = [example(i, subject="law" if i % 2 else "art") for i in range(8)]
    exemplars = Exemplars(pool, 4, seed=0, share="subject")
    drawn = exemplars.draw(example(100, subject="law"), 0)
    assert {e.meta["subject"] for e in drawn} == {"law"}


def test_too_few_training_examples_are_refused():
    with pytest.raises(ValueError, match=r"^4 exemplars .* only 3 .*--shots\.$"):
        Exemplars(POOL[:4], 4, seed=0).draw(POOL[0], 0)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"shots_per='row' is not one of"):
        Exemplars(POOL, 1, seed=0, per="row")
    with pytest.raises(ValueError, match=r"shots=-1 must be at least 0"):
        Exemplars(POOL, -1, seed=0)


def test_examples_keep_everything_but_their_inputs():
    one = TextExample("q", "a", ("a", "b"), {"id": 3})
    (prompted,) = add_exemplars([one], Exemplars(POOL, 2, seed=0))
    assert prompted.inputs.endswith("\n\nq")
    assert prompted.inputs.count("\n\n") == 2
    assert (prompted.targets, prompted.choices, prompted.meta) == (
        "a",
        ("a", "b"),
        {"id": 3},
    )
