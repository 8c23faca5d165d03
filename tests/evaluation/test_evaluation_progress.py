"""A model that is watched answers as it would, and is counted."""

import types

from ul2.evaluation.progress import WatchedModel


class Model:
    model, tokenizer, vocab, trained_modes = "network", "tokenizer", "vocab", ("R",)

    def generate_from(self, prompts, settings, *, numbers=None, keep_sentinels=False):
        return [(prompt, settings, numbers, keep_sentinels) for prompt in prompts]

    def score_from(self, prompts, targets):
        return list(zip(prompts, targets, strict=True))


def test_answers_are_the_same_and_counted():
    counted = []
    watched = WatchedModel(Model(), types.SimpleNamespace(add=counted.append))
    made = watched.generate_from(
        "abc", "greedy", numbers=[1, 2, 3], keep_sentinels=True
    )
    assert made == [(one, "greedy", [1, 2, 3], True) for one in "abc"]
    assert watched.score_from("ab", [[1], [2]]) == [("a", [1]), ("b", [2])]
    assert counted == [3, 2]
    names = ("model", "tokenizer", "vocab", "trained_modes")
    assert all(getattr(watched, name) == getattr(Model, name) for name in names)
