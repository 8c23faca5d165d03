"""Attention masks as values that compose, and become arrays late.

    Causal() | Prefix(lengths)      a prefix language model
    Keys(columns >= 0)              no example sees its padding

A mask says which key positions a query position may see *within one example*; packing
needs no mask, because attention never runs over more than one example. Nothing of
size L x S exists until `materialize`, where it fuses into the softmax.
"""

import abc
import dataclasses
from typing import NamedTuple

from jaxtyping import Array, Bool, Int

# Broadcasts to [B, N, L, S].
MaskArray = Bool[Array, "#B #N #L #S"]


class Mask(abc.ABC):
    """Which keys each query sees."""

    @abc.abstractmethod
    def materialize(
        self, queries: Int[Array, " L"], keys: Int[Array, " S"]
    ) -> MaskArray:
        """Returns True where the query at one position sees the key at another."""

    def __and__(self, other: "Mask") -> "Mask":
        return _Both(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return _Either(self, other)


class Masks(NamedTuple):
    """All masks of a model on a batch; None where it has no such attention."""

    encoder: Mask | None
    decoder: Mask
    cross: Mask | None


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Each position sees itself and those before it."""

    def materialize(
        self, queries: Int[Array, " L"], keys: Int[Array, " S"]
    ) -> MaskArray:
        """Compares positions."""
        return (queries[:, None] >= keys[None, :])[None, None]


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """Every position sees the first `lengths` positions of its example."""

    lengths: Int[Array, "B N"]

    def materialize(
        self, queries: Int[Array, " L"], keys: Int[Array, " S"]
    ) -> MaskArray:
        """Compares key positions with the prefix length of each example."""
        return keys[None, None, None, :] < self.lengths[:, :, None, None]


@dataclasses.dataclass(frozen=True)
class Keys(Mask):
    """Every position sees the keys that exist."""

    valid: Bool[Array, "B N S"]

    def materialize(
        self, queries: Int[Array, " L"], keys: Int[Array, " S"]
    ) -> MaskArray:
        """Shows each query the same keys."""
        return self.valid[:, :, None, :]


@dataclasses.dataclass(frozen=True)
class _Both(Mask):
    left: Mask
    right: Mask

    def materialize(
        self, queries: Int[Array, " L"], keys: Int[Array, " S"]
    ) -> MaskArray:
        left = self.left.materialize(queries, keys)
        return left & self.right.materialize(queries, keys)


@dataclasses.dataclass(frozen=True)
class _Either(Mask):
    left: Mask
    right: Mask

    def materialize(
        self, queries: Int[Array, " L"], keys: Int[Array, " S"]
    ) -> MaskArray:
        left = self.left.materialize(queries, keys)
        return left | self.right.materialize(queries, keys)
