"""Views of tensors read the elements that numpy would."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ul2.interop import tensors
from ul2.interop.tensors import (
    by_rows,
    cast,
    contiguous,
    dtype_of,
    filled,
    from_array,
    layer,
    merged,
    split,
    stacked,
    transposed,
)

ARRAY = np.arange(2 * 6 * 4, dtype=np.float32).reshape(2, 6, 4)
VIEWS = {
    "itself": (lambda t: t, ARRAY),
    "transposed": (transposed, ARRAY.T),
    "ordered": (lambda t: transposed(t, (1, 0, 2)), ARRAY.transpose(1, 0, 2)),
    "layer": (lambda t: layer(t, 1), ARRAY[1]),
    "stacked": (
        lambda t: stacked([layer(t, 1), layer(t, 0), layer(t, 1)]),
        ARRAY[[1, 0, 1]],
    ),
    "merged": (lambda t: merged(t, 1), ARRAY.reshape(2, 24)),
    "merged first": (lambda t: merged(t, 0), ARRAY.reshape(12, 4)),
    "split": (lambda t: split(t, 1, 3), ARRAY.reshape(2, 2, 3, 4)),
    "split and moved": (
        lambda t: transposed(split(t, 1, 2), (1, 0, 2, 3)),
        ARRAY.reshape(2, 3, 2, 4).transpose(1, 0, 2, 3),
    ),
    "cast": (lambda t: cast(t, np.float64), ARRAY.astype(np.float64)),
}


@st.composite
def regions(draw, shape):
    """Draws a region of at least one element."""
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    return tuple(
        slice(start, draw(st.integers(start + 1, n)))
        for start, n in zip(starts, shape, strict=True)
    )


@pytest.mark.parametrize("view", VIEWS)
@given(data=st.data())
def test_view_reads_any_region_like_numpy(view, data):
    make, expected = VIEWS[view]
    viewed = make(from_array("a", ARRAY))
    assert viewed.shape == expected.shape
    region = data.draw(regions(expected.shape))
    np.testing.assert_array_equal(viewed.read(region), expected[region])
    assert viewed.read(region).dtype == viewed.dtype


@pytest.mark.parametrize("view", VIEWS)
def test_pieces_cover_a_view_once(view, monkeypatch):
    monkeypatch.setattr(tensors, "PIECE_BYTES", 24)
    make, expected = VIEWS[view]
    piece = by_rows(ARRAY.shape, ARRAY.dtype)
    whole = from_array("a", ARRAY)
    viewed = make(tensors.dataclasses.replace(whole, piece=piece))
    count = np.zeros(expected.shape, int)
    for region in viewed.regions():
        count[region] += 1
        np.testing.assert_array_equal(viewed.read(region), expected[region])
    assert (count == 1).all()


@given(
    shape=st.lists(st.integers(1, 7), min_size=0, max_size=4),
    room=st.integers(4, 200),
    data=st.data(),
)
def test_contiguous_tensor_reads_the_bytes_of_a_region_alone(shape, room, data):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    content = array.tobytes()
    asked = []

    def read_bytes(start, stop):
        asked.append(stop - start)
        return content[start:stop]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "PIECE_BYTES", room)
        tensor = contiguous("a", shape, array.dtype, read_bytes)
        region = data.draw(regions(shape))
        np.testing.assert_array_equal(tensor.read(region), array[region])
    row = 4 * int(np.prod(shape[1:], dtype=int))
    # Whole rows, and no more of them at once than there is room for.
    assert all(size <= max(room, row) for size in asked)


@given(
    shape=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    room=st.integers(4, 4000),
)
def test_pieces_by_rows_fit_and_are_contiguous(shape, room):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "PIECE_BYTES", room)
        piece = by_rows(shape, np.float32)
    assert 4 * np.prod(piece) <= max(room, 4)
    whole = [p == n for p, n in zip(piece, shape, strict=True)]
    single = [p == 1 for p in piece]
    first = next((i for i, one in enumerate(single) if not one), len(shape) - 1)
    assert all(whole[first + 1 :])


def test_tensors_of_different_shape_or_dtype_do_not_stack():
    first = from_array("a", ARRAY)
    with pytest.raises(ValueError, match=r"b is float32\[6, 4\], but a is"):
        stacked([first, from_array("b", ARRAY[0])])
    with pytest.raises(ValueError, match="c is float64"):
        stacked([first, from_array("c", ARRAY.astype(np.float64))])


def test_filled_tensor_holds_one_value():
    np.testing.assert_array_equal(
        filled("ones", (3, 2), 1).read((slice(1, 3), slice(0, 1))),
        np.ones((2, 1), np.float32),
    )


def test_cast_to_bfloat16_rounds_to_nearest_even():
    # bfloat16 keeps 8 bits: 1 + 2^-8 lies halfway, and 1 has the even last bit.
    array = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-12], np.float32)
    rounded = cast(from_array("a", array), dtype_of("bfloat16")).read()
    assert rounded.astype(np.float32).tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]


@pytest.mark.parametrize("name", ["float99", "O", "S4", "V8", "", "f4,f4"])
def test_what_is_no_dtype_of_numbers_is_refused(name):
    with pytest.raises(ValueError, match=f"{name!r} is no dtype"):
        dtype_of(name)
