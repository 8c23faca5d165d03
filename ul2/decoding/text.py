"""Texts with blanks: what a person writes, and what a denoising model reads.

text      The ___ sat on the ___.
inputs    [R]The<extra_id_0> sat on the<extra_id_1>.<eos>
output    <extra_id_0> cat<extra_id_1> mat<eos>
filled    The cat sat on the mat.

Tokens bring their space with them, so the space before a blank belongs to the span.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ul2.vocab import Vocab

BLANK: Final = "___"


class Prompt(NamedTuple):
    """A text as ids, and how the output must begin."""

    inputs: list[int]
    forced: list[int]


def make_prompt(
    text: str, mode: str | None, encode: Callable[[str], list[int]], vocab: Vocab
) -> Prompt:
    """Returns the ids of a text: its mode first, a sentinel for every blank, EOS last.

    With a blank, the output is made to start with the first sentinel.

    Raises:
        ValueError: there are more blanks than sentinels, or the mode is unknown.
    """
    pieces = text.split(BLANK)
    if len(pieces) - 1 > len(vocab.sentinel_ids):
        raise ValueError(
            f"{len(pieces) - 1} blanks, but the vocabulary has "
            f"{len(vocab.sentinel_ids)} sentinels."
        )
    *before_blanks, last = pieces
    inputs = list(vocab.mode(mode))
    for piece, sentinel in zip(before_blanks, vocab.sentinel_ids, strict=False):
        inputs += [*encode(piece.removesuffix(" ")), sentinel]
    inputs += encode(last)
    forced = list(vocab.sentinel_ids[:1]) if len(pieces) > 1 else []
    return Prompt([*inputs, vocab.eos_id], forced)


def fill(
    text: str,
    output: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    vocab: Vocab,
) -> str:
    """Returns the text with its blanks filled from the output's spans.

    A text without blanks is continued. A blank whose sentinel the model did not write
    stays a blank.
    """
    pieces = text.split(BLANK)
    if len(pieces) == 1:
        return text + decode_inside(output, decode, vocab)
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in output:
        if token in vocab.sentinel_ids:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    filled = pieces[0]
    for sentinel, piece in zip(vocab.sentinel_ids, pieces[1:], strict=False):
        span = BLANK
        if sentinel in spans:
            span = decode_inside(spans[sentinel], decode, vocab)
        if filled.endswith(" "):
            span = span.removeprefix(" ")
        filled += span + piece
    return filled


def decode_inside(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], vocab: Vocab
) -> str:
    """Decodes ids from the middle of a text: some tokenizers drop a leading space."""
    before = vocab.sentinel_ids[:1]
    return decode([*before, *ids]).removeprefix(decode(before))
