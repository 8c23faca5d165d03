"""Mixtures: exact shares, the published tables, and errors that say what to do."""

import math
from fractions import Fraction

import numpy as np
import pytest
from denoising_toys import make_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.denoising.mixture import OBJECTIVES, Mixture, from_rows, named


def make_mixture(rates, cap_spans=False):
    rows = [(f"d{i}", None, 3, 0.15, "random", rate) for i, rate in enumerate(rates)]
    return from_rows(rows, cap_spans)


def table(mixture):
    return [
        (d.mode, d.mean_span_length, d.noise_density, d.placement)
        for d in mixture.denoisers
    ]


def test_ul2_is_the_papers_table_with_equal_rates():
    mixture = named("ul2")
    assert sorted(table(mixture), key=str) == sorted(
        [
            ("R", 3, 0.15, "random"),
            ("R", 8, 0.15, "random"),
            ("S", None, 0.25, "suffix"),
            ("X", 3, 0.5, "random"),
            ("X", 8, 0.5, "random"),
            ("X", 64, 0.15, "random"),
            ("X", 64, 0.5, "random"),
        ],
        key=str,
    )
    assert mixture.counts == (1,) * 7


@pytest.mark.parametrize(
    ("objective", "mode_shares"),
    [
        ("ul2", {"R": "2/7", "S": "1/7", "X": "4/7"}),
        ("ul2r", {"R": "1/4", "S": "1/2", "X": "1/4"}),
        ("t5gemma2", {"R": "1/8", "S": "1/2", "X": "3/8"}),
        *(
            (name, {None: "1"})
            for name in OBJECTIVES
            if name in ("causal_lm", "prefix_lm", "span_corruption", "sclm", "unilm")
        ),
    ],
)
def test_objectives_have_their_papers_mode_shares(objective, mode_shares):
    mixture = named(objective)
    found = {}
    for denoiser, count in zip(mixture.denoisers, mixture.counts, strict=True):
        share = Fraction(count, mixture.round_size)
        found[denoiser.mode] = found.get(denoiser.mode, 0) + share
    assert found == {mode: Fraction(share) for mode, share in mode_shares.items()}


@pytest.mark.parametrize(
    ("s_denoiser", "density"), [(None, 0.25), ("quarter", 0.25), ("half", 0.5)]
)
def test_s_denoiser_is_chosen_by_name(s_denoiser, density):
    mixture = named("ul2", s_denoiser=s_denoiser)
    assert mixture.denoisers[2].noise_density == density
    assert table(named("ul2"))[:2] == table(mixture)[:2]


def test_s_denoiser_leaves_fixed_suffixes_and_baselines_alone():
    for objective in ("t5gemma2", "prefix_lm", "unilm"):
        assert named(objective, s_denoiser="quarter") == named(objective)


def test_placement_is_that_of_every_denoiser_with_spans():
    mixture = named("unilm", placement="t5")
    assert [d.placement for d in mixture.denoisers] == ["fixed_suffix", "suffix", "t5"]


@pytest.mark.parametrize(
    ("rates", "counts"),
    [
        ((0.2, 0.3), (2, 3)),
        ((0.1, 0.2, 0.7), (1, 2, 7)),  # whose floats do not add up to one
        ((0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.2), (2, 2, 1, 1, 1, 1, 2)),
        ((1 / 7,) * 7, (1,) * 7),
        ((1 / 3, 2 / 3), (1, 2)),
        ((5, 5, 10), (1, 1, 2)),
        ((1e-3, 0.999), (1, 999)),
        ((np.float64(0.25), 0.75), (1, 3)),
        ((4,), (1,)),
    ],
)
def test_counts_are_those_of_the_written_rates(rates, counts):
    mixture = make_mixture(rates)
    assert mixture.counts == counts
    assert mixture.round_size == sum(counts)
    assert math.isclose(sum(mixture.shares), 1)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 70), st.data()
)
def test_compositions_are_exact_over_a_period_and_one_off_in_a_batch(
    rates, batch_size, data
):
    mixture = make_mixture(rates)
    order = data.draw(st.permutations(range(len(rates))))
    compositions = mixture.compositions(batch_size, order)
    counts = np.array(mixture.counts)
    assert (compositions.sum(axis=1) == batch_size).all()
    period = compositions.sum(axis=0)
    rounds = period.sum() / mixture.round_size
    assert (period == counts * rounds).all()
    # No shorter period could be exact.
    assert len(compositions) == math.lcm(mixture.round_size, batch_size) // batch_size
    wanted = counts * batch_size / mixture.round_size
    for first in range(len(rates)):
        for last in range(first + 1, len(rates) + 1):
            run = list(order[first:last])
            off = compositions[:, run].sum(axis=1) - wanted[run].sum()
            assert np.abs(off).max() < 1


def test_compositions_are_those_of_the_docstring():
    compositions = make_mixture((1, 1, 1)).compositions(4)
    assert compositions.tolist() == [[1, 1, 2], [1, 2, 1], [2, 1, 1]]


@pytest.mark.parametrize(
    ("rates", "problem"),
    [
        ((), r"one rate for each; got \[\] and rates \[\]"),
        ((0.5, 0), r"rates must be positive; got \[0\]"),
        ((0.5, -1), r"rates must be positive; got \[-1\]"),
        ((0.5, math.inf), "rates must be positive"),
        ((0.5, math.nan), "rates must be positive"),
        ((0.123457, 0.876543), "exact only over 1000000 examples"),
    ],
)
def test_impossible_rates_are_refused(rates, problem):
    with pytest.raises(ValueError, match=problem):
        make_mixture(rates)


def test_denoisers_need_different_names_and_a_rate_each():
    denoiser = make_mixture((1,)).denoisers[0]
    with pytest.raises(ValueError, match="different names"):
        Mixture((denoiser, denoiser), (1, 1))
    with pytest.raises(ValueError, match="one rate for each"):
        Mixture((denoiser,), (1, 1))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"objective 'ul3' is not one of \['causal_lm'"
    ):
        named("ul3")
    with pytest.raises(ValueError, match=r"S_DENOISER='third' is not one of \['half'"):
        named("ul2", s_denoiser="third")
    with pytest.raises(ValueError, match="PLACEMENT='edge' is not one of"):
        named("ul2", placement="edge")


@pytest.mark.parametrize(("length", "needed"), [(512, 127), (1024, 255)])
def test_too_few_sentinels_name_the_number_and_both_ways_out(length, needed):
    # One mode token less text than T5's 128 and 256 at these lengths.
    vocab = make_vocab(100)
    with pytest.raises(ValueError) as error:
        named("ul2").fit(length, length, vocab)
    message = str(error.value)
    assert f"{needed} sentinels needed by denoiser 'x_3_50'" in message
    assert f"has 100; make the store with --num_sentinels={needed} or more" in message
    assert "CAP_SPANS = True" in message
    # Both ways out, as told.
    named("ul2").fit(length, length, make_vocab(needed))
    capped = named("ul2", cap_spans=True)
    fits = capped.fit(length, length, vocab)
    assert max(capped.sentinels_needed(fits)) == 100


def test_suffixes_need_no_sentinels():
    mixture = named("prefix_lm")
    fits = mixture.fit(64, 64, make_vocab(1))
    assert mixture.sentinels_needed(fits) == (0,)
