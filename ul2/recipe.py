"""`Recipe`: what a run is made of, and the parts of it put together.

Nothing here knows where the values came from; `ul2.launch` reads them from gin files.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from ul2.batch import HostRows
from ul2.data.corpus import Corpus
from ul2.data.run_data import Layout, RunData
from ul2.data.task_mixture import TaskMixture
from ul2.data.token_store import TokenStore
from ul2.denoising.mixture import Mixture
from ul2.models import architectures
from ul2.models.config import ModelConfig
from ul2.sharding.mesh import Workload, make_mesh
from ul2.sharding.placement import host_rows, num_batch_shards, num_column_shards
from ul2.tasks.example_tokenization import open_tasks, registered_tasks
from ul2.tasks.tokenizer import Tokenizer, pieces_of
from ul2.training import loop, precision
from ul2.training.optimizers import Optimizer
from ul2.vocab import Vocab

INITIAL_OPTIMIZERS: Final = ("reset", "keep")
# A line of evaluations holds no more.
MOST_SAMPLES: Final = 16
# Of the vocabulary, where it makes no difference.
_ANY_SIZE: Final = 128


class ModelClass(Protocol):
    """A model that a recipe can name."""

    architecture: str

    def __call__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> nnx.Module:
        """Draws the parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is made of, as the gin files say it.

    Attributes:
        mixture: the objective: denoisers, or supervised tasks.
        data: path of a token store; for tasks, where their tokenized examples are
            kept, None for the run's own directory.
        model_dir: where the run keeps everything.
        inputs_length: longest inputs of an example, in tokens.
        targets_length: longest targets of an example, in tokens.
        batch_size: examples per update, over all devices.
        seed: of the data, the parameters and dropout.
        optimizer: `optimizer(schedule, param_axes)`, of float32 parameters.
        schedule: learning rate by step.
        settings: how long, how often.
        mesh: see `ul2.sharding.mesh`.
        eval_batches: held-out batches per evaluation; 0 for no evaluation; None for
            all examples of the tasks.
        mode_convention: how R, S and X are written; None keeps the store's.
        examples_per_row: None packs rows as full as they get.
        initial_checkpoint: a trained model, of any format, that a new run starts from.
        initial_optimizer: `keep` goes on with its optimizer, `reset` takes its
            parameters alone.
        model: the class of the model; None for that of the initial checkpoint.
        model_config: makes its `ModelConfig`, given `vocab_size`; the same.
        dropout_rate: of the model; None keeps what `model_config` says.
        vocab_file: the SentencePiece model, where no checkpoint brings it.
        eval_decode: whether evaluations of tasks decode, and score the answers.
        eval_limit: so many of the held-out examples of each task, at most, are
            decoded; None for all.
        eval_modes: whether evaluations on text score it under R, S, X and no mode, too.
        eval_sources: whether they tell its sources apart, too.
        eval_samples: so many held-out examples are decoded at each evaluation, those
            of all denoisers in turn, and kept with its scores.
        mode_trial_steps: updates of each trial, where a mode is to be found.
        param_dtype: of the parameters in memory and on disk.
        rounding: how updates of bfloat16 parameters are rounded; see
            `training.precision`.
    """

    mixture: Mixture | TaskMixture
    data: str | None
    model_dir: str
    inputs_length: int
    targets_length: int
    batch_size: int
    seed: int
    optimizer: Optimizer
    schedule: optax.Schedule
    settings: loop.TrainSettings
    mesh: str
    eval_batches: int | None
    mode_convention: str | None
    examples_per_row: int | None
    initial_checkpoint: str | None
    initial_optimizer: str
    model: ModelClass | None = None
    model_config: Callable[..., ModelConfig] | None = None
    dropout_rate: float | None = None
    vocab_file: str | None = None
    eval_decode: bool = False
    eval_limit: int | None = None
    eval_modes: bool = False
    eval_sources: bool = False
    eval_samples: int = 0
    mode_trial_steps: int = 100
    param_dtype: str = "float32"
    rounding: str = "stochastic"

    def __post_init__(self) -> None:
        self._check_parts()
        precision.check(self.param_dtype, self.rounding)
        if self.initial_optimizer not in INITIAL_OPTIMIZERS:
            raise ValueError(
                f"initial_optimizer={self.initial_optimizer!r} is not one of "
                f"{', '.join(INITIAL_OPTIMIZERS)}; set INITIAL_OPTIMIZER."
            )
        if not 0 <= self.eval_samples <= MOST_SAMPLES:
            raise ValueError(
                f"eval_samples={self.eval_samples} must lie in [0, {MOST_SAMPLES}]; "
                "set EVAL_SAMPLES."
            )
        if self.keeps_optimizer and self.initial_checkpoint is None:
            raise ValueError(
                "INITIAL_OPTIMIZER=keep needs the checkpoint that holds it; set "
                "INITIAL_CHECKPOINT."
            )

    def _check_parts(self) -> None:
        """Refuses a value where a part is wanted, and a part where another is."""
        for name, is_one, what in (
            ("mixture", isinstance(self.mixture, Mixture | TaskMixture), "a mixture"),
            ("settings", isinstance(self.settings, loop.TrainSettings), "settings"),
            ("optimizer", callable(self.optimizer), "an optimizer"),
            ("schedule", callable(self.schedule), "a schedule"),
            ("model", self.model is None or callable(self.model), "a model"),
            (
                "model_config",
                self.model_config is None or callable(self.model_config),
                "a model's config",
            ),
        ):
            if not is_one:
                given = repr(getattr(self, name))[:80]
                raise ValueError(
                    f"recipe.Recipe.{name} = {given} is not {what}; take the binding "
                    "out, the files in configs/ have one."
                )

    @property
    def keeps_optimizer(self) -> bool:
        """Whether a new run goes on with the optimizer of its checkpoint."""
        return self.initial_optimizer == "keep"

    @property
    def is_of_tasks(self) -> bool:
        """Whether it trains on supervised tasks, whose text is still to be tokenized.

        Their tokenizer is that of the checkpoint.
        """
        return isinstance(self.mixture, TaskMixture)

    def with_model(self, described: dict[str, Any] | None) -> "Recipe":
        """Returns the recipe with its own model, or else the one that is described.

        Args:
            described: what a checkpoint says of its model.

        Raises:
            ValueError: there is neither.
        """
        if self.model is not None and self.model_config is not None:
            return self
        if described is None:
            raise ValueError(
                "no model: add --gin_file=configs/models/NAME.gin, or set "
                "INITIAL_CHECKPOINT to a checkpoint that describes its own."
            )
        architecture, config = architectures.from_json(described)
        model: Any = architectures.ARCHITECTURES[architecture]
        return dataclasses.replace(
            self,
            model=model,
            model_config=lambda vocab_size: dataclasses.replace(
                config, vocab_size=vocab_size
            ),
        )

    def make_model(self, vocab: Vocab) -> Callable[..., nnx.Module]:
        """Returns `make_model(rngs=...)`."""
        assert self.model is not None
        model, config = self.model, self._config(vocab)

        def make(*, rngs: nnx.Rngs) -> nnx.Module:
            return model(config, rngs=rngs)

        return precision.in_bfloat16(make) if self._rounds else make

    @property
    def param_optimizer(self) -> Optimizer:
        """The optimizer of the parameters in the dtype in which they are stored."""
        if not self._rounds:
            return self.optimizer
        return precision.rounded(self.optimizer, self.rounding, self.seed)

    @property
    def _rounds(self) -> bool:
        return self.param_dtype != "float32"

    def describe_model(self, vocab: Vocab) -> dict[str, Any] | None:
        """Returns what checkpoints say of the model, if it is one of ours."""
        assert self.model is not None
        ours = architectures.ARCHITECTURES.get(self.model.architecture)
        # By name: what gin files refer to is a subclass that gin made.
        if str(ours) != str(self.model):
            return None
        return architectures.to_json(self.model.architecture, self._config(vocab))

    def _config(self, vocab: Vocab) -> ModelConfig:
        """Returns the model's config for a vocabulary."""
        assert self.model_config is not None
        config = self.model_config(vocab_size=vocab.padded_size)
        if self.dropout_rate is None:
            return config
        return dataclasses.replace(config, dropout_rate=self.dropout_rate)

    def make_mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Returns the mesh of the run; `auto` looks at its batch and heads.

        Args:
            devices: to use; all there are by default.

        Raises:
            ValueError: MESH does not fit the devices.
        """
        workload = None
        if self.model_config is not None:
            heads = self.model_config(vocab_size=_ANY_SIZE).num_heads
            parts = self.batch_size // self.settings.microbatches
            workload = Workload(parts, heads)
        return make_mesh(self.mesh, devices, workload=workload)

    def layout(self, mesh: Mesh, host: HostRows | None = None) -> Layout:
        """Returns how batches are laid out on a mesh.

        Args:
            mesh: the device mesh.
            host: which rows to read; None for those that this process's devices need.
        """
        assert self.model is not None
        return Layout(
            architecture=self.model.architecture,
            inputs_length=self.inputs_length,
            targets_length=self.targets_length,
            batch_size=self.batch_size,
            seed=self.seed,
            shards=num_batch_shards(mesh) * self.settings.microbatches,
            column_shards=num_column_shards(mesh),
            host=host_rows(mesh) if host is None else host,
            examples_per_row=self.examples_per_row,
        )

    def open_data(
        self,
        mesh: Mesh,
        tokenizer: tuple[Tokenizer, Vocab] | None = None,
        *,
        scratch: str | Path | None = None,
    ) -> RunData:
        """Opens what the run learns from.

        Args:
            mesh: what batches are laid out for.
            tokenizer: of tasks, and the vocabulary of the model.
            scratch: where examples that were not tokenized yet are kept instead.

        Raises:
            ValueError: it is missing or damaged.
        """
        layout = self.layout(mesh)
        if isinstance(self.mixture, Mixture):
            if self.data is None:
                raise ValueError("DATA=None is no token store; set DATA.")
            store = TokenStore.open(self.data)
            return Corpus(
                store,
                self.mixture,
                layout,
                self.mode_convention,
                functools.partial(pieces_of, store.tokenizer_path, store.vocab),
            )
        assert tokenizer is not None
        return open_tasks(
            self.mixture,
            layout,
            *tokenizer,
            Path(self.model_dir) / "examples" if self.data is None else self.data,
            evaluates=self.eval_batches != 0,
            reader=registered_tasks(self.data_dir),
            scratch=scratch,
        )

    @property
    def data_dir(self) -> str | None:
        """Where the data sets of tasks lie; None for where their library looks."""
        return self.mixture.data_dir if isinstance(self.mixture, TaskMixture) else None
