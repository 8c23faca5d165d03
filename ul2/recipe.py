"""`Recipe`: what a run is made of, and the parts of it put together.

Nothing here knows where the values came from; `ul2.launch` reads them from gin files.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import optax
from flax import nnx
from jax.sharding import Mesh

from ul2.batch import Batch
from ul2.data.loader import Source
from ul2.data.packing import Packing, pack
from ul2.data.stream import Stream
from ul2.data.token_store import TokenStore
from ul2.denoising.mixture import Mixture
from ul2.models import architectures
from ul2.models.config import ModelConfig
from ul2.sharding.placement import host_shard, num_batch_shards
from ul2.training import loop
from ul2.training.optimizers import Optimizer
from ul2.vocab import Vocab

INITIAL_OPTIMIZERS: Final = ("reset", "keep")


class ModelClass(Protocol):
    """A model that a recipe can name."""

    architecture: str

    def __call__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> nnx.Module:
        """Draws the parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is made of, as the gin files say it.

    Attributes:
        model: the class of the model.
        model_config: makes its `ModelConfig`, given `vocab_size`.
        mixture: the objective.
        data: path of a token store.
        model_dir: where the run keeps everything.
        inputs_length: longest inputs of an example, in tokens.
        targets_length: longest targets of an example, in tokens.
        batch_size: examples per update, over all devices.
        seed: of the data, the parameters and dropout.
        optimizer: `optimizer(schedule, param_axes)`.
        schedule: learning rate by step.
        settings: how long, how often.
        mesh: see `ul2.sharding.mesh`.
        eval_batches: held-out batches per evaluation; 0 for no evaluation.
        mode_convention: how R, S and X are written; None keeps the store's.
        examples_per_row: None packs rows as full as they get.
        initial_checkpoint: a trained model, of any format, that a new run starts from.
        initial_optimizer: `keep` goes on with its optimizer, `reset` takes its
            parameters alone.
    """

    model: ModelClass
    model_config: Callable[..., ModelConfig]
    mixture: Mixture
    data: str
    model_dir: str
    inputs_length: int
    targets_length: int
    batch_size: int
    seed: int
    optimizer: Optimizer
    schedule: optax.Schedule
    settings: loop.TrainSettings
    mesh: str
    eval_batches: int
    mode_convention: str | None
    examples_per_row: int | None
    initial_checkpoint: str | None
    initial_optimizer: str

    def __post_init__(self) -> None:
        if self.initial_optimizer not in INITIAL_OPTIMIZERS:
            raise ValueError(
                f"initial_optimizer={self.initial_optimizer!r} is not one of "
                f"{', '.join(INITIAL_OPTIMIZERS)}; set INITIAL_OPTIMIZER."
            )
        if self.keeps_optimizer and self.initial_checkpoint is None:
            raise ValueError(
                "INITIAL_OPTIMIZER=keep needs the checkpoint that holds it; set "
                "INITIAL_CHECKPOINT."
            )

    @property
    def keeps_optimizer(self) -> bool:
        """Whether a new run goes on with the optimizer of its checkpoint."""
        return self.initial_optimizer == "keep"

    def make_model(self, vocab: Vocab) -> Callable[..., nnx.Module]:
        """Returns `make_model(rngs=...)`."""
        config = self.model_config(vocab_size=vocab.padded_size)
        return lambda *, rngs: self.model(config, rngs=rngs)

    def describe_model(self, vocab: Vocab) -> dict[str, Any] | None:
        """Returns what checkpoints say of the model, if it is one of ours."""
        ours = architectures.ARCHITECTURES.get(self.model.architecture)
        # By name: what gin files refer to is a subclass that gin made.
        if str(ours) != str(self.model):
            return None
        config = self.model_config(vocab_size=vocab.padded_size)
        return architectures.to_json(self.model.architecture, config)

    def open_store(self) -> tuple[TokenStore, Vocab]:
        """Opens the data; its vocabulary writes modes as the recipe says."""
        store = TokenStore.open(self.data)
        if self.mode_convention is None:
            return store, store.vocab
        return store, store.vocab.with_mode_convention(self.mode_convention)

    def open_stream(self, split: str) -> Stream:
        """Returns the examples of a split of the store.

        Held-out examples have a seed of their own: runs are compared on the same.
        """
        store, vocab = self.open_store()
        return Stream(
            split=store.split(split),
            mixture=self.mixture,
            vocab=vocab,
            inputs_length=self.inputs_length,
            targets_length=self.targets_length,
            batch_size=self.batch_size,
            seed=self.seed if split == "train" else 0,
        )

    def pack(self, stream: Stream, mesh: Mesh) -> Packing:
        """Plans the rows of the stream's batches for a mesh."""
        return pack(
            stream,
            self.model.architecture,
            shards=num_batch_shards(mesh) * self.settings.microbatches,
            examples_per_row=self.examples_per_row,
        )

    def source(self, split: str, mesh: Mesh) -> Source:
        """Returns this host's rows of every batch of a split."""
        store, _ = self.open_store()
        stream = self.open_stream(split)
        packing = self.pack(stream, mesh)
        return Source(stream, packing, *host_shard(mesh), store.fingerprint(split))

    def held_out_batches(self, mesh: Mesh) -> Callable[[], Iterator[Batch]] | None:
        """Returns a function that makes the same held-out batches each time.

        Raises:
            ValueError: the held-out text is too short for one round of the mixture.
        """
        if self.eval_batches < 0:
            raise ValueError(f"EVAL_BATCHES={self.eval_batches} must be at least 0.")
        if not self.eval_batches:
            return None
        try:
            source = self.source("held_out", mesh)
        except ValueError as error:
            raise ValueError(f"{error} Or set EVAL_BATCHES = 0.") from None
        return lambda: (source[index] for index in range(self.eval_batches))
