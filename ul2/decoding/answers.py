"""Rows of text to rows of text: prompts made, decoded together, blanks filled."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from ul2.decoding.greedy import greedy
from ul2.decoding.text import fill, make_prompt
from ul2.vocab import Vocab

# Decoding holds the activations of this many rows.
_ROWS_AT_ONCE: Final = 32


class Tokenizer(Protocol):
    """What turns text into ids and back."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without EOS."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, sentinels as their names."""


def answer(
    model: Any,
    tokenizer: Tokenizer,
    vocab: Vocab,
    rows: Sequence[dict[str, Any]],
    *,
    mode: str | None,
    max_tokens: int,
) -> list[dict[str, Any]]:
    """Fills the blanks of texts, or goes on with them, greedily.

    Args:
        model: an `EncoderDecoder` or a `DecoderOnly`.
        tokenizer: of the text.
        vocab: sentinels and modes.
        rows: each with `inputs`, and its own `mode` if it has one.
        mode: R, S, X or none, for rows without one.
        max_tokens: longest output.

    Returns:
        The rows with `mode`, `prediction` (the output) and `filled`.
    """
    modes = [row.get("mode", mode) for row in rows]
    modes = [None if one == "none" else one for one in modes]
    prompts = [
        make_prompt(row["inputs"], one, tokenizer.encode, vocab)
        for row, one in zip(rows, modes, strict=True)
    ]
    outputs: list[list[int]] = []
    for start in range(0, len(prompts), _ROWS_AT_ONCE):
        some = prompts[start : start + _ROWS_AT_ONCE]
        outputs += greedy(
            model,
            [prompt.inputs for prompt in some],
            vocab,
            max_tokens=max_tokens,
            forced=[prompt.forced for prompt in some],
        )
    return [
        {
            **row,
            "mode": one,
            "prediction": tokenizer.decode(output),
            "filled": fill(row["inputs"], output, tokenizer.decode, vocab),
        }
        for row, one, output in zip(rows, modes, outputs, strict=True)
    ]
