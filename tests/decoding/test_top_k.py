"""The k largest are those of `jax.lax.top_k`, in its order."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ul2.decoding.top_k import largest, top_k
from ul2.sharding.mesh import TENSOR, make_mesh

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 2, 8, 40])
@pytest.mark.parametrize(
    "values",
    [
        RNG.standard_normal((3, 2, 6400)),
        RNG.integers(0, 9, (4, 6400)),  # almost all are ties
        np.where(RNG.random((5, 6400)) < 0.999, -np.inf, 1.0),
        np.full((2, 6400), -np.inf),
        RNG.standard_normal((2, 1001)),  # no multiple of a chunk
        RNG.standard_normal((2, 64)),  # fewer chunks than k
    ],
    ids=["normal", "ties", "few finite", "none finite", "odd", "small"],
)
def test_largest_and_their_places_are_those_of_jax(values, k):
    values = np.asarray(values, np.float32)
    found = jax.jit(top_k, static_argnums=1)(values, k)
    for ours, want in zip(found, jax.lax.top_k(values, k), strict=True):
        np.testing.assert_array_equal(ours, want)


def test_the_largest_is_that_of_argmax():
    values = np.asarray(RNG.integers(0, 99, (4, 3, 6400)), np.float32)
    np.testing.assert_array_equal(largest(values), np.argmax(values, axis=-1))


def test_logits_split_over_a_mesh_are_not_gathered():
    mesh = make_mesh("tensor=8")
    split = NamedSharding(mesh, PartitionSpec(None, None, TENSOR))
    logits = jax.ShapeDtypeStruct((2, 4, 32128), np.float32, sharding=split)

    def gathered(function):
        """Returns the last dims of what is gathered."""
        text = jax.jit(function, static_argnums=1).lower(logits, 8).compile().as_text()
        return [
            int(size) for size in re.findall(r"= \S+?(\d+)\]\S* all-gather\(", text)
        ]

    assert max(gathered(jax.lax.top_k)) == 32128
    assert max(gathered(top_k)) == 32128 // 16
