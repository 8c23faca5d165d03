"""Self-consistency: many rationales are drawn, and their answers vote.

    samples   "... The answer is 8."  "... is 7."  "... is 8."  "I do not know."
    answers   8                       7            8            none
    vote      8, with 2 of 3 votes

Every answer has one vote (self-consistency paper, arXiv 2203.11171: a plain majority
did as well as weights). A tie goes to the answers that the model finds likelier
together, and then to the one that was drawn first. Samples without answer do not vote.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple


class Vote(NamedTuple):
    """The outcome of a vote.

    Attributes:
        sample: the first sample that gave the winning answer; the first of all where
            no sample has an answer.
        votes: how many gave it.
        valid: how many samples have an answer.
    """

    sample: int
    votes: int
    valid: int


def is_answer(value: Any) -> bool:
    """Returns whether postprocessing found an answer: none is None or an empty text."""
    return value is not None and value != "" and value == value


def vote(answers: Sequence[Any], log_probs: Sequence[float]) -> Vote:
    """Returns which sample gave the answer that most samples gave.

    Args:
        answers: of each sample, as postprocessing made it.
        log_probs: of each sample.
    """
    samples: dict[Hashable, list[int]] = {}
    for index, answer in enumerate(answers):
        if is_answer(answer):
            samples.setdefault(_key(answer), []).append(index)
    if not samples:
        return Vote(0, 0, 0)

    def rank(given_by: list[int]) -> tuple[int, float, int]:
        together = math.fsum(math.exp(log_probs[index]) for index in given_by)
        return len(given_by), together, -given_by[0]

    winner = max(samples.values(), key=rank)
    return Vote(winner[0], len(winner), sum(map(len, samples.values())))


def _key(answer: Any) -> Hashable:
    """Returns what equal answers have in common; lists and dicts have no hash."""
    return answer if isinstance(answer, Hashable) else repr(answer)
