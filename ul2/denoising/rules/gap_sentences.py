"""Gap sentences, as in PEGASUS (1912.08777, section 3.1): those that say the most.

    ul2 train --import_module=ul2.denoising.rules.gap_sentences ...
    ('gaps', 'X', 20, 0.3, 'gap_sentences', 1)

A sentence's score is the ROUGE-1 F1 of its tokens against those of the rest of the
text, each sentence by itself, times up to a fifth of noise ("stochastic", as the
released models). Gaps have a sentinel each, where PEGASUS has one mask for all.
"""

from collections import Counter

import numpy as np

from ul2.denoising.span_rules import Budget, Spans, Text, span_rule

_SENTENCE = r"\s*\S.*?(?:[.!?][\"')\]]*(?=\s)|\n|\Z)"


@span_rule("gap_sentences")
def gap_sentences(text: Text, budget: Budget, rng: np.random.Generator) -> Spans:
    """Returns sentences, the most telling first."""
    del budget
    sentences = text.find(_SENTENCE)
    everything = Counter(text.tokens.tolist())
    scores = []
    for first, last in sentences.tolist():
        own = Counter(text.tokens[first:last].tolist())
        # Both sides together are the text.
        overlap = (own & (everything - own)).total()
        scores.append(2 * overlap / len(text.tokens))
    noise = rng.uniform(0.8, 1.2, len(sentences))
    return sentences[np.argsort(-noise * scores, kind="stable")]
