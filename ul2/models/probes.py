"""Watching a forward pass: which rows are still finite, after each sublayer.

Models call `probe` where a sublayer is done. Nobody watches a model that trains, and
nothing is added to its program. Inside `watching` each call notes, row by row, whether
all numbers are finite; layers of a scanned stack note it once for each layer:

    with probes.watching() as seen:
        hidden = model(batch)
    seen.names   ["encoder embedding", "encoder self_attention", ...]
    seen.rows    [[B], [layers, B], ...]
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Final

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Seen:
    """What was noted, in the order of the forward pass.

    Attributes:
        names: of the places.
        rows: whether each row is finite there, [B] or [layers, B].
    """

    def __init__(self, part: str = "") -> None:
        self.names: list[str] = []
        self.rows: list[Bool[Array, ...]] = []
        self.layer_names: tuple[str, ...] = ()
        self.part = part

    def note(self, name: str, rows: Bool[Array, "..."]) -> None:
        """Adds a place."""
        self.names.append(f"{self.part} {name}".lstrip())
        self.rows.append(rows)


_SEEN: Final[contextvars.ContextVar[Seen | None]] = contextvars.ContextVar(
    "seen", default=None
)


@contextlib.contextmanager
def watching() -> Iterator[Seen]:
    """Watches the model that is traced inside."""
    with _noting(Seen()) as seen:
        yield seen


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Names the part of a model that is traced inside."""
    seen = _SEEN.get()
    if seen is None:
        yield
        return
    before, seen.part = seen.part, name
    try:
        yield
    finally:
        seen.part = before


def probe(name: str, x: Float[Array, "B T D"]) -> None:
    """Notes which rows of `x` are finite, if somebody watches."""
    seen = _SEEN.get()
    if seen is not None:
        seen.note(name, jnp.all(jnp.isfinite(x), axis=(1, 2)))


@contextlib.contextmanager
def layer() -> Iterator[Seen]:
    """Watches one layer inside a scan; hand its `rows` out of the scan."""
    outer = _SEEN.get()
    if outer is None:
        yield Seen()
        return
    with _noting(Seen()) as seen:
        yield seen
    outer.layer_names = tuple(seen.names)


def stacked(rows: Sequence[Bool[Array, "layers B"]]) -> None:
    """Notes what came out of a scan over layers."""
    seen = _SEEN.get()
    if seen is not None:
        for name, of_layers in zip(seen.layer_names, rows, strict=True):
            seen.note(name, of_layers)


@contextlib.contextmanager
def _noting(seen: Seen) -> Iterator[Seen]:
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)
