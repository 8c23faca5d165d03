"""How many spans, how long, where: pure functions of a length and a generator.

A corrupted text is an alternation of gaps (kept) and spans (moved to the targets):

    lengths   gap 2, span 1, gap 3, span 2, gap 0
    text       a  b  C  d  e  f  G  H

so a matrix of `[count, 2 * num_spans + 1]` lengths describes `count` corruptions at
once. How the lengths are drawn is the *placement*:

    random        spans in any order of lengths, anywhere; a gap between any two
    t5            T5's rule: a gap first, a span last, nothing else is free
    scattered     spans may touch: with spans of one token, a token-wise mask
    suffix        one span that reaches the end, its length uniform around the mean
    fixed_suffix  one span that reaches the end, its length exactly the mean

Span lengths follow T5 everywhere: the number of noise tokens and of spans is fixed by
the length of the text, and every way to divide the one among the other is equally
likely (`random_spans_noise_mask` in t5/data/preprocessors.py). T5's own placement
leaves a single span no freedom at all, so that (64, 0.15) at 512 always masks the
last 90 tokens; `random` gives it every position.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]


def compose(
    rng: np.random.Generator, count: int, total: int, parts: int, minimum: int = 0
) -> Lengths:
    """Divides `total` into `parts`, `count` times; every division equally likely.

        total 4, parts 2, minimum 1:   [1 3], [2 2] or [3 1]

    Returns:
        `[count, parts]` lengths of at least `minimum`, each row adding up to `total`.
    """
    spare = total - minimum * parts
    assert spare >= 0, (total, parts, minimum)
    # Stars and bars: the bars' places among spare + parts - 1, in order.
    places = spare + parts - 1
    bars = _choose(rng, count, places, parts - 1)
    edges = np.empty((count, parts + 1), np.int64)
    edges[:, 0] = -1
    edges[:, 1:-1] = bars
    edges[:, -1] = places
    return np.diff(edges, axis=1) - 1 + minimum


def _choose(rng: np.random.Generator, count: int, places: int, chosen: int) -> Lengths:
    """Returns `[count, chosen]` distinct ascending places, every choice equally likely.

    The smallest of independent uniform keys mark the choice; ties have a chance of
    2**-53 a pair and would only favour the earlier place.
    """
    if not chosen:
        return np.empty((count, 0), np.int64)
    if chosen == places:
        return np.broadcast_to(np.arange(places), (count, places))
    keys = rng.random((count, places))
    picked = np.argpartition(keys, chosen - 1, axis=1)[:, :chosen]
    return np.sort(picked, axis=1)


def _interleave(gaps: Lengths, spans: Lengths) -> Lengths:
    """Returns gap, span, gap, ..., gap: one more gap than spans."""
    lengths = np.empty((len(spans), 2 * spans.shape[1] + 1), np.int64)
    lengths[:, 0::2] = gaps
    lengths[:, 1::2] = spans
    return lengths


def _random(
    rng: np.random.Generator, count: int, length: int, noise: int, num_spans: int
) -> Lengths:
    gaps = compose(rng, count, length - noise - (num_spans - 1), num_spans + 1)
    gaps[:, 1:-1] += 1
    return _interleave(gaps, compose(rng, count, noise, num_spans, minimum=1))


def _t5(
    rng: np.random.Generator, count: int, length: int, noise: int, num_spans: int
) -> Lengths:
    spans = compose(rng, count, noise, num_spans, minimum=1)
    gaps = compose(rng, count, length - noise, num_spans, minimum=1)
    return _interleave(np.pad(gaps, ((0, 0), (0, 1))), spans)


def _scattered(
    rng: np.random.Generator, count: int, length: int, noise: int, num_spans: int
) -> Lengths:
    gaps = compose(rng, count, length - noise, num_spans + 1)
    return _interleave(gaps, compose(rng, count, noise, num_spans, minimum=1))


def _suffix(
    rng: np.random.Generator, count: int, length: int, noise: int, num_spans: int
) -> Lengths:
    """Uniform on 1 .. noise - 1, in mirrored pairs.

    Texts 2i and 2i + 1 split at mirrored points: each length is uniform, and the two
    add up to `noise`. A packed row that holds both is filled to the last column
    whatever was drawn.
    """
    assert num_spans == 1
    drawn = rng.integers(1, noise, size=-(-count // 2))
    spans = np.stack([drawn, noise - drawn], axis=1).reshape(-1, 1)[:count]
    return _interleave(np.pad(length - spans, ((0, 0), (0, 1))), spans)


def _fixed_suffix(
    rng: np.random.Generator, count: int, length: int, noise: int, num_spans: int
) -> Lengths:
    assert num_spans == 1
    return np.tile(np.array([length - noise, noise, 0], np.int64), (count, 1))


# (rng, count, length, num_noise_tokens, num_spans) -> [count, 2 * num_spans + 1]
PLACEMENTS: Final[
    dict[str, Callable[[np.random.Generator, int, int, int, int], Lengths]]
] = {
    "random": _random,
    "t5": _t5,
    "scattered": _scattered,
    "suffix": _suffix,
    "fixed_suffix": _fixed_suffix,
}
SUFFIXES: Final = ("suffix", "fixed_suffix")


def place(
    placement: str,
    rng: np.random.Generator,
    count: int,
    length: int,
    num_noise_tokens: int,
    num_spans: int,
) -> Lengths:
    """Draws `count` corruptions of a text of `length` tokens.

    For `suffix` the noise tokens are those of two texts together, so that the mean
    length of a suffix is half of them: a mean of L/4 over odd numbers too.

    Returns:
        `[count, 2 * num_spans + 1]` alternating gap and span lengths; every row adds
        up to `length`.
    """
    return PLACEMENTS[placement](rng, count, length, num_noise_tokens, num_spans)


def count_noise(length: int, noise_density: float) -> int:
    """Returns how many of `length` tokens are noise (T5's rounding).

    At least one, and at least one token is kept, unless the density is 1: a causal
    language model keeps nothing.
    """
    noise = max(1, round(length * noise_density))
    return noise if noise_density == 1.0 else max(1, min(noise, length - 1))


def count_spans(noise: int, kept: int, mean_span_length: float, placement: str) -> int:
    """Returns how many spans hold `noise` tokens (T5's rounding).

    At least one, and never more than there are noise tokens to fill them or kept
    tokens to part them.
    """
    most = {"t5": kept, "random": kept + 1}.get(placement, noise)
    return max(1, min(round(noise / mean_span_length), noise, most))
