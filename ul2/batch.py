"""`Batch`: everything a model and its loss read, and nothing else.

Rows are *packed*: the tokens of several examples stand one after another, with
padding only at the end of the row. Work on single tokens (projections,
feed-forward, norms, loss) runs on the packed row; attention runs on the examples,
which `columns` cuts out of the row. No mask separates the examples of a row, so
nothing can leak between them.

    tokens       11 12 13 21 22 31 32 33  0  0     three examples, two pads
    segment_ids   1  1  1  2  2  3  3  3  0  0
    positions     0  1  2  0  1  0  1  2  0  0
    columns      [0 1 2] [3 4 -] [5 6 7]           "-" is -1: the example is shorter

Legend of the shapes: B rows, N examples per row, T columns of a row, L the longest
example. Padding is id 0 with segment 0. All arrays are int32 but `loss_weights`.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

# numpy on the host, jax in a compiled function.
Array = Any


class Packed(NamedTuple):
    """Token rows, and where each example lies in them."""

    tokens: Array  # [B, T]
    segment_ids: Array  # [B, T], 1..N; 0 on padding
    positions: Array  # [B, T], position within the example; 0 on padding
    columns: Array  # [B, N, L], column of each example's positions; -1 past its end


class Batch(NamedTuple):
    """One global batch, or one host's or microbatch's rows of it.

    Example n of a decoder row reads example n of the encoder row beside it.
    """

    encoder: Packed | None  # None for decoder-only models
    decoder: Packed  # tokens are the decoder's inputs: targets shifted right
    targets: Array  # [B, T], what each decoder column must predict
    loss_weights: Array  # [B, T] float32, 0 on padding and on a decoder-only prefix
    denoiser_ids: Array  # [B, T], which denoiser of the mixture; -1 on padding
    prefix_lengths: Array  # [B, N], leading decoder positions that see each other


class HostRows(NamedTuple):
    """Which of `num_parts` equal parts of a batch's rows a host reads, in this order.

    rows a b c d e f g h,  parts (0, 2) of 4   ->   a b e f

    The chips of a host are a block of a torus: they need not be neighbours in a mesh.
    """

    parts: tuple[int, ...]
    num_parts: int

    def check(self, rows: int) -> None:
        """Checks that the rows of a batch divide.

        Raises:
            ValueError: they do not.
        """
        if rows % self.num_parts:
            raise ValueError(
                f"{rows} rows do not divide into {self.num_parts} parts, one for each "
                "group of devices that shares rows; use a BATCH_SIZE that is a "
                f"multiple of {self.num_parts}."
            )

    def of(self, rows: Array) -> Array:
        """Returns the host's part of an array of rows."""
        cut = rows.reshape(self.num_parts, -1, *rows.shape[1:])
        return cut[list(self.parts)].reshape(-1, *rows.shape[1:])


ALL_ROWS: Final = HostRows((0,), 1)


def one_per_row(
    rows: Sequence[Sequence[int]], length: int | None = None, *, pad_id: int = 0
) -> Packed:
    """Returns rows of one example each, padded to `length` or to the longest.

        rows (11 12), (21)   ->   tokens [11 12] [21 0], columns [[0 1]] [[0 -1]]

    Segment 1 is the example, segment 0 what is behind it.
    """
    lengths = np.array([len(row) for row in rows])[:, None]
    places = np.arange(length or int(lengths.max()), dtype=np.int32)
    present = places < lengths
    tokens = np.full(present.shape, pad_id, np.int32)
    tokens[present] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return Packed(
        tokens=tokens,
        segment_ids=present.astype(np.int32),
        positions=np.where(present, places, 0).astype(np.int32),
        columns=np.where(present, places, -1).astype(np.int32)[:, None],
    )


def padding_fraction(batch: Batch) -> float:
    """Returns the share of columns, encoder and decoder together, that are padding."""
    sides = [side for side in (batch.encoder, batch.decoder) if side is not None]
    columns = sum(np.size(side.segment_ids) for side in sides)
    return sum(int(np.sum(side.segment_ids == 0)) for side in sides) / columns
