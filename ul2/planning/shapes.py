"""The batch of a recipe, as far as its shapes go: no token store has to be there.

The rows of a mixture are planned from its lengths alone. Tasks are counted with one
example per row, at its longest, unless EXAMPLES_PER_ROW says otherwise: how long their
examples really are only the examples could tell.
"""

import dataclasses
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ul2.batch import ALL_ROWS, Batch, Packed
from ul2.data.moving_stream import MovingBatches
from ul2.data.packing import pack
from ul2.data.run_data import Layout
from ul2.data.stream import MixtureBatches
from ul2.data.token_store import TokenStore
from ul2.denoising.mixture import Mixture
from ul2.denoising.moving import MovingMixture
from ul2.recipe import Recipe
from ul2.sharding.placement import batch_sharding, check_rows
from ul2.vocab import MODE_CONVENTIONS, Vocab

# Rows of T5's embedding table.
_VOCAB_SIZE: Final = 32128
# Ids left to text whatever the objective needs.
_FIRST_SENTINEL: Final = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """How large a batch is.

    Attributes:
        rows: of a global batch.
        examples_per_row: in each.
        widths: columns of a row on each side: (encoder, decoder) or (decoder,).
        views: longest example on each side.
        padding_fraction: share of the columns that stays empty; None where only the
            examples could tell.
        num_denoisers: or tasks, that losses are kept apart for.
        vocab: of the model.
        assumptions: what was not said and had to be assumed.
    """

    rows: int
    examples_per_row: int
    widths: tuple[int, ...]
    views: tuple[int, ...]
    padding_fraction: float | None
    num_denoisers: int
    vocab: Vocab
    assumptions: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """Examples of a batch."""
        return self.rows * self.examples_per_row

    @property
    def columns(self) -> int:
        """Columns of a batch, both sides, padding included."""
        return self.rows * sum(self.widths)

    def abstract(self, mesh: Mesh) -> Batch:
        """Returns the batch without its numbers, split over a mesh."""
        sharding = batch_sharding(mesh)
        decoder = self._packed(-1, sharding)
        encoder = self._packed(0, sharding) if len(self.widths) == 2 else None
        rows = decoder.tokens
        weights = jax.ShapeDtypeStruct(rows.shape, np.float32, sharding=sharding)
        prefixes = _ints((self.rows, self.examples_per_row), sharding)
        return Batch(encoder, decoder, rows, weights, rows, prefixes)

    def _packed(self, side: int, sharding: NamedSharding) -> Packed:
        rows = _ints((self.rows, self.widths[side]), sharding)
        view = (self.rows, self.examples_per_row, self.views[side])
        return Packed(rows, rows, rows, _ints(view, sharding))


def _ints(shape: tuple[int, ...], sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)


def shape_of(recipe: Recipe, mesh: Mesh, vocab: Vocab | None = None) -> BatchShape:
    """Returns the shape of a recipe's batches on a mesh.

    Args:
        recipe: the run, with its model.
        mesh: what batches are laid out for.
        vocab: of the model, where a checkpoint says it.

    Raises:
        ValueError: the batch does not divide, or the lengths hold no example.
    """
    layout = recipe.layout(mesh, ALL_ROWS)
    vocab, assumptions = _vocab(recipe, vocab)
    if isinstance(recipe.mixture, Mixture):
        shape = _of_mixture(recipe.mixture, layout, vocab)
    else:
        shape = _of_tasks(layout, vocab)
        assumptions.append(
            f"rows of {shape.examples_per_row} examples at INPUTS_LENGTH and "
            "TARGETS_LENGTH: shorter ones share rows, and take less"
        )
    check_rows(shape.rows, mesh, microbatches=recipe.settings.microbatches)
    return dataclasses.replace(shape, assumptions=tuple(assumptions))


def _of_mixture(mixture: Mixture, layout: Layout, vocab: Vocab) -> BatchShape:
    fields: dict[str, Any] = {
        "mixture": mixture,
        "vocab": vocab,
        "inputs_length": layout.inputs_length,
        "targets_length": layout.targets_length,
        "batch_size": layout.batch_size,
    }
    moves = isinstance(mixture, MovingMixture)
    batches = MovingBatches(**fields) if moves else MixtureBatches(**fields)
    packing = pack(
        batches,
        layout.architecture,
        shards=layout.shards,
        column_shards=layout.column_shards,
        examples_per_row=layout.examples_per_row,
    )
    return BatchShape(
        rows=packing.rows,
        examples_per_row=packing.examples_per_row,
        widths=packing.widths,
        views=packing.views,
        padding_fraction=packing.padding_fraction,
        num_denoisers=len(mixture.denoisers),
        vocab=vocab,
    )


def _of_tasks(layout: Layout, vocab: Vocab) -> BatchShape:
    per_row = layout.examples_per_row or 1
    lengths: tuple[int, ...] = layout.inputs_length, layout.targets_length
    if layout.architecture == "decoder_only":
        lengths = (sum(lengths),)
    return BatchShape(
        rows=layout.batch_size // per_row,
        examples_per_row=per_row,
        widths=tuple(per_row * length for length in lengths),
        views=lengths,
        padding_fraction=None,
        num_denoisers=1,
        vocab=vocab,
    )


def _vocab(recipe: Recipe, vocab: Vocab | None) -> tuple[Vocab, list[str]]:
    """Returns the vocabulary of the model, and what had to be assumed for it."""
    store = None if recipe.is_of_tasks else recipe.data
    if vocab is None and store is not None and Path(store).exists():
        vocab = TokenStore.open(store).vocab
    if vocab is None:
        return _t5_vocab(recipe), [
            f"{_VOCAB_SIZE} ids, as T5 has, with every sentinel that is needed: there "
            "is no token store and no checkpoint to ask"
        ]
    if recipe.mode_convention is not None:
        vocab = vocab.with_mode_convention(recipe.mode_convention)
    return vocab, []


def _t5_vocab(recipe: Recipe) -> Vocab:
    """Returns a vocabulary of T5's size with room for any objective."""
    convention = recipe.mode_convention or "paper"
    texts = MODE_CONVENTIONS.get(convention, {}).values()
    return Vocab(
        size=_VOCAB_SIZE,
        padded_size=_VOCAB_SIZE,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        start_id=0,
        sentinel_ids=tuple(range(_VOCAB_SIZE - 1, _FIRST_SENTINEL, -1)),
        mode_ids={text: (3 + index,) for index, text in enumerate(texts)},
        mode_convention=convention,
        tokenizer_sha256="",
    )
