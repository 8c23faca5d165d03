"""Texts with blanks: what a person writes, and what a denoising model reads.

text      The ___ sat on the ___.
inputs    [R]The<extra_id_0> sat on the<extra_id_1>.<eos>
output    <extra_id_0> cat<extra_id_1> mat<eos>
filled    The cat sat on the mat.

Tokens bring their space with them, so the space before a blank belongs to the span.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from ul2.vocab import Vocab

BLANK: Final = "___"
_SENTINEL_NAME: Final = re.compile(r"<extra_id_(\d{1,5})>")

Encode = Callable[[str], list[int]]


class Prompt(NamedTuple):
    """A text as ids, and how the output must begin."""

    inputs: list[int]
    forced: list[int]
    num_blanks: int = 0  # sentinels in the inputs
    num_cut: int = 0  # ids of the text that were too many


def make_prompt(
    text: str,
    mode: str | None,
    encode: Encode,
    vocab: Vocab,
    *,
    prefix: str = "",
    max_inputs: int | None = None,
) -> Prompt:
    """Returns the ids of a text: its mode first, a sentinel for every blank, EOS last.

    With a blank, the output is made to start with the first sentinel.

    Args:
        text: with or without blanks.
        mode: R, S, X or None.
        encode: text to ids.
        vocab: sentinels and modes.
        prefix: text that the output must begin with, behind the first sentinel if
            there is one.
        max_inputs: ids to keep, mode and EOS included; the end of the text is cut
            off. None keeps all.

    Raises:
        ValueError: there are more blanks than sentinels, the mode is unknown, or
            `max_inputs` has no room for any text.
    """
    pieces = text.split(BLANK)
    if len(pieces) - 1 > len(vocab.sentinel_ids):
        raise ValueError(
            f"{len(pieces) - 1} blanks, but the vocabulary has "
            f"{len(vocab.sentinel_ids)} sentinels."
        )
    *before_blanks, last = pieces
    ids: list[int] = []
    for piece, sentinel in zip(before_blanks, vocab.sentinel_ids, strict=False):
        ids += [*encode(piece.removesuffix(" ")), sentinel]
    ids += encode(last)
    announced = vocab.mode(mode)
    room = len(ids) if max_inputs is None else max_inputs - len(announced) - 1
    if ids and room < 1:
        raise ValueError(
            f"max_inputs={max_inputs} has no room for text beside the mode and EOS."
        )
    kept = ids[:room]
    sentinels = [token for token in kept if token in vocab.sentinel_ids]
    return Prompt(
        inputs=[*announced, *kept, vocab.eos_id],
        forced=[*sentinels[:1], *encode(prefix)] if prefix else sentinels[:1],
        num_blanks=len(sentinels),
        num_cut=len(ids) - len(kept),
    )


def by_length(prompts: Sequence[Prompt], at_once: int) -> Iterator[list[int]]:
    """Yields the places of prompts of like lengths, the longest first.

    If memory does not suffice, the first batch says so.
    """
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place].inputs))
    for start in range(0, len(order), at_once):
        yield order[start : start + at_once]


def encode_output(text: str, encode: Encode, vocab: Vocab) -> list[int]:
    """Returns the ids of an output in which sentinels are written as their names.

    "<extra_id_0> cat<extra_id_1> mat"  ->  150 " cat" 151 " mat"

    Only the outputs of texts with blanks have sentinels; elsewhere such a name is text.

    Raises:
        ValueError: the vocabulary has no such sentinel.
    """
    before, *rest = _SENTINEL_NAME.split(text)
    ids = encode(before) if before else []
    for index, span in zip(rest[::2], rest[1::2], strict=True):
        if int(index) >= len(vocab.sentinel_ids):
            raise ValueError(
                f"<extra_id_{index}> is not one of the {len(vocab.sentinel_ids)} "
                "sentinels of the vocabulary."
            )
        ids += [vocab.sentinel_ids[int(index)], *encode(span)]
    return ids


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
