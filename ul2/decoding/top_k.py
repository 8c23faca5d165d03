"""The largest of many: what sampling and beam search ask of a row of logits."""

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# From 16 to 128 all are as fast. Few ids to a chunk divide over more devices: 32128
# are 2008 chunks, whole ones on each of 8.
_CHUNK: Final = 16


def top_k(
    values: Float[Array, "*rows V"], k: int
) -> tuple[Float[Array, "*rows k"], Int[Array, "*rows k"]]:
    """Returns the k largest and their places, like `jax.lax.top_k`, only faster.

    They lie in the k chunks with the largest maxima, so it is enough to look there. On
    CPU this took a third of the time (64 rows of 32128 ids). Where a mesh splits the
    ids, `jax.lax.top_k` gathers them all on every device; here only maxima and chosen
    chunks leave their own.

    Among equals the first come first. That needs the chosen chunks in order: a chunk
    that is left out for another of the same maximum stands behind it.

        5 1 | 9 8 | 2 9    k 2  ->  chunks 1 and 2  ->  9 9, at 2 and 5
    """
    *rows, size = values.shape
    if size % _CHUNK or size // _CHUNK <= k:
        found, places = jax.lax.top_k(values, k)
        return found, places
    chunks = values.reshape(*rows, -1, _CHUNK)
    _, chosen = jax.lax.top_k(jnp.max(chunks, axis=-1), k)
    chosen = jnp.sort(chosen, axis=-1)
    candidates = jnp.take_along_axis(chunks, chosen[..., None], axis=-2, mode="clip")
    found, places = jax.lax.top_k(candidates.reshape(*rows, -1), k)
    chunk = jnp.take_along_axis(chosen, places // _CHUNK, axis=-1, mode="clip")
    return found, chunk * _CHUNK + places % _CHUNK


def largest(values: Float[Array, "*rows V"]) -> Int[Array, "*rows"]:
    """Returns the place of the largest, like `jnp.argmax`, only faster.

    On CPU a quarter of the time (16 rows of 32128 ids: 0.3 of 25 ms that a greedy step
    of 77M parameters takes, instead of 1.1).
    """
    return top_k(values, 1)[1][..., 0]
