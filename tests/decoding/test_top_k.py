"""The k largest are those of `jax.lax.top_k`, in its order."""

import jax
import numpy as np
import pytest

from ul2.decoding.top_k import top_k

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 2, 8, 40])
@pytest.mark.parametrize(
    "values",
    [
        RNG.standard_normal((3, 2, 6400)),
        RNG.integers(0, 9, (4, 6400)),  # almost all are ties
        np.where(RNG.random((5, 6400)) < 0.999, -np.inf, 1.0),
        np.full((2, 6400), -np.inf),
        RNG.standard_normal((2, 1000)),  # no multiple of a chunk
        RNG.standard_normal((2, 256)),  # fewer chunks than k
    ],
    ids=["normal", "ties", "few finite", "none finite", "odd", "small"],
)
def test_largest_and_their_places_are_those_of_jax(values, k):
    values = np.asarray(values, np.float32)
    found = jax.jit(top_k, static_argnums=1)(values, k)
    for ours, want in zip(found, jax.lax.top_k(values, k), strict=True):
        np.testing.assert_array_equal(ours, want)
