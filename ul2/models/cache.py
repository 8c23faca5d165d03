"""What a model remembers between the steps of decoding, as a pytree.

An example is decoded once or as several *hypotheses* (samples, beams): J of them. What
they share stands in the cache once:

    memory    the encoder's output, as keys and values       [Y, E, G, S, K]
    prompt    what was read before the first step            [Y, E, G, P, K]
    written   what each hypothesis wrote, column by column   [Y, E, G*J, W, K]

These are the values; keys are transposed, [.., K, S], as products with few queries read
them: on CPU the keys of four beams were matched in 0.6 of the time.

Prompts differ in length, and padding follows them; `written` begins for all of them at
column 0, which is position `prompt_lengths[e]` of example e. A step writes one column
of each example, not the same in all: some may have begun later than others (see
`ul2.decoding.rows`). Y layers, E examples; see `models/__init__.py` for the other
letters. Y is there in deep stacks only; others have a tuple with what each layer keeps,
since a slice of stacked layers is a copy at every step.

A beam search lets a hypothesis go on from what another wrote. Nothing is moved then.
What hypotheses write in a column lies side by side in `written`, [E, G, W*J, K], and
`writers` says whose columns a hypothesis reads:

    writers of 3 beams    0 0 0 .
                          0 0 1 .    went on from beam 0 after column 1
                          2 1 2 .
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ul2.axes import BATCH, HEAD
from ul2.batch import Batch


class KeyValues(NamedTuple):
    """Keys and values of some positions."""

    keys: Float[Array, "*lead K S"]
    values: Float[Array, "*lead S K"]


class LayerKeys(NamedTuple):
    """What a layer read: its own side, and the encoder's if it has one."""

    own: KeyValues
    memory: KeyValues | None


class LayerCache(NamedTuple):
    """What a layer read, and what it writes; see the module."""

    read: LayerKeys
    written: KeyValues


class Place(NamedTuple):
    """Where the new tokens of a step stand, and what they see."""

    columns: Int[Array, " E"]  # of what is written
    positions: Int[Array, "E 1"]  # in the example, prompt included
    prompt_valid: Bool[Array, "E P"]
    written_columns: Int[Array, " W"]  # W*J of them if hypotheses may reorder
    written_valid: Bool[Array, " E #J W"]
    memory_valid: Bool[Array, "E S"] | None


class StepBias(NamedTuple):
    """The position bias of a step: towards the prompt, and towards what is written."""

    prompt: Float[Array, "H E P"]
    written: Float[Array, "H E W"]


class Cache(NamedTuple):
    """What is read again at every step; see the module."""

    layers: LayerCache | tuple[LayerCache, ...]
    prompt_lengths: Int[Array, " E"]
    writers: Int[Array, "E J W"] | None  # None: nobody reads what another wrote
    memory_valid: Bool[Array, "E S"] | None

    @property
    def columns(self) -> int:
        """How many tokens each hypothesis may write."""
        if self.writers is not None:
            return self.writers.shape[-1]
        return int(self._any_layer.written.keys.shape[-1])

    def reorder(self, origins: Int[Array, "E J"]) -> "Cache":
        """Makes hypothesis j go on from what hypothesis `origins[e, j]` wrote."""
        assert self.writers is not None, "made without may_reorder"
        writers = jnp.take_along_axis(
            self.writers, origins[..., None], axis=1, mode="clip"
        )
        return self._replace(writers=writers)

    def begin(self, columns: Int[Array, " E"]) -> tuple["Cache", Place]:
        """Opens a column of each example, which every hypothesis writes for itself."""
        lengths = self.prompt_lengths[:, None]
        prompt_columns = jnp.arange(self._any_layer.read.own.keys.shape[-1])
        written = jnp.arange(self.columns)
        here = columns[:, None, None]
        valid = written[None, None] <= here
        writers = self.writers
        if writers is not None:
            slots = jnp.arange(writers.shape[1])
            writers = jnp.where(
                written[None, None] == here, slots[None, :, None], writers
            )
            reads = writers[..., None] == slots[None, None, None]
            valid = (reads & valid[..., None]).reshape(*writers.shape[:2], -1)
            written = jnp.repeat(written, len(slots))
        place = Place(
            columns,
            lengths + columns[:, None],
            prompt_columns[None] < lengths,
            written,
            valid,
            self.memory_valid,
        )
        return self._replace(writers=writers), place

    def axes(self) -> "Cache":
        """Returns what the dims of each array are called, in the place of the array."""
        stack = (None,) if isinstance(self.layers, LayerCache) else ()
        layers = jax.tree.map(lambda _: (*stack, BATCH, HEAD, None, None), self.layers)
        return Cache(layers, *row_axes(self[1:]))

    @property
    def _any_layer(self) -> LayerCache:
        return self.layers if isinstance(self.layers, LayerCache) else self.layers[0]


