"""A model that is watched answers as it would, and is counted."""

import types

from ul2.evaluation.progress import WatchedModel


class Model:
    model, tokenizer, vocab, trained_modes = "network", "tokenizer", "vocab", ("R",)

    def generate_each(self, prompts, settings, *, keep_sentinels=False):
        yield {2: (prompts[2], settings, keep_sentinels)}
        yield {n: (prompts[n], settings, keep_sentinels) for n in (0, 1)}

    def score_from(self, prompts, targets):
        return list(zip(prompts, targets, strict=True))


def test_answers_are_the_same_and_counted():
    counted = []
    watched = WatchedModel(Model(), types.SimpleNamespace(add=counted.append))
    made = list(watched.generate_each("abc", "greedy", keep_sentinels=True))
    assert made == [
        {2: ("c", "greedy", True)},
        {0: ("a", "greedy", True), 1: ("b", "greedy", True)},
    ]
    assert watched.score_from("ab", [[1], [2]]) == [("a", [1]), ("b", [2])]
    assert counted == [1, 2, 2]
    names = ("model", "tokenizer", "vocab", "trained_modes")
    assert all(getattr(watched, name) == getattr(Model, name) for name in names)
