"""Rules of one's own: nothing is lost, budgets are kept, spans are what they say."""

import ast
import inspect
import re

import numpy as np
import pytest
from denoising_toys import make_texts, make_vocab, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.denoising import denoisers as denoisers_module
from ul2.denoising import span_rules
from ul2.denoising.denoisers import Denoiser, denoise, merge
from ul2.denoising.mixture import from_rows
from ul2.denoising.preflight import measure
from ul2.denoising.rules import gap_sentences, python_syntax, whole_words
from ul2.denoising.span_rules import Budget, Text

RULES = {
    "whole_words": ("R", 3, 0.15),
    "gap_sentences": ("X", 10, 0.3),
    "python_syntax": ("X", 4, 0.25),
}
PROSE = (
    "The river ran past the old mill. Birds sang in the trees by the river, and the "
    "miller slept! Was there bread in the mill? Nobody in the small town knew about "
    "the bread. It rained on the mountains. The town talked of music all night long. "
)
CODE = inspect.getsource(denoisers_module)


class Toy:
    """Ids for the pieces of a text: short ones, words with the blank before them."""

    def __init__(self, text):
        parts = re.findall(r" ?\w{1,4}|\s|.", text, re.S)
        known = sorted(set(parts))
        self.pieces = [""] * 10 + known
        self.tokens = np.array([10 + known.index(part) for part in parts], np.int32)


def toy_of(name):
    return Toy(CODE if name == "python_syntax" else PROSE * 20)


def windows(tokens, count, length):
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return np.stack([tokens[start : start + length] for start in starts])


def spans_of(toy, name, length=300, *, count=8, seed=0):
    """Returns the characters in front of a span, of it, and behind it."""
    mode, mean, density = RULES[name]
    denoiser = Denoiser("d", mode, mean, density, name)
    texts = windows(toy.tokens, count, length)
    budget = Budget(*denoiser.count(length), mean)
    rng = np.random.default_rng(seed)
    noise, starts = span_rules.mark(name, texts, toy.pieces, budget, rng)
    found = []
    for text, masked, begins in zip(texts, noise, starts, strict=True):
        parts = [toy.pieces[token] for token in text]
        assert masked.sum() <= budget.noise and begins.sum() <= budget.spans
        for first in np.flatnonzero(begins):
            last = first + 1
            while last < length and masked[last] and not begins[last]:
                last += 1
            found.append(
                tuple(
                    "".join(parts[a:b])
                    for a, b in ((0, first), (first, last), (last, length))
                )
            )
    assert found
    return found


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(2, 200), st.integers(1, 3), st.integers(0, 2**31))
def test_merge_finds_every_token_again(name, length, count, seed):
    mode, mean, density = RULES[name]
    toy, vocab = toy_of(name), make_vocab()
    denoiser = Denoiser("d", mode, mean, density, name)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(toy.tokens) - length, count)
    texts = np.stack([toy.tokens[start : start + length] for start in starts])
    made = denoise(denoiser, texts, vocab=vocab, rng=rng, pieces=toy.pieces)
    fit = denoiser.measure(length, 1, None)
    assert made.input_lengths.max() <= fit.inputs
    assert made.target_lengths.max() <= fit.targets
    for text, inputs, targets in zip(
        texts,
        rows_of(made.inputs, made.input_lengths),
        rows_of(made.targets, made.target_lengths),
        strict=True,
    ):
        np.testing.assert_array_equal(merge(denoiser, inputs, targets, vocab), text)
        marks = targets[np.isin(targets, vocab.sentinel_ids)]
        assert marks.tolist() == list(vocab.sentinel_ids[: len(marks)])


@pytest.mark.parametrize("name", RULES)
def test_check_measures_what_a_rule_declares(name):
    mode, mean, density = RULES[name]
    toy, vocab = toy_of(name), make_vocab()
    mixture = from_rows([("d", mode, mean, density, name, 1)])
    fits = mixture.fit(256, 256, vocab)
    texts = windows(toy.tokens, 200, fits[0].text)
    rng = np.random.default_rng(0)
    made = denoise(mixture.denoisers[0], texts, vocab=vocab, rng=rng, pieces=toy.pieces)
    (found,) = measure(mixture, fits, [made], vocab)
    assert found.measured_share == 1
    # Words, sentences and subtrees do not add up to a number of tokens; and a text
    # whose subtrees are to be tiny runs out of spans.
    off = 0.2 if name == "python_syntax" else 0.1
    assert found.measured_noise_density == pytest.approx(density, rel=off)
    assert found.measured_noise_density <= density + 0.5 / fits[0].text
    assert found.measured_mean_span_length >= mean * 0.8


