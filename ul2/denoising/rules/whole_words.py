"""Whole words, runs of them: no span begins or ends inside a word.

    ul2 train --import_module=ul2.denoising.rules.whole_words ...
    ('words', 'R', 3, 0.15, 'whole_words', 1)

CodeT5+ (2305.07922) masks so; BERT's whole-word masking is its ancestor.
"""

import numpy as np

from ul2.denoising.span_rules import Budget, Spans, Text, span_rule


@span_rule("whole_words")
def whole_words(text: Text, budget: Budget, rng: np.random.Generator) -> Spans:
    """Returns runs of words, of geometric lengths, anywhere."""
    words = text.find(r"\s*\S+")
    if not len(words):
        return words
    begins = words[rng.permutation(len(words)), 0]
    lengths = rng.geometric(1 / budget.mean_span_length, len(words))
    # To the end of the word in which the last token of the run lies.
    last = np.searchsorted(words[:, 1], begins + lengths)
    return np.stack([begins, words[np.minimum(last, len(words) - 1), 1]], axis=1)
