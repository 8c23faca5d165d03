"""The vote of self-consistency."""

import math

from ul2.evaluation.voting import vote


def test_majority_wins_and_samples_without_answer_do_not_vote():
    # The example of the module.
    assert vote([8, 7, 8, None], [-9, -1, -9, -0.1]) == (0, 2, 3)
    assert vote(["", "b", "", ""], [-1] * 4) == (1, 1, 1)
    assert vote([3, 3.0, 4], [-1, -1, -0.1]) == (0, 2, 3)
    assert vote([math.nan, 2], [0, 0]) == (1, 1, 1)


def test_tie_goes_to_the_likelier_answers_then_to_the_first():
    assert vote([1, 2], [-2.0, -1.0]) == (1, 1, 2)
    assert vote([1, 2], [-1.0, -1.0]) == (0, 1, 2)
    # Together: 0.3 + 0.3 is more than 0.5 + 0.05.
    logs = [math.log(p) for p in (0.5, 0.3, 0.3, 0.05)]
    assert vote(["a", "b", "b", "a"], logs) == (1, 2, 4)


def test_no_answer_at_all_leaves_the_first_sample():
    assert vote([None, ""], [-1, -1]) == (0, 0, 0)


def test_answers_without_hash_are_compared_by_value():
    assert vote([["a"], ["b"], ["b"]], [-1, -2, -3]) == (1, 2, 3)
