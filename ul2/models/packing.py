"""From packed rows to examples and back, by gathers in both directions.

    row       a0 a1 a2 b0 b1 __          unpack ->   a0 a1 a2      examples, padded
                                         <- pack     b0 b1 __      with zeros

Every token stands in exactly one place of either form, so the two are each other's
inverse and each other's transpose: the gradient of one *is* the other. XLA would
derive a scatter-add, slow everywhere; the custom rules below say gather.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ul2.axes import BATCH, HEADS
from ul2.batch import Packed
from ul2.models.constraints import constrain


def is_plain(packed: Packed) -> bool:
    """Whether each row is one example that starts at column 0: nothing to gather."""
    _, num_examples, length = packed.columns.shape
    return bool(num_examples == 1 and length == packed.tokens.shape[1])


def unpack(x: Float[Array, "B T W"], packed: Packed) -> Float[Array, "B N L W"]:
    """Cuts the examples out of their rows; zeros past the end of each."""
    if is_plain(packed):
        return x[:, None]
    # An example may lie anywhere in its row: whoever cuts it out holds all columns.
    return _unpack(constrain(x, BATCH, None, HEADS), packed)


def pack(x: Float[Array, "B N L W"], packed: Packed) -> Float[Array, "B T W"]:
    """Lays the examples back into their rows; zeros on padding."""
    if is_plain(packed):
        return x[:, 0]
    return _pack(constrain(x, BATCH, None, None, HEADS), packed)


@jax.custom_vjp
def _unpack(x: Float[Array, "B T W"], packed: Packed) -> Float[Array, "B N L W"]:
    columns = packed.columns
    taken = _take_rows(x, columns.reshape(columns.shape[0], -1))
    return taken.reshape(*columns.shape, x.shape[-1])


@jax.custom_vjp
def _pack(x: Float[Array, "B N L W"], packed: Packed) -> Float[Array, "B T W"]:
    num_rows, num_examples, length, width = x.shape
    flat = x.reshape(num_rows, num_examples * length, width)
    places = (packed.segment_ids - 1) * length + packed.positions
    return _take_rows(flat, jnp.where(packed.segment_ids > 0, places, -1))


def _take_rows(
    x: Float[Array, "B X W"], indices: Int[Array, "B Y"]
) -> Float[Array, "B Y W"]:
    """Picks rows; index -1 gives zeros."""
    # Out of range is what "fill" fills; -1 itself would count from the end.
    indices = jnp.where(indices < 0, x.shape[1], indices)
    return jax.vmap(_take_or_zero)(x, indices)


def _take_or_zero(
    x: Float[Array, "X W"], indices: Int[Array, " Y"]
) -> Float[Array, "Y W"]:
    return x.at[indices].get(mode="fill", fill_value=0)


def _unpack_forward(x: Array, packed: Packed) -> tuple[Array, Packed]:
    return _unpack(x, packed), packed


def _unpack_backward(packed: Packed, gradient: Array) -> tuple[Array, Any]:
    return _pack(gradient, packed), None


def _pack_forward(x: Array, packed: Packed) -> tuple[Array, Packed]:
    return _pack(x, packed), packed


def _pack_backward(packed: Packed, gradient: Array) -> tuple[Array, Any]:
    return _unpack(gradient, packed), None


_unpack.defvjp(_unpack_forward, _unpack_backward)
_pack.defvjp(_pack_forward, _pack_backward)
