"""(inputs, targets) -> `Batch`: what each architecture is shown of an example.

    inputs       [S] 11 12 13 <eos>
    targets      14 15 <eos>

An encoder-decoder reads the inputs in its encoder and is fed the targets shifted
right; a decoder-only model reads both as one sequence, sees the inputs from both
sides and learns the targets alone (seqio's PrefixLMFeatureConverter; UL2 paper,
section 3.2):

    encoder          [S]  11   12   13   <eos>
    decoder reads    <pad> 14  15              |  <pad> [S] 11 12 13  <eos> 14 15
    decoder learns   14    15  <eos>           |  [S]   11  12 13 <eos> 14  15 <eos>
    loss weights     1     1   1               |  0     0   0  0  0     1   1  1
    prefix length                              |  6: the inputs and the place that
                                               |     reads the last of them
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ul2.batch import Batch, Packed
from ul2.denoising.denoisers import Examples
from ul2.vocab import Vocab


class RowShape(Protocol):
    """How wide the rows of a batch are."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of a row on each side: (encoder, decoder) or (decoder,)."""

    @property
    def views(self) -> tuple[int, ...]:
        """Longest example on each side."""


class _Grid(NamedTuple):
    """Tokens of every example of every row, each padded to the longest."""

    tokens: NDArray[np.int32]  # [R, N, L]
    lengths: NDArray[np.int64]  # [R, N]


def to_batch(
    examples: tuple[Examples, ...],
    dealt: NDArray[np.int64],
    shape: RowShape,
    vocab: Vocab,
) -> Batch:
    """Lays examples out in packed rows.

    Args:
        examples: element i holds the examples of denoiser i.
        dealt: `[rows, examples_per_row]` example numbers, all rows or one host's.
        shape: widths of the rows; two of them for an encoder-decoder.
        vocab: the decoder's start id and the pad id.
    """
    denoisers = np.repeat(
        np.arange(len(examples)), [len(made.inputs) for made in examples]
    )
    inputs = _grid([made.inputs for made in examples], _lengths(examples, 1), dealt)
    targets = _grid([made.targets for made in examples], _lengths(examples, 3), dealt)
    ids = denoisers[dealt]
    if len(shape.widths) == 2:
        encoder = _packed(inputs, shape.widths[0], shape.views[0])
        learned, prefix_lengths = targets, np.zeros_like(dealt)
    else:
        encoder = None
        learned, prefix_lengths = _join(inputs, targets), inputs.lengths + 1
    decoder = _packed(learned, shape.widths[-1], shape.views[-1])
    return _batch(encoder, decoder, prefix_lengths, ids, vocab)


def _lengths(examples: tuple[Examples, ...], field: int) -> NDArray[np.int64]:
    return np.concatenate([made[field] for made in examples])


def _grid(
    matrices: list[NDArray[np.int32]],
    lengths: NDArray[np.int64],
    dealt: NDArray[np.int64],
) -> _Grid:
    """Looks the dealt examples up in the denoisers' matrices."""
    longest = max(matrix.shape[1] for matrix in matrices)
    stacked = np.zeros((sum(map(len, matrices)), longest), np.int32)
    first = 0
    for matrix in matrices:
        stacked[first : first + len(matrix), : matrix.shape[1]] = matrix
        first += len(matrix)
    return _Grid(stacked[dealt], lengths[dealt])


def _join(inputs: _Grid, targets: _Grid) -> _Grid:
    """Puts each example's targets behind its inputs."""
    lengths = inputs.lengths + targets.lengths
    tokens = np.zeros((*lengths.shape, int(lengths.max())), np.int32)
    columns = np.arange(tokens.shape[-1])
    head = columns < inputs.lengths[..., None]
    tokens[head] = inputs.tokens[_within(inputs)]
    tokens[~head & (columns < lengths[..., None])] = targets.tokens[_within(targets)]
    return _Grid(tokens, lengths)


def _within(grid: _Grid) -> NDArray[np.bool_]:
    """`[R, N, L]`: where a token stands, not padding."""
    return np.arange(grid.tokens.shape[-1]) < grid.lengths[..., None]


def _packed(grid: _Grid, width: int, view: int) -> Packed:
    """Sets the examples of each row back to back."""
    rows, per_row = grid.lengths.shape
    ends = np.cumsum(grid.lengths, axis=1)
    starts = ends - grid.lengths
    assert ends[:, -1].max(initial=0) <= width, (ends[:, -1].max(), width)
    filled = np.arange(width) < ends[:, -1:]
    within = _within(grid)
    shape = grid.tokens.shape

    def scatter(values: NDArray[np.int32]) -> NDArray[np.int32]:
        packed = np.zeros((rows, width), np.int32)
        packed[filled] = values[within]
        return packed

    segments = np.arange(1, per_row + 1, dtype=np.int32)[:, None]
    columns = starts[..., None] + np.arange(view)
    return Packed(
        tokens=scatter(grid.tokens),
        segment_ids=scatter(np.broadcast_to(segments, shape)),
        positions=scatter(np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)),
        columns=np.where(columns < ends[..., None], columns, -1).astype(np.int32),
    )


def _batch(
    encoder: Packed | None,
    decoder: Packed,
    prefix_lengths: NDArray[np.int64],
    denoiser_ids: NDArray[np.int64],
    vocab: Vocab,
) -> Batch:
    """Shifts the targets right and weighs them."""
    targets, segments = decoder.tokens, decoder.segment_ids
    shifted = np.roll(targets, 1, axis=1)
    shifted[decoder.positions == 0] = vocab.start_id
    present = segments > 0
    rows = np.arange(len(targets))[:, None]
    prefix = prefix_lengths[rows, np.maximum(segments - 1, 0)]
    return Batch(
        encoder=encoder,
        decoder=decoder._replace(tokens=np.where(present, shifted, vocab.pad_id)),
        targets=targets,
        # The last place of the prefix predicts the first target.
        loss_weights=(present & (decoder.positions >= prefix - 1)).astype(np.float32),
        denoiser_ids=np.where(
            present, denoiser_ids[rows, np.maximum(segments - 1, 0)], -1
        ).astype(np.int32),
        prefix_lengths=prefix_lengths.astype(np.int32),
    )