def test_whole_words_begin_and_end_at_blanks():
    for before, span, behind in spans_of(toy_of("whole_words"), "whole_words"):
        assert span.strip()
        assert span[0].isspace() or not before or before[-1].isspace()
        assert not behind or behind[0].isspace()


def test_gaps_are_sentences_and_the_most_telling_ones():
    for _, span, _ in spans_of(toy_of("gap_sentences"), "gap_sentences"):
        assert span.strip()[-1] in ".!?" and len(re.findall(r"[.!?]", span)) == 1
    toy = Toy("The cat sat here. Dogs bark. The cat sat here now. Zebra. ")
    text = Text(toy.tokens, toy.pieces)
    spans = gap_sentences.gap_sentences(text, Budget(9, 9, 3), np.random.default_rng(0))
    said = ["".join(text.string[slice(*text.offsets[span])]) for span in spans]
    assert {one.strip() for one in said[:2]} == {
        "The cat sat here.",
        "The cat sat here now.",
    }


def test_syntax_spans_are_whole_expressions_or_statements():
    toy = toy_of("python_syntax")
    kinds = ast.expr | ast.stmt
    nodes = [node for node in ast.walk(ast.parse(CODE)) if isinstance(node, kinds)]
    whole = {ast.get_source_segment(CODE, node) for node in nodes}
    found = spans_of(toy, "python_syntax", len(toy.tokens), count=1)
    assert {span.strip() for _, span, _ in found} <= whole
    # A window that begins inside a function finds some in single lines.
    lines = CODE[CODE.index("count, length = tokens.shape") :].splitlines()[:3]
    cut = Text(Toy("\n".join(lines)).tokens, Toy("\n".join(lines)).pieces)
    spans = cut.cover(python_syntax._nodes(cut.string))
    said = {cut.string[slice(*cut.offsets[span])].strip() for span in spans}
    assert "count, length = tokens.shape" in said
    assert said <= whole


def test_text_that_does_not_parse_is_left_as_it_is():
    toy = Toy("this is ( no python at all\n  nor ) is this : one ] or = = that\n")
    text = Text(toy.tokens, toy.pieces)
    rng = np.random.default_rng(0)
    assert python_syntax.python_syntax(text, Budget(9, 9, 3), rng).shape == (0, 2)
    blank = Toy("  \n \n  ")
    text = Text(blank.tokens, blank.pieces)
    for rule in (whole_words.whole_words, gap_sentences.gap_sentences):
        assert rule(text, Budget(3, 1, 3), rng).shape == (0, 2)


def test_columns_are_counted_in_bytes_by_ast_and_in_characters_here():
    string = "x = 'ä€' + spam\n"
    toy = Toy(string)
    text = Text(toy.tokens, toy.pieces)
    spans = text.cover(python_syntax._nodes(string))
    said = {text.string[slice(*text.offsets[span])].strip() for span in spans}
    assert said == {"x = 'ä€' + spam", "x", "'ä€' + spam", "'ä€'", "spam"}


def test_same_batch_makes_the_same_spans():
    toy = toy_of("whole_words")
    first, second, other = (spans_of(toy, "whole_words", seed=s) for s in (1, 1, 2))
    assert first == second != other


def test_rules_are_refused_in_a_line():
    with pytest.raises(ValueError, match=r"placement='edge' is not one of .*'whole_wo"):
        Denoiser("d", None, 3, 0.15, "edge")
    with pytest.raises(ValueError, match="span rule 't5': the name of a placement"):
        span_rules.span_rule("t5")
    vocab, rng = make_vocab(), np.random.default_rng(0)
    texts = make_texts(rng, 1, 50)
    denoiser = Denoiser("d", None, 3, 0.15, "whole_words")
    with pytest.raises(ValueError, match="'d': the rule 'whole_words' reads charact"):
        denoise(denoiser, texts, vocab=vocab, rng=rng)


def test_span_outside_the_text_is_refused(monkeypatch):
    rules = {
        **span_rules.SPAN_RULES,
        "bad": lambda text, budget, rng: np.array([[3, 9]]),
    }
    monkeypatch.setattr(span_rules, "SPAN_RULES", rules)
    with pytest.raises(ValueError, match=r"'bad' proposes \(3, 9\), .* of 5 tokens"):
        span_rules.mark(
            "bad",
            np.full((1, 5), 10),
            ["a"] * 20,
            Budget(9, 9, 3),
            np.random.default_rng(0),
        )
