import numpy as np

from ul2.batch import Batch, one_per_row, padding_fraction


def test_one_per_row_is_its_worked_example():
    packed = one_per_row([(11, 12), (21,)])
    assert packed.tokens.tolist() == [[11, 12], [21, 0]]
    assert packed.segment_ids.tolist() == [[1, 1], [1, 0]]
    assert packed.positions.tolist() == [[0, 1], [0, 0]]
    assert packed.columns.tolist() == [[[0, 1]], [[0, -1]]]
    assert all(array.dtype == np.int32 for array in packed)


def test_one_per_row_pads_to_a_length():
    packed = one_per_row([(11,)], 4, pad_id=9)
    assert packed.tokens.tolist() == [[11, 9, 9, 9]]
    assert packed.columns.shape == (1, 1, 4)


def test_padding_counts_both_sides():
    side = one_per_row([(11, 12), (21,)])
    zeros = np.zeros((2, 2), np.int32)
    batch = Batch(None, side, zeros, zeros, zeros, zeros)
    assert padding_fraction(batch) == 1 / 4
    full = one_per_row([(1, 2), (3, 4)])
    assert padding_fraction(batch._replace(encoder=full)) == 1 / 8
