"""The encoder-decoder: T5's architecture, which UL2 20B has."""

from typing import Final

from flax import nnx
from jaxtyping import Array, Float, Key

from ul2.batch import Batch, Packed
from ul2.models import probes
from ul2.models.blocks import (
    CrossAttentionBlock,
    Memory,
    SelfAttentionBlock,
    Side,
    Stack,
)
from ul2.models.cache import LayerKeys
from ul2.models.config import ModelConfig
from ul2.models.dropout import split_key
from ul2.models.embedder import Embedder
from ul2.models.language_model import LanguageModel
from ul2.models.masks import Causal, Keys, Mask, Masks
from ul2.models.parallel_projection import gather


class EncoderDecoder(LanguageModel):
    """Reads inputs in both directions, writes targets from left to right."""

    architecture: Final = "encoder_decoder"

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        if config.num_encoder_layers < 1:
            raise ValueError(
                f"num_encoder_layers={config.num_encoder_layers}: an encoder-decoder "
                "needs at least 1; use DecoderOnly for a model without encoder."
            )
        self.embedder = Embedder(config, rngs=rngs)
        self.encoder = Stack(
            config,
            SelfAttentionBlock,
            config.num_encoder_layers,
            bidirectional=True,
            final_norm_scale=True,
            rngs=rngs,
        )
        self.decoder = Stack(
            config,
            CrossAttentionBlock,
            config.num_decoder_layers,
            bidirectional=False,
            final_norm_scale=config.decoder_final_norm_scale,
            rngs=rngs,
        )

    def __call__(
        self, batch: Batch, *, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        """Returns the decoder's hidden states, ready for `unembed`."""
        assert batch.encoder is not None
        encoder_key, decoder_key = split_key(dropout_key, 2)
        encoded = self.encode(batch.encoder, dropout_key=encoder_key)
        return self.decode(batch, encoded, dropout_key=decoder_key)

    @staticmethod
    def masks(batch: Batch) -> Masks:
        """Returns what each position of a batch sees."""
        assert batch.encoder is not None
        existing = _existing(batch.encoder)
        # Padding comes after every token, where causality already hides it.
        return Masks(encoder=existing, decoder=Causal(), cross=existing)

    def encode(
        self, inputs: Packed, *, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        """Returns the encoder's output for each column of the packed inputs."""
        side = Side(inputs, _existing(inputs))
        embedded = self.embedder.embed(inputs.tokens)
        with probes.part("encoder"):
            return self.encoder(embedded, side, None, dropout_key)

    def decode(
        self,
        batch: Batch,
        encoded: Float[Array, "B T2 D"],
        *,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the decoder's hidden states, ready for `unembed`."""
        memory = _memory(batch, encoded)
        side = Side(batch.decoder, self.masks(batch).decoder)
        embedded = self.embedder.embed(batch.decoder.tokens)
        with probes.part("decoder"):
            decoded = self.decoder(embedded, side, memory, dropout_key)
        return self.embedder.scale(decoded)

    def _read(
        self, prompts: Batch
    ) -> tuple[Float[Array, "E P D"], LayerKeys | tuple[LayerKeys, ...]]:
        """Reads inputs, and what outputs must begin with: one of each per row."""
        assert prompts.encoder is not None
        memory = _memory(prompts, self.encode(prompts.encoder))
        embedded = self.embedder.embed(prompts.decoder.tokens)
        side = Side(prompts.decoder, self.masks(prompts).decoder)
        return self.decoder.prefill(embedded, side, memory)


def _memory(batch: Batch, encoded: Float[Array, "B T2 D"]) -> Memory:
    """Returns the encoder's output as the decoder reads it."""
    assert batch.encoder is not None
    cross = EncoderDecoder.masks(batch).cross
    assert cross is not None
    return Memory(gather(encoded), batch.encoder, cross)


def _existing(inputs: Packed) -> Mask:
    """Returns the mask of whatever reads inputs: it sees all but their padding."""
    return Keys(inputs.columns >= 0)
