"""Examples to decode, laid out in groups of one shape.

Prompts are read in shapes that fit them closely, and written on in rows of few sizes,
so that prompts of many lengths share them:

    inputs of   5    60   70   200   300      tokens
    read in     8    64   96   256   384      columns
    kept in    64    64  256   256   512

What shapes an example is run in depends on that example alone, and a group always has
the same number of rows, so the outcome of an example does not depend on its company,
not even in the last bit.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Int32
from numpy.typing import NDArray

from ul2.batch import Batch, Packed, one_per_row
from ul2.vocab import Vocab

# Lengths that programs are compiled for: 1, 8, 12, 16, 24, 32, 48, 64, ...
_SHORTEST: Final = 8
# Columns that rows have for what was read; more are powers of two. Attention to columns
# that nobody fills costs less than rows that nobody fills, while they are short.
_FEW_ROOMS: Final = (1, 64, 256)


class Example(NamedTuple):
    """One example, as ids."""

    place: int  # among those that were given
    number: int  # of the user's
    inputs: list[int]  # mode and EOS included
    forced: list[int]
    blanks: int  # sentinels to write in order; -1 for any or none
    max_tokens: int  # of its output: forced ones and EOS are part of it


class Shape(NamedTuple):
    """What a program that reads is compiled for."""

    inputs: int  # columns of the encoder; 0 without one
    prompt: int  # columns that the decoder reads before it writes
    forced: int  # columns of the forced tokens
    fills_blanks: bool

    @property
    def room(self) -> "Shape":
        """What the program that writes on is compiled for."""
        if self.inputs:
            return self._replace(inputs=_room(self.inputs))
        return self._replace(prompt=_room(self.prompt))


class Group(NamedTuple):
    """Prompts of one shape; the last ones may be empty."""

    batch: Batch
    ends: Int32[np.ndarray, " E"]  # column of the last token of each prompt
    forced: Int32[np.ndarray, "E F"]


def bucket(length: int) -> int:
    """Returns the least length that programs are compiled for and that holds this.

    0 -> 0, 1 -> 1, 2..8 -> 8, 9..12 -> 12, 13..16 -> 16, 17..24 -> 24, 25..32 -> 32
    """
    if length <= 1:
        return length
    power = max(_SHORTEST, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > _SHORTEST and length <= power * 3 // 4 else power


def _room(length: int) -> int:
    """Returns the columns that are kept for so many.

    1 -> 1, 8..64 -> 64, 96..256 -> 256, 384..512 -> 512, 768..1024 -> 1024
    """
    enough = [room for room in _FEW_ROOMS if room >= length]
    return enough[0] if enough else 1 << (length - 1).bit_length()


def by_room(
    examples: Iterable[Example], *, has_encoder: bool, at_once: int
) -> Iterator[tuple[Shape, list[tuple[Shape, list[Example]]]]]:
    """Yields what shares rows: the room, and groups of one shape, the longest first.

    If memory does not suffice, it shows at once.

    Args:
        examples: in any order; those of one shape keep theirs.
        has_encoder: whether the model has one.
        at_once: examples of a group, at most.
    """
    alike: dict[Shape, list[Example]] = {}
    for example in examples:
        alike.setdefault(_shape(example, has_encoder), []).append(example)
    rooms: dict[Shape, list[tuple[Shape, list[Example]]]] = {}
    for shape in sorted(alike, reverse=True):
        some = alike[shape]
        rooms.setdefault(shape.room, []).extend(
            (shape, some[first : first + at_once])
            for first in range(0, len(some), at_once)
        )
    for room in sorted(rooms, reverse=True):
        yield room, rooms[room]


def _shape(example: Example, has_encoder: bool) -> Shape:
    forced, fills_blanks = len(example.forced), example.blanks >= 0
    inputs = bucket(len(example.inputs)) if has_encoder else 0
    read = 0 if has_encoder else len(example.inputs)
    return Shape(inputs, bucket(1 + read + forced), bucket(forced), fills_blanks)


def lay_out(
    examples: Sequence[Example], shape: Shape, vocab: Vocab, rows: int
) -> Group:
    """Makes the arrays of a group; empty rows read the start id alone."""
    empty = Example(-1, 0, [vocab.eos_id], [], -1, 0)
    filled = [*examples, *[empty] * (rows - len(examples))]
    prompts = [
        [vocab.start_id, *(() if shape.inputs else row.inputs), *row.forced]
        for row in filled
    ]
    encoder: Packed | None = None
    if shape.inputs:
        inputs = [row.inputs for row in filled]
        encoder = one_per_row(inputs, shape.inputs, pad_id=vocab.pad_id)
    decoder = one_per_row(prompts, shape.prompt, pad_id=vocab.pad_id)
    forced = np.full((rows, shape.forced), -1, np.int32)
    for line, row in zip(forced, filled, strict=True):
        line[shape.forced - len(row.forced) :] = row.forced
    prefixes = [0 if shape.inputs else 1 + len(row.inputs) for row in filled]
    return Group(
        batch=Batch(
            encoder=encoder,
            decoder=decoder,
            targets=decoder.tokens,
            loss_weights=np.zeros(decoder.tokens.shape, np.float32),
            denoiser_ids=np.full(decoder.tokens.shape, -1, np.int32),
            prefix_lengths=_ints(prefixes)[:, None],
        ),
        ends=_ints([len(prompt) - 1 for prompt in prompts]),
        forced=forced,
    )


def _ints(values: Sequence[int]) -> NDArray[Any]:
    return np.array(values, np.int32)
