"""Token embeddings, and the head that turns hidden states into logits."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ul2.axes import EMBED, VOCAB
from ul2.models.config import ModelConfig
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
        rows: Array = self.embedding[...].at[tokens].get(mode="clip")
        return rows.astype(self.config.compute_dtype)

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
