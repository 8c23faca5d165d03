"""Span placement against its definitions, and against T5's mask in a restatement."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.denoising import spans

# Chi-square quantiles at 1 - 1e-4, by degrees of freedom (tables).
CHI_SQUARE = {8: 31.8, 9: 33.7, 19: 50.8, 23: 57.0}


def assert_uniform(draws, kinds):
    """Asserts that each of `kinds` is drawn, nothing else, and all equally often."""
    found = dict.fromkeys(kinds, 0)
    for draw in draws:
        found[tuple(int(x) for x in draw)] += 1  # KeyError: not one of the kinds
    counts = np.array(list(found.values()))
    expected = len(draws) / len(kinds)
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE[len(kinds) - 1]


def compositions(total, parts, minimum):
    return [
        division
        for division in itertools.product(range(minimum, total + 1), repeat=parts)
        if sum(division) == total
    ]


@pytest.mark.parametrize(("total", "minimum", "kinds"), [(6, 1, 10), (3, 0, 10)])
def test_compose_draws_every_division_equally_often(total, minimum, kinds):
    divisions = compositions(total, 3, minimum)
    assert len(divisions) == kinds
    rng = np.random.default_rng(0)
    assert_uniform(spans.compose(rng, 5_000, total, 3, minimum), divisions)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 2), st.integers(0, 9))
def test_compose_adds_up(parts, spare, minimum, seed):
    total = spare + minimum * parts
    rng = np.random.default_rng(seed)
    lengths = spans.compose(rng, 4, total, parts, minimum)
    assert lengths.shape == (4, parts)
    assert lengths.min() >= minimum
    assert (lengths.sum(axis=1) == total).all()


@st.composite
def corruptions(draw):
    placement = draw(st.sampled_from(sorted(spans.PLACEMENTS)))
    length = draw(st.integers(2, 200))
    if placement in spans.SUFFIXES:
        noise, num_spans = draw(st.integers(2, length)), 1
    else:
        noise = spans.count_noise(length, draw(st.floats(0.01, 0.99)))
        mean = draw(st.floats(1, 70))
        num_spans = spans.count_spans(noise, length - noise, mean, placement)
    return placement, length, noise, num_spans


@settings(max_examples=150, derandomize=True, deadline=None)
@given(corruptions(), st.integers(0, 9))
def test_place_divides_the_whole_text(corruption, seed):
    placement, length, noise, num_spans = corruption
    rng = np.random.default_rng(seed)
    lengths = spans.place(placement, rng, 5, length, noise, num_spans)
    gaps, parts = lengths[:, 0::2], lengths[:, 1::2]
    assert lengths.shape == (5, 2 * num_spans + 1)
    assert (lengths.sum(axis=1) == length).all()
    assert gaps.min() >= 0
    assert parts.min() >= 1
    if placement != "suffix":
        assert (parts.sum(axis=1) == noise).all()
    if placement == "random":
        assert (gaps[:, 1:-1] >= 1).all()
    if placement == "t5":
        assert (gaps[:, :-1] >= 1).all()
    if placement in ("t5", *spans.SUFFIXES):
        assert (gaps[:, -1] == 0).all()


def test_random_placement_draws_every_corruption_equally_often():
    # 6 tokens, 3 of noise in 2 spans: gaps 0/1/2 around one gap of 1/2/3.
    wanted = [
        (first, span, inner, 3 - span, 3 - first - inner)
        for span in (1, 2)
        for first in range(3)
        for inner in range(1, 4 - first)
    ]
    assert len(wanted) == 12
    drawn = spans.place("random", np.random.default_rng(1), 9_000, 6, 3, 2)
    counts = [int((drawn == kind).all(axis=1).sum()) for kind in wanted]
    assert sum(counts) == 9_000
    assert max(abs(count - 750) for count in counts) < 5 * 750**0.5


def test_scattered_spans_may_touch_and_random_ones_may_not():
    rng = np.random.default_rng(0)
    scattered = spans.place("scattered", rng, 2_000, 5, 2, 2)
    # Token-wise masking: each of the ten pairs of five tokens.
    assert_uniform(scattered[:, 0::2], compositions(3, 3, 0))
    assert (scattered[:, 2] == 0).any()
    assert (spans.place("random", rng, 2_000, 5, 2, 2)[:, 2] > 0).all()


def random_spans_noise_mask(rng, length, noise, num_spans):
    """T5's rule, restated: both sides cut at shuffled places, kept text first."""

    def segment(num_items, num_segments):
        starts = np.arange(num_items - 1) < num_segments - 1
        rng.shuffle(starts)
        return np.bincount(np.cumsum(np.append([False], starts)))

    noises = segment(noise, num_spans)
    kept = segment(length - noise, num_spans)
    interleaved = np.stack([kept, noises], axis=1).ravel()
    return np.repeat(np.arange(2 * num_spans) % 2 == 1, interleaved)