def make_cache(
    layers: LayerKeys | tuple[LayerKeys, ...],
    batch: Batch,
    hypotheses: int,
    columns: int,
    *,
    read_columns: int = 0,
    may_reorder: bool,
) -> Cache:
    """Returns the cache behind prompts, with room for what hypotheses will write.

    Args:
        layers: what each of them read of the prompts.
        batch: the prompts, one per row.
        hypotheses: J, of each prompt.
        columns: W, tokens that each may have.
        read_columns: least columns of the memory, or of the prompts where there is
            none.
        may_reorder: whether hypotheses may go on from one another.
    """

    def make_room(read: KeyValues) -> KeyValues:
        *lead, heads, _, width = read.values.shape
        if may_reorder:
            rows, room = heads, columns * hypotheses
        else:
            rows, room = heads * hypotheses, columns
        return KeyValues(
            jnp.zeros((*lead, rows, width, room), read.keys.dtype),
            jnp.zeros((*lead, rows, room, width), read.values.dtype),
        )

    def make_layer(read: LayerKeys) -> LayerCache:
        room = make_room(read.own)
        if read.memory is None:
            read = read._replace(own=_widen(read.own, read_columns))
        else:
            read = read._replace(memory=_widen(read.memory, read_columns))
        return LayerCache(read, room)

    lengths = jnp.sum(batch.decoder.segment_ids > 0, axis=1)
    valid = None
    if batch.encoder is not None:
        valid = _pad(batch.encoder.segment_ids > 0, read_columns, dim=1)
    writers = jnp.zeros((lengths.shape[0], hypotheses, columns), jnp.int32)
    return Cache(
        make_layer(layers)
        if isinstance(layers, LayerKeys)
        else tuple(map(make_layer, layers)),
        lengths,
        writers if may_reorder else None,
        valid,
    )


def _widen(read: KeyValues, columns: int) -> KeyValues:
    """Returns keys and values of at least so many columns."""
    return KeyValues(
        _pad(read.keys, columns, dim=-1), _pad(read.values, columns, dim=-2)
    )


def _pad(array: Array, columns: int, dim: int) -> Array:
    """Returns an array with zeros at the end of a dim that is shorter than this."""
    missing = [(0, 0)] * array.ndim
    missing[dim] = (0, max(0, columns - array.shape[dim]))
    return jnp.pad(array, missing)


def row_axes(tree: Any) -> Any:
    """Returns what the dims of arrays are called that count rows in their first."""
    return jax.tree.map(lambda array: (BATCH, *[None] * (array.ndim - 1)), tree)


def write_columns(
    written: KeyValues,
    new: KeyValues,
    columns: Int[Array, " E"],
    layer: Int[Array, ""] | None,
) -> KeyValues:
    """Puts one position's keys and values [E, J, G, K] into what a layer wrote.

    Args:
        written: by the layer, or by all where `layer` says which it is.
        new: of the position; neither is transposed.
        columns: which it is in each example.
        layer: None for what is not stacked.
    """
    stacked = layer is not None

    def write(array: Array, rows: Array, dim: int) -> Array:
        def write_one(array: Array, row: Array, column: Array) -> Array:
            start = [jnp.zeros((), jnp.int32)] * row.ndim
            start[dim - 1] = column * row.shape[dim - 1]
            if layer is not None:
                row, start = row[None], [layer, *start]
            return jax.lax.dynamic_update_slice(array, row.astype(array.dtype), start)

        return jax.vmap(write_one, (int(stacked), 0, 0), int(stacked))(
            array, rows, columns
        )

    def by_head(array: Float[Array, "E J G K"]) -> Array:
        """Returns [E, G*J, 1, K], or [E, G, J, K]."""
        heads = written.values.shape[-3]
        turned = jnp.swapaxes(array, 1, 2)
        return turned.reshape(turned.shape[0], heads, -1, turned.shape[-1])

    keys = jnp.swapaxes(by_head(new.keys), 2, 3)
    return KeyValues(
        write(written.keys, keys, 3), write(written.values, by_head(new.values), 2)
    )


def take_layer(stacked: Any, layer: Int[Array, ""]) -> Any:
    """Returns one layer of what is stacked over them."""
    return jax.tree.map(
        lambda array: jax.lax.dynamic_index_in_dim(array, layer, keepdims=False),
        stacked,
    )
