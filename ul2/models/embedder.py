"""Token embeddings, and the head that turns hidden states into logits."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ul2.axes import BATCH, EMBED, LENGTH, RESIDUAL_LENGTH, VOCAB
from ul2.models.config import ModelConfig
from ul2.models.constraints import is_split, split_axes
from ul2.models.parallel_projection import scatter_columns
from ul2.models.parameters import DENSE_INIT, EMBEDDING_INIT, make_parameter
from ul2.models.projection import project_to_float32


class Embedder(nnx.Module):
    """Both ends of a model: ids to vectors, vectors to logits."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        table = (config.vocab_size, config.embed_dim)
        self.embedding = make_parameter(
            EMBEDDING_INIT, table, (VOCAB, EMBED), rngs=rngs
        )
        self.logits_kernel = (
            None
            if config.tied_embeddings
            else make_parameter(DENSE_INIT, table[::-1], (EMBED, VOCAB), rngs=rngs)
        )

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks tokens up, in the compute dtype."""
        table = self.embedding[...]
        if is_split():
            return _look_up_in_parts(table, tokens, self.config.compute_dtype)
        return _look_up(table, tokens).astype(self.config.compute_dtype)

    def scale(self, hidden: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
        """Prepares hidden states for a tied head, whose rows are N(0, 1)."""
        if not self.config.tied_embeddings:
            return hidden
        return hidden * jnp.asarray(self.config.embed_dim**-0.5, hidden.dtype)

    def unembed(self, hidden: Float[Array, "*dims D"]) -> Float[Array, "*dims V"]:
        """Returns float32 logits of scaled hidden states.

        Operands are of the compute dtype and sums are float32, which is what T5X's
        float32 product comes to on a TPU.
        """
        if self.logits_kernel is None:
            return project_to_float32(hidden, self.embedding, transposed=True)
        return project_to_float32(hidden, self.logits_kernel)


def _look_up(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    rows: Array = table.at[tokens].get(mode="clip")
    return rows


def _look_up_in_parts(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """Looks tokens up in a table whose rows are split; no device holds all of it.

        rows 0-3 here: tokens 1 5 2 -> row 1, 0, row 2     their sum is the answer;
        rows 4-7 there:             -> 0, row 5, 0         each keeps its columns

    Left to itself, XLA gathers the table, or its gradient, where columns are split by
    the axes that split the vocabulary.
    """
    batch, columns = split_axes(tokens.shape, BATCH, LENGTH)
    owners, _ = split_axes(table.shape, VOCAB, None)
    _, residual = split_axes(tokens.shape, BATCH, RESIDUAL_LENGTH)
    # Where columns are not split by all of them, each part gets the whole sum.
    scatters = bool(owners) and residual == (*columns, *owners)

    def look_up(part: Array, tokens: Array) -> Array:
        if not owners:
            return _look_up(part, tokens).astype(dtype)
        places = tokens - jax.lax.axis_index(owners) * part.shape[0]
        is_here = (places >= 0) & (places < part.shape[0])
        rows = jnp.where(is_here[..., None], _look_up(part, places), 0.0)
        # One part has the row and the others zeros: the sum is exact in any dtype.
        rows = rows.astype(dtype)
        if not scatters:
            return jnp.asarray(jax.lax.psum(rows, owners))
        return scatter_columns(rows, owners)

    out: Array = jax.shard_map(
        look_up,
        in_specs=(PartitionSpec(owners), PartitionSpec(batch, columns)),
        out_specs=PartitionSpec(batch, residual if scatters else columns),
    )(table, tokens)
    return out
