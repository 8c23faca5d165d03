"""The decoder-only model: causal or prefix language model, by the batch it is given."""

from typing import Final

from flax import nnx
from jaxtyping import Array, Float, Key

from ul2.batch import Batch
from ul2.models import probes
from ul2.models.blocks import SelfAttentionBlock, Side, Stack
from ul2.models.cache import LayerKeys
from ul2.models.config import ModelConfig
from ul2.models.embedder import Embedder
from ul2.models.language_model import LanguageModel
from ul2.models.masks import Causal, Masks, Prefix


class DecoderOnly(LanguageModel):
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
        side = Side(batch.decoder, self.masks(batch).decoder)
        embedded = self.embedder.embed(batch.decoder.tokens)
        with probes.part("decoder"):
            decoded = self.decoder(embedded, side, None, dropout_key)
        return self.embedder.scale(decoded)

    @staticmethod
    def masks(batch: Batch) -> Masks:
        """Returns what each position of a batch sees."""
        # Padding comes after every token and is no part of a prefix: nobody sees it.
        mask = Causal() | Prefix(batch.prefix_lengths)
        return Masks(encoder=None, decoder=mask, cross=None)

    def _read(
        self, prompts: Batch
    ) -> tuple[Float[Array, "E P D"], LayerKeys | tuple[LayerKeys, ...]]:
        """Reads inputs, and what outputs must begin with: one row of both."""
        side = Side(prompts.decoder, self.masks(prompts).decoder)
        embedded = self.embedder.embed(prompts.decoder.tokens)
        return self.decoder.prefill(embedded, side, None)
