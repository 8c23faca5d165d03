"""Rows of a search: none in them yet, taken from another search, split over a mesh.

A search is a named tuple of arrays that count examples in their first dim, and of a
`cache` that knows which dims its own do that in.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ul2.axes import BATCH
from ul2.models.cache import row_axes
from ul2.models.constraints import constrain

_State = TypeVar("_State")


def empty_rows(state: _State, rows: int) -> _State:
    """Returns a state like another, of so many rows that are all closed."""

    def make(array: Array, axes: tuple[str | None, ...]) -> Array:
        dim = axes.index(BATCH)
        shape = (*array.shape[:dim], rows, *array.shape[dim + 1 :])
        return jnp.zeros(shape, array.dtype)

    made: _State = jax.tree.map(make, state, _axes(state))
    return made


def take_rows(state: _State, other: _State, origins: Int[Array, " E"]) -> _State:
    """Returns a state with rows of another in the place of some of its own.

    Args:
        state: of E rows.
        other: of R rows, otherwise of the same shape.
        origins: for each row the one of `other` that goes there; -1 for none.
    """

    def take(array: Array, new: Array, axes: tuple[str | None, ...]) -> Array:
        dim = axes.index(BATCH)
        others = [axis for axis in range(array.ndim) if axis != dim]
        is_new = jnp.expand_dims(origins >= 0, others)
        return jnp.where(is_new, jnp.take(new, origins, axis=dim, mode="clip"), array)

    taken: _State = jax.tree.map(take, state, other, _axes(state))
    return taken


def placed_rows(state: _State) -> _State:
    """Asks that rows be split as in a batch, so that programs leave them alike."""
    placed: _State = jax.tree.map(
        lambda array, axes: constrain(array, *axes), state, _axes(state)
    )
    return placed


def _axes(state: Any) -> Any:
    """Returns what the dims of each array are called."""
    others = row_axes(state._replace(cache=None))
    return others._replace(cache=state.cache.axes())
