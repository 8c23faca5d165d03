import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_fixtures import GOLDENS, tiny_config

from ul2.models.positions import RelativeBias, relative_buckets, rotate


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 64)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets_match_t5x(bidirectional, num_buckets, max_distance):
    golden = np.load(GOLDENS / "relpos_buckets.npz")
    direction = "bidirectional" if bidirectional else "causal"
    positions = golden["relative_position"].astype(np.int32)
    assert (positions[0], positions[-1]) == (-1200, 1200)
    buckets = relative_buckets(
        jnp.asarray(positions),
        bidirectional=bidirectional,
        num_buckets=num_buckets,
        max_distance=max_distance,
    )
    expected = golden[f"t5x/{direction}_nb{num_buckets}_md{max_distance}"]
    np.testing.assert_array_equal(buckets, expected)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 5), (3, 7), (7, 3), (1, 4)])
def test_relative_bias_is_the_bias_of_each_pair(bidirectional, num_queries, num_keys):
    bias = RelativeBias(tiny_config(), bidirectional=bidirectional, rngs=nnx.Rngs(0))
    pairs = jnp.arange(num_keys)[None, :] - jnp.arange(num_queries)[:, None]
    np.testing.assert_array_equal(bias(num_queries, num_keys), bias.lookup(pairs))


def test_relative_bias_gradient_counts_the_pairs_of_each_bucket():
    config = tiny_config()
    bias = RelativeBias(config, bidirectional=True, rngs=nnx.Rngs(0))
    gradient = nnx.grad(lambda bias: jnp.sum(bias(40, 30)))(bias)
    pairs = jnp.arange(30)[None, :] - jnp.arange(40)[:, None]
    buckets = relative_buckets(
        pairs, bidirectional=True, num_buckets=32, max_distance=128
    )
    counts = np.bincount(np.asarray(buckets).ravel(), minlength=32)
    for row in gradient.rel_embedding[...]:
        np.testing.assert_array_equal(row, counts)


def test_rotated_product_depends_on_distance_alone():
    keys = jax.random.split(jax.random.key(0), 2)
    q, k = (jax.random.normal(key, (1, 1, 2, 8)) for key in keys)

    def product(query_position, key_position):
        turned_q = rotate(q, jnp.array([[query_position]]), theta=100.0)
        turned_k = rotate(k, jnp.array([[key_position]]), theta=100.0)
        return np.asarray(jnp.sum(turned_q * turned_k, axis=-1))

    np.testing.assert_allclose(product(3, 1), product(13, 11), rtol=1e-5)
    assert np.abs(product(3, 1) - product(3, 2)).max() > 0.1


def test_rotation_keeps_position_zero_and_lengths():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 8))
    turned = rotate(x, jnp.array([[0, 1, 50]]), theta=10_000.0)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
