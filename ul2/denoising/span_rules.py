r"""A rule of one's own for what is masked: twenty lines, named in a mixture's table.

    @span_rule("whole_words")
    def whole_words(text, budget, rng):
        return words = text.find(r"\s*\S+")
        return words[rng.permutation(len(words))]

    ul2 check --import_module=my_rules ...
    mixture.from_rows.rows = [('words', 'R', 3, 0.15, 'whole_words', 1)]

A rule proposes spans of one text, the best first; they are taken while the noise
tokens that the row declares last, and spans, of which there may be a quarter more than
declared; those that overlap are left out. So lengths differ from text to text, and are
bounded: a text is as long as inputs of which nothing is masked. That is what a rule
costs in columns: as many stay empty as tokens are masked, less sentinels. In time it
costs a millisecond or two a text. `ul2.denoising.rules` has three to copy from.

What a rule may want to know of a text beside its ids comes from the tokenizer when the
text is read: nothing is added to the token store. An EOS reads as a line end, a byte
that is no ASCII as one replacement character.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ul2.denoising.spans import PLACEMENTS

Spans = NDArray[np.int64]  # [M, 2] first token, and the one behind the last


class Budget(NamedTuple):
    """What a row of the mixture declares, for one text."""

    noise: int  # tokens to mask, at most
    spans: int  # to mask them in, at most
    mean_span_length: float  # tokens per span


@dataclasses.dataclass(frozen=True)
class Text:
    """One text: ids, characters, and which belongs to which.

    Attributes:
        tokens: `[L]` ids.
        pieces: characters of every id of the vocabulary.
    """

    tokens: NDArray[np.int32]
    pieces: Sequence[str]

    @functools.cached_property
    def string(self) -> str:
        """All characters."""
        return "".join([self.pieces[token] for token in self.tokens.tolist()])

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """`[L + 1]`: the character at which each token starts, and the end."""
        lengths = [len(self.pieces[token]) for token in self.tokens.tolist()]
        return np.cumsum([0, *lengths])

    def cover(self, characters: Iterable[tuple[int, int]]) -> Spans:
        """Returns the tokens that lie between characters, blanks before them included.

        Where not one lies there as a whole, the span is left out.
        """
        found = np.array(list(characters), np.int64).reshape(-1, 2)
        for row in found:
            while row[0] > 0 and self.string[row[0] - 1] in " \t":
                row[0] -= 1
        first = np.searchsorted(self.offsets, found[:, 0], "left")
        last = np.searchsorted(self.offsets, found[:, 1], "right") - 1
        return np.stack([first, last], axis=1)[first < last]

    def find(self, pattern: str) -> Spans:
        """Returns the tokens of every match of a regular expression."""
        return self.cover(m.span() for m in re.finditer(pattern, self.string, re.S))


class SpanRule(Protocol):
    """What is masked."""

    def __call__(self, text: Text, budget: Budget, rng: np.random.Generator) -> Spans:
        """Returns spans, the best first.

        Args:
            text: to be masked.
            budget: what will be taken of it, at most.
            rng: the only source of chance, so that a batch is a function of its number.
        """


SPAN_RULES: Final[dict[str, SpanRule]] = {}


def spare(num_spans: int, noise: int) -> int:
    """Returns the most spans of a rule that should make `num_spans` on average."""
    return min(noise, num_spans + -(-num_spans // 4))


def span_rule(name: str) -> Callable[[SpanRule], SpanRule]:
    """Registers what follows under a name, for the placement column of a mixture.

    Raises:
        ValueError: the name is that of one of `spans.PLACEMENTS`.
    """
    if name in PLACEMENTS:
        raise ValueError(f"span rule {name!r}: the name of a placement; take another.")

    def register(rule: SpanRule) -> SpanRule:
        SPAN_RULES[name] = rule
        return rule

    return register


def mark(
    name: str,
    tokens: NDArray[Any],
    pieces: Sequence[str],
    budget: Budget,
    rng: np.random.Generator,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns `[C, L]` masks: which tokens are noise, and which start a span.

    Args:
        name: of the rule.
        tokens: `[C, L]` texts.
        pieces: characters of every id.
        budget: of each text.
        rng: of all of them, one after another.

    Raises:
        ValueError: the rule proposes what is no span of the text.
    """
    is_noise = np.zeros(tokens.shape, np.bool_)
    starts = np.zeros(tokens.shape, np.bool_)
    for row, noise, begins in zip(tokens, is_noise, starts, strict=True):
        left = budget
        for first, last in SPAN_RULES[name](Text(row, pieces), budget, rng).tolist():
            if not 0 <= first < last <= len(row):
                raise ValueError(
                    f"span rule {name!r} proposes ({first}, {last}), which is no span "
                    f"of a text of {len(row)} tokens."
                )
            if last - first <= left.noise and not noise[first:last].any():
                noise[first:last] = begins[first] = True
                left = left._replace(
                    noise=left.noise - (last - first), spans=left.spans - 1
                )
            if not (left.noise and left.spans):
                break
    return is_noise, starts
