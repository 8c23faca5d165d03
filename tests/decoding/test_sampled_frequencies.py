"""Tokens are drawn as often as temperature, top-k and top-p say, by a chi-square test.

Seeds are fixed, so the outcome is too; the bound on the p-value says how unlikely it
would be by chance that a correct sampler fails.
"""

import numpy as np
import pytest
from model_fixtures import tiny_model
from scipy import stats
from vocab_toys import toy_vocab

from ul2.batch import Batch, one_per_row
from ul2.decoding.generate import Generator
from ul2.decoding.settings import DecodingSettings

DRAWS = 4000
SEEDS = (0, 1, 2)
# A correct sampler fails one of a million times.
LEAST_P = 1e-6
PROMPT = [7, 11, 5, 1]
FORBIDDEN = (30, 31)
VOCAB = toy_vocab(60, 128)
CHOICES = (
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 2.0, "top_k": 12, "top_p": 0.6},
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("encoder_decoder", vocab_size=128)


def logits_after(model, written):
    """Returns the logits behind what is written, by the model without a cache."""
    decoder = one_per_row([[VOCAB.start_id, *written]])
    zeros = np.zeros(decoder.tokens.shape, np.int32)
    encoder = one_per_row([PROMPT])
    batch = Batch(encoder, decoder, zeros, zeros, zeros, np.zeros((1, 1), np.int32))
    return np.asarray(model.logits(batch))[0, -1].astype(np.float64)


def distribution(logits, *, temperature, top_k=0, top_p=1.0):
    """Returns the probability of each id, by sorting; order as in the settings."""
    allowed = np.arange(VOCAB.size)
    allowed = np.setdiff1d(allowed, [VOCAB.pad_id, *FORBIDDEN])
    logits = logits[allowed] / temperature
    order = np.argsort(-logits)[: top_k or None]
    probs = np.exp(logits[order] - logits[order].max())
    probs /= probs.sum()
    # Those before which less than top_p is gathered.
    kept = np.cumsum(probs) - probs < top_p
    full = np.zeros(VOCAB.padded_size)
    full[allowed[order][kept]] = probs[kept] / probs[kept].sum()
    return full


def p_value(counts, probs):
    """Returns how likely counts are that differ so much; rare ids are one class."""
    expected = probs * counts.sum()
    often = expected >= 5
    assert often.sum() > 2
    observed, expected = counts[often], expected[often]
    if counts.sum() - observed.sum() or probs[~often].sum() > 1e-12:
        observed = np.append(observed, counts.sum() - observed.sum())
        expected = np.append(expected, counts.sum() - expected.sum())
    return stats.chisquare(observed, expected).pvalue


def draw(model, seed, max_tokens=1, **choices):
    """Returns the ids of many outputs; -1 where one has ended."""
    generator = Generator(model, VOCAB, batch_size=1)
    settings = DecodingSettings(
        max_tokens=max_tokens, num_decodes=DRAWS, seed=seed, **choices
    )
    (outputs,) = generator.generate([PROMPT], settings, forbidden=FORBIDDEN)
    assert len(outputs) == DRAWS
    ids = [[*one.ids, VOCAB.eos_id][:max_tokens] for one in outputs]
    return np.array([row + [-1] * (max_tokens - len(row)) for row in ids])


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_first_token_is_drawn_from_the_exact_distribution(model, choices):
    logits = logits_after(model, [])
    probs = distribution(logits, **choices)
    for seed in SEEDS:
        drawn = draw(model, seed, **choices)[:, 0]
        counts = np.bincount(drawn, minlength=VOCAB.padded_size)
        assert counts[probs == 0].sum() == 0
        assert p_value(counts, probs) > LEAST_P
        # The same counts do not fit the model's own distribution, where that differs.
        plain = distribution(logits, temperature=1.0)
        if not np.array_equal(probs, plain):
            assert p_value(counts, plain) < LEAST_P


def test_second_token_is_drawn_from_what_follows_the_first(model):
    choices = {"temperature": 0.7, "top_k": 9, "top_p": 0.9}
    drawn = draw(model, 0, max_tokens=2, **choices)
    firsts, counts = np.unique(drawn[:, 0], return_counts=True)
    commonest = firsts[np.argsort(-counts)]
    for first in [token for token in commonest if token != VOCAB.eos_id][:2]:
        seconds = drawn[drawn[:, 0] == first, 1]
        probs = distribution(logits_after(model, [int(first)]), **choices)
        counts = np.bincount(seconds, minlength=VOCAB.padded_size)
        assert counts[probs == 0].sum() == 0
        assert p_value(counts, probs) > LEAST_P
