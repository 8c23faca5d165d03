"""What a model remembers between the steps of decoding, as a pytree.

An example is decoded once or as several *hypotheses* (samples, beams): J of them. What
they share stands in the cache once:

    memory    the encoder's output, as keys and values       [Y, E, G, S, K]
    prompt    what was read before the first step            [Y, E, G, P, K]
    written   what each hypothesis wrote, column by column   [Y, E, J, G, W, K]

Prompts differ in length, and padding follows them; `written` begins for all of them at
column 0, which is position `prompt_lengths[e]` of example e. So a step writes one
column, the same in every row. Y layers, E examples; see `models/__init__.py` for the
other letters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ul2.batch import Batch


class KeyValues(NamedTuple):
    """Keys and values of some positions."""

    keys: Float[Array, "*lead G S K"]
    values: Float[Array, "*lead G S K"]


class LayerKeys(NamedTuple):
    """What a layer read: its own side, and the encoder's if it has one."""

    own: KeyValues
    memory: KeyValues | None


class Cache(NamedTuple):
    """What is read again at every step; see the module."""

    prompt: KeyValues
    prompt_lengths: Int[Array, " E"]
    written: KeyValues
    memory: KeyValues | None
    memory_valid: Bool[Array, "E S"] | None

    def reorder(self, origins: Int[Array, "E J"]) -> "Cache":
        """Makes hypothesis j go on from what hypothesis `origins[e, j]` wrote."""
        indices = origins[None, :, :, None, None, None]
        written = jax.tree.map(
            lambda array: jnp.take_along_axis(array, indices, axis=2, mode="clip"),
            self.written,
        )
        return self._replace(written=written)


class StepBias(NamedTuple):
    """The position bias of a step: towards the prompt, and towards what is written."""

    prompt: Float[Array, "H E P"]
    written: Float[Array, "H W"]


def make_cache(keys: LayerKeys, batch: Batch, hypotheses: int, columns: int) -> Cache:
    """Returns the cache behind prompts, with room for what hypotheses will write.

    Args:
        keys: what each layer read of the prompts, stacked over layers.
        batch: the prompts, one per row.
        hypotheses: J, of each prompt.
        columns: W, tokens that each may have.
    """

    def make(array: Float[Array, "Y E G P K"]) -> Float[Array, "Y E J G W K"]:
        layers, examples, heads, _, width = array.shape
        shape = (layers, examples, hypotheses, heads, columns, width)
        return jnp.zeros(shape, array.dtype)

    lengths = jnp.sum(batch.decoder.segment_ids > 0, axis=1)
    valid = None if batch.encoder is None else batch.encoder.segment_ids > 0
    return Cache(keys.own, lengths, KeyValues(*map(make, keys.own)), keys.memory, valid)


def write_column(
    written: KeyValues, new: KeyValues, layer: Int[Array, ""], column: Int[Array, ""]
) -> KeyValues:
    """Puts one position's keys and values [E, J, G, 1, K] into a layer's columns."""

    def write(array: Array, addition: Array) -> Array:
        return jax.lax.dynamic_update_slice(
            array, addition[None].astype(array.dtype), (layer, 0, 0, 0, column, 0)
        )

    return KeyValues(*map(write, written, new))