def test_t5_placement_is_distributed_as_random_spans_noise_mask():
    length, noise, num_spans, draws = 9, 4, 2, 6_000
    rng = np.random.default_rng(2)
    reference = [
        random_spans_noise_mask(rng, length, noise, num_spans) for _ in range(draws)
    ]
    lengths = spans.place("t5", rng, draws, length, noise, num_spans)
    ours = [np.repeat(np.arange(2 * num_spans + 1) % 2 == 1, row) for row in lengths]
    masks = sorted({tuple(mask.astype(int).tolist()) for mask in reference})
    assert len(masks) == 12  # 3 divisions of the noise x 4 of the kept text
    for drawn in (reference, ours):
        counts = dict.fromkeys(masks, 0)
        for mask in drawn:
            counts[tuple(mask.astype(int).tolist())] += 1
        assert max(abs(c - draws / 12) for c in counts.values()) < 5 * (500**0.5)


def test_single_long_span_is_free_under_random_and_fixed_under_t5():
    # (64, 0.15) at 512: one span of 90 in 600 tokens, 511 possible places.
    noise = spans.count_noise(600, 0.15)
    assert (noise, spans.count_spans(noise, 510, 64, "t5")) == (90, 1)
    rng = np.random.default_rng(0)
    firsts = spans.place("random", rng, 4_800, 600, noise, 1)[:, 0]
    assert (firsts.min(), firsts.max()) == (0, 510)
    bins = np.histogram(firsts, np.linspace(-0.5, 510.5, 25))[0]
    expected = 4_800 / 24
    assert ((bins - expected) ** 2 / expected).sum() < CHI_SQUARE[23]
    fixed = spans.place("t5", rng, 100, 600, noise, 1)
    assert (fixed == [510, 90, 0]).all()


@pytest.mark.parametrize("noise", [2, 3, 128, 255, 256])
def test_suffix_lengths_are_uniform_and_mirrored(noise):
    lengths = spans.place("suffix", np.random.default_rng(0), 4_000, 511, noise, 1)
    suffixes = lengths[:, 1]
    assert (suffixes[0::2] + suffixes[1::2] == noise).all()
    assert suffixes.mean() == noise / 2
    assert suffixes.min() >= 1
    assert suffixes.max() <= noise - 1
    counts = np.bincount(suffixes, minlength=noise)[1:]
    expected = 4_000 / (noise - 1)
    # Pairs halve the number of draws: twice the variance.
    assert np.abs(counts - expected).max() < 6 * (2 * expected) ** 0.5


def test_suffix_of_an_odd_count_has_one_text_without_its_mirror():
    suffixes = spans.place("suffix", np.random.default_rng(0), 5, 99, 40, 1)[:, 1]
    assert len(suffixes) == 5
    assert suffixes[0] + suffixes[1] == suffixes[2] + suffixes[3] == 40


@pytest.mark.parametrize(
    ("length", "density", "noise"),
    [(600, 0.15, 90), (2, 0.01, 1), (2, 0.99, 1), (5, 1.0, 5), (1, 1.0, 1)],
)
def test_count_noise_keeps_and_moves_at_least_one_token(length, density, noise):
    assert spans.count_noise(length, density) == noise


@pytest.mark.parametrize(
    ("noise", "kept", "mean", "placement", "num_spans"),
    [
        (90, 510, 64, "random", 1),
        (10, 10, 3, "random", 3),
        (1, 9, 64, "random", 1),
        (9, 2, 1, "t5", 2),  # each span needs kept text before it
        (9, 2, 1, "random", 3),  # only between two spans
        (9, 2, 1, "scattered", 9),
    ],
)
def test_count_spans_rounds_like_t5_and_never_asks_the_impossible(
    noise, kept, mean, placement, num_spans
):
    assert spans.count_spans(noise, kept, mean, placement) == num_spans
