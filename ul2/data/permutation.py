"""A permutation of any size that is computed, not stored.

A Feistel network over the smallest square of a power of two that holds `size`; what
falls outside is sent through again until it falls inside (cycle walking), which keeps
it a permutation. Grain's `index_shuffle` does this for one index at a time, and walks
far where places are few: 2.5 ms an index below 5,000.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Keys, and so rounds, of the network.
NUM_KEYS: Final = 4


def permute(
    indices: NDArray[np.int64], size: int, keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Sends each index below `size` to another one, no two to the same.

    Args:
        indices: in [0, size).
        size: how many there are.
        keys: `[NUM_KEYS]` random numbers; they alone decide how.
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    places = _scramble(indices.astype(np.uint64), half, keys)
    while (outside := places >= size).any():
        places[outside] = _scramble(places[outside], half, keys)
    return places.astype(np.int64)


def _scramble(
    values: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Permutes the numbers of `2 * half` bits."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads every bit over all (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
