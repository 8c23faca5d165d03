"""Every example has one place, no row overflows, and next to nothing is padding."""

import numpy as np
import pytest
from data_toys import make_stream
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.batch import padding_fraction
from ul2.data.loader import Source
from ul2.data.packing import ARCHITECTURES, pack
from ul2.denoising.mixture import OBJECTIVES


def row_loads(stream, packing, batch):
    """Returns the columns that each row's examples take, `[rows, sides]`."""
    examples = stream.examples(batch)
    sides = np.stack(
        [
            np.concatenate([made.input_lengths for made in examples]),
            np.concatenate([made.target_lengths for made in examples]),
        ],
        axis=1,
    )
    if len(packing.widths) == 1:
        sides = sides.sum(axis=1, keepdims=True)
    dealt = packing.deal(stream.plan(batch).composition)
    return sides[dealt].sum(axis=1)


def assert_dealt(stream, packing, batches):
    for batch in batches:
        dealt = packing.deal(stream.plan(batch).composition)
        assert dealt.shape == (packing.rows, packing.examples_per_row)
        assert sorted(dealt.ravel()) == list(range(stream.batch_size))
        assert (row_loads(stream, packing, batch) <= packing.widths).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("batch_size", [16, 112, 128])
def test_ul2_rows_have_at_most_three_percent_of_padding(
    architecture, length, batch_size
):
    stream = make_stream(length=length, batch_size=batch_size)
    packing = pack(stream, architecture)
    assert packing.padding_fraction <= 0.03
    assert_dealt(stream, packing, [0])
    # Measured, not only planned.
    measured = padding_fraction(Source(stream, packing)[0])
    assert measured <= 0.03
    assert measured == pytest.approx(packing.padding_fraction, abs=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_planned_padding_is_what_a_period_has(architecture):
    stream = make_stream(batch_size=16)
    packing = pack(stream, architecture)
    source = Source(stream, packing)
    measured = np.mean([padding_fraction(source[batch]) for batch in range(7)])
    # All but the one S-example of odd batches is known beforehand.
    assert measured == pytest.approx(packing.padding_fraction, abs=0.005)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.sampled_from(sorted(OBJECTIVES)),
    st.sampled_from(ARCHITECTURES),
    st.integers(1, 24),
    st.sampled_from([16, 64]),
    st.data(),
)
def test_every_example_is_dealt_once_and_no_row_overflows(
    objective, architecture, batch_size, length, data
):
    stream = make_stream(objective, length=length, batch_size=batch_size)
    divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
    per_row = data.draw(st.sampled_from([None, *divisors]))
    packing = pack(stream, architecture, examples_per_row=per_row)
    assert packing.rows * packing.examples_per_row == batch_size
    assert packing.examples_per_row == (per_row or packing.examples_per_row)
    assert all(width % 8 == 0 for width in packing.widths)
    assert_dealt(stream, packing, range(len(stream.compositions) + 1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_views_hold_the_longest_example_and_no_more(architecture):
    stream = make_stream(length=128)
    packing = pack(stream, architecture)
    fits = stream.fits
    if architecture == "encoder_decoder":
        assert packing.views == (
            max(fit.inputs for fit in fits),
            max(fit.targets for fit in fits),
        )
    else:
        lengths = [
            int((made.input_lengths + made.target_lengths).max())
            for made in stream.examples(0)
        ]
        assert packing.views == (max(lengths),)


def test_mirrored_suffixes_fill_a_row_whatever_was_drawn():
    stream = make_stream("prefix_lm", batch_size=16)
    packing = pack(stream, "encoder_decoder", examples_per_row=16)
    # Eight pairs of 63 tokens, an EOS to each side of each example.
    assert packing.widths == (8 * 65, 8 * 65)
    for batch in range(5):
        assert row_loads(stream, packing, batch).tolist() == [[520, 520]]
    assert packing.padding_fraction == 0
    # One to a row, each must have room for the longest.
    alone = pack(stream, "encoder_decoder", examples_per_row=1)
    assert alone.padding_fraction > 0.45


def test_few_examples_per_row_are_preferred_when_they_waste_little():
    stream = make_stream("span_corruption", length=512, batch_size=16)
    packing = pack(stream, "decoder_only")
    assert (packing.rows, packing.widths) == (16, (632,))  # 512 + 114, rounded up
    assert packing.padding_fraction == pytest.approx(6 / 632)


def test_rows_divide_over_the_shards():
    stream = make_stream(batch_size=56)
    for shards in (1, 2, 4, 8):
        packing = pack(stream, "encoder_decoder", shards=shards)
        assert packing.rows % shards == 0
        assert_dealt(stream, packing, range(2))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"architecture": "rnn"}, "architecture='rnn' is not in"),
        ({"shards": 4}, "BATCH_SIZE=14 .* over 4 parts .* a multiple of 4, such as 16"),
        ({"examples_per_row": 3}, "EXAMPLES_PER_ROW=3 .* use a divisor of 14"),
        ({"examples_per_row": 14, "shards": 2}, "does not divide the 7 examples"),
        ({"examples_per_row": -1}, "EXAMPLES_PER_ROW=-1 does not divide"),
        ({"examples_per_row": 0}, "EXAMPLES_PER_ROW=0 does not divide"),
    ],
)
def test_batches_that_do_not_divide_are_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        pack(make_stream(), **{"architecture": "decoder_only", **options})
