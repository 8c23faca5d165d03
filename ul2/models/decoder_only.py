"""The decoder-only model: causal or prefix language model, by the batch it is given."""

from typing import Final

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from ul2.batch import Batch
from ul2.models.blocks import SelfAttentionBlock, Side, Stack
from ul2.models.cache import Cache, make_cache
from ul2.models.config import ModelConfig
from ul2.models.embedder import Embedder
from ul2.models.masks import Causal, Prefix


class DecoderOnly(nnx.Module):
    """Reads inputs and writes targets in one sequence.

    The first `prefix_lengths` positions of an example see each other; 0 makes it a
    causal language model. The relative bias counts backwards only: keys after the
    query, which a prefix has, share the bucket of distance 0 (T5X's rule).
    """

    architecture: Final = "decoder_only"

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        if config.num_encoder_layers:
            raise ValueError(
                f"num_encoder_layers={config.num_encoder_layers}: a decoder-only model "
                "has none; set 0 or use EncoderDecoder."
            )
        self.embedder = Embedder(config, rngs=rngs)
        self.decoder = Stack(
            config,
            SelfAttentionBlock,
            config.num_decoder_layers,
            bidirectional=False,
            final_norm_scale=config.decoder_final_norm_scale,
            rngs=rngs,
        )

    def __call__(
        self, batch: Batch, *, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        """Returns the hidden states, ready for `unembed`."""
        # Padding comes after every token and is no part of a prefix: nobody sees it.
        side = Side(batch.decoder, Causal() | Prefix(batch.prefix_lengths))
        embedded = self.embedder.embed(batch.decoder.tokens)
        return self.embedder.scale(self.decoder(embedded, side, None, dropout_key))

    def prefill(
        self, batch: Batch, *, hypotheses: int, columns: int
    ) -> tuple[Float[Array, "E P D"], Cache]:
        """Reads prompts, one per row: inputs, and what outputs must begin with.

        Args:
            batch: the prompts, shifted right as for training; `prefix_lengths` says
                how much of each is read in both directions.
            hypotheses: J, outputs to write of each.
            columns: W, tokens that each may have.

        Returns:
            The hidden states, ready for `unembed`, and the cache for `step`.
        """
        side = Side(batch.decoder, Causal() | Prefix(batch.prefix_lengths))
        embedded = self.embedder.embed(batch.decoder.tokens)
        hidden, keys = self.decoder.prefill(embedded, side, None)
        cache = make_cache(keys, batch, hypotheses, columns)
        return self.embedder.scale(hidden), cache

    def step(
        self, tokens: Int[Array, "E J"], column: Int[Array, ""], cache: Cache
    ) -> tuple[Float[Array, "E J D"], Cache]:
        """Reads one more token of each hypothesis, the `column`th that it wrote.

        Returns:
            The hidden states, ready for `unembed`, and the cache with the tokens.
        """
        embedded = self.embedder.embed(tokens)
        hidden, cache = self.decoder.step(embedded, column, cache)
        return self.embedder.scale(hidden), cache

    def unembed(self, hidden: Float[Array, "*dims D"]) -> Float[Array, "*dims V"]:
        """Returns float32 logits. A loss calls this on pieces of the sequence."""
        return self.embedder.unembed(hidden)

    def logits(
        self, batch: Batch, *, dropout_key: jax.Array | None = None
    ) -> Float[Array, "B T V"]:
        """Returns the logits of the whole batch at once."""
        return self.unembed(self(batch, dropout_key=dropout_key))
