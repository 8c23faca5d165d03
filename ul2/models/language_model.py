"""What both architectures have in common: a decoder between two tables."""

import abc
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int, Key

from ul2.batch import Batch
from ul2.models.blocks import Stack, Step
from ul2.models.cache import Cache, LayerKeys, make_cache
from ul2.models.embedder import Embedder


class LanguageModel(nnx.Module):
    """Embeddings, a decoder, and logits of what it makes of them."""

    embedder: Embedder
    decoder: Stack

    @abc.abstractmethod
    def __call__(
        self, batch: Batch, *, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        """Returns the decoder's hidden states, ready for `unembed`."""

    def prefill(
        self,
        batch: Batch,
        *,
        hypotheses: int,
        columns: int,
        read_columns: int = 0,
        may_reorder: bool = False,
    ) -> tuple[Float[Array, "E P D"], Cache]:
        """Reads prompts: one per row, shifted right as for training.

        Args:
            batch: the prompts. With an encoder they stand on its side, and the
                decoder's has the start id and what outputs must begin with. Without,
                `prefix_lengths` says how much of each is read in both directions.
            hypotheses: J, outputs to write of each.
            columns: W, tokens that each may have.
            read_columns: least columns of the encoder's output in the cache, or of the
                prompts if there is none; those behind are seen by nobody.
            may_reorder: whether hypotheses may go on from one another.

        Returns:
            The decoder's hidden states, ready for `unembed`, and the cache to write on.
        """
        hidden, read = self._read(batch)
        cache = make_cache(
            read,
            batch,
            hypotheses,
            columns,
            read_columns=read_columns,
            may_reorder=may_reorder,
        )
        return self.embedder.scale(hidden), cache

    @abc.abstractmethod
    def _read(
        self, prompts: Batch
    ) -> tuple[Float[Array, "E P D"], LayerKeys | tuple[LayerKeys, ...]]:
        """Returns what the decoder makes of prompts, and what its layers read."""

    def cut_layers(self) -> tuple[Any, ...] | None:
        """Returns the parameters of each layer of the decoder, for `make_step`.

        They are a second copy of what the layers share as one array. None for a stack
        that is too deep to be run layer by layer.
        """
        return self.decoder.cut_layers()

    def make_step(self, layers: tuple[Any, ...] | None = None) -> Step:
        """Returns what reads one more token of each hypothesis.

        It is called with tokens [E, J], the columns [E] that they are written in, and
        the cache; it returns hidden states [E, J, D], ready for `unembed`, and the
        cache with the tokens. Make it before the loop; see `Stack.make_step`.

        Args:
            layers: of `cut_layers`; by default they are cut here.
        """
        run = self.decoder.make_step(layers)

        def step(
            tokens: Int[Array, "E J"], columns: Int[Array, " E"], cache: Cache
        ) -> tuple[Float[Array, "E J D"], Cache]:
            hidden, cache = run(self.embedder.embed(tokens), columns, cache)
            return self.embedder.scale(hidden), cache

        return step

    def unembed(self, hidden: Float[Array, "*dims D"]) -> Float[Array, "*dims V"]:
        """Returns float32 logits. A loss calls this on pieces of the sequence."""
        return self.embedder.unembed(hidden)

    def logits(
        self, batch: Batch, *, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T V"]:
        """Returns the logits of the whole batch at once."""
        return self.unembed(self(batch, dropout_key=dropout_key))
