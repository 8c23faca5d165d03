import numpy as np
import pytest

from ul2.data.permutation import NUM_KEYS, permute


def keys(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(2**64, size=NUM_KEYS, dtype=np.uint64)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4096, 5000])
def test_every_index_is_reached_once(size):
    places = permute(np.arange(size), size, keys())
    assert np.array_equal(np.sort(places), np.arange(size))


def test_one_index_goes_where_it_goes_among_all():
    whole = permute(np.arange(777), 777, keys(3))
    parts = [permute(np.array([i]), 777, keys(3))[0] for i in (0, 5, 776)]
    assert parts == whole[[0, 5, 776]].tolist()


def test_large_sizes_stay_inside_and_apart():
    size = 10**12 + 7
    indices = np.arange(size - 10_000, size)
    places = permute(indices, size, keys())
    assert len(set(places.tolist())) == len(indices)
    assert 0 <= places.min() <= places.max() < size
    # Neighbours are sent far apart, evenly over all places.
    assert abs(places.mean() / size - 0.5) < 0.02


def test_each_key_gives_another_permutation():
    """Index 0 of 8 is sent everywhere about equally often."""
    counts = np.zeros(8)
    for seed in range(2000):
        counts[permute(np.array([0]), 8, keys(seed))[0]] += 1
    assert np.sum((counts - 250) ** 2 / 250) < 24.3  # chi square, 7 df, p = 0.001
