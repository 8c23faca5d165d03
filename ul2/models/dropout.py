"""Dropout as a function of a key. No key: no dropout."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

DropoutKey = Key[Array, ""] | None


def split_key(key: DropoutKey, num: int) -> list[DropoutKey]:
    """Returns `num` independent keys, or as many Nones."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def dropout(
    x: Float[Array, "*dims L D"], rate: float, key: DropoutKey
) -> Float[Array, "*dims L D"]:
    """Zeroes channels with probability `rate` and scales up the others.

    One mask serves all positions of a row (dim -2), as in T5: it has 1/L of the random
    bits to draw. The examples of a packed row share it too.
    """
    if key is None or rate == 0:
        return x
    shape = (*x.shape[:-2], 1, x.shape[-1])
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))
