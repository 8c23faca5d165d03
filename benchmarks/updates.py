"""What several benchmarks measure: the update that `ul2 train` makes, and a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from ul2.batch import Batch, one_per_row
from ul2.models import architectures
from ul2.models.config import ModelConfig
from ul2.sharding.mesh import make_mesh
from ul2.sharding.placement import place
from ul2.training.guard import Guard
from ul2.training.optimizers import adafactor, adamw
from ul2.training.schedules import constant
from ul2.training.state import (
    TrainState,
    abstract_state,
    define_model,
    guarded,
    init_state,
    with_shardings,
)
from ul2.training.step import StepSettings, TrainStep, make_train_step
from ul2.vocab import Vocab

VOCAB_SIZE, DENOISERS = 32128, 7
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adafactor": adafactor,
    "adamw": adamw,
}
# Layers on each side, and widths. The larger is that of T5 v1.1 small.
SIZES: dict[str, dict[str, Any]] = {
    "small": {"embed_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 128,
              "num_encoder_layers": 2, "num_decoder_layers": 2, "vocab_size": 1024},
    "77M": {"embed_dim": 512, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024,
            "num_encoder_layers": 8, "num_decoder_layers": 8,
            "vocab_size": VOCAB_SIZE},
}  # fmt: skip


def make_config(size: str, *, remat: str = "none", **changes: Any) -> ModelConfig:
    """Returns the config of a model in float32, without dropout."""
    fields = {
        "activation": "silu", "gated": True, "positions": "relative",
        "tied_embeddings": False, "dropout_rate": 0.0, "dtype": "float32",
    }  # fmt: skip
    return ModelConfig(**{**SIZES[size], **fields, "remat": remat, **changes})


def make_batch(rows: int, inputs: int, targets: int, vocab_size: int) -> Batch:
    """Returns rows of one example each, of random tokens, of all denoisers in turn.

    Args:
        rows: examples.
        inputs: tokens that the encoder reads; 0 for a decoder-only model.
        targets: tokens that are predicted.
        vocab_size: of the tokens.
    """
    rng = np.random.default_rng(0)

    def tokens(length: int) -> Any:
        return rng.integers(3, vocab_size, (rows, length), np.int32)

    ids = np.arange(rows, dtype=np.int32) % DENOISERS
    return Batch(
        encoder=one_per_row(tokens(inputs)) if inputs else None,
        decoder=one_per_row(tokens(targets)),
        targets=tokens(targets),
        loss_weights=np.ones((rows, targets), np.float32),
        denoiser_ids=np.repeat(ids[:, None], targets, axis=1),
        prefix_lengths=np.zeros((rows, 1), np.int32),
    )


def make_vocab(size: int) -> Vocab:
    """Returns a vocabulary without modes, whose last hundred ids are sentinels."""
    return Vocab(
        size=size,
        padded_size=size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        start_id=0,
        sentinel_ids=tuple(range(size - 100, size)),
        mode_ids={},
        mode_convention="paper",
        tokenizer_sha256="0" * 64,
    )


class Program(NamedTuple):
    """An update that is not compiled yet, and the state that it is made of."""

    step: TrainStep
    abstract: TrainState
    init: Callable[[], TrainState]


def make_program(
    config: ModelConfig,
    mesh: Mesh,
    *,
    architecture: str = "encoder_decoder",
    optimizer: str = "adafactor",
    is_guarded: bool = True,
) -> Program:
    """Returns the update as `ul2 train` makes it with its default settings."""
    make_model = architectures.make_model(architecture, config)
    model, schedule = define_model(make_model), constant(1e-3)
    rule = OPTIMIZERS[optimizer](schedule, model.param_axes)
    both = abstract_state(make_model, rule, mesh)
    if is_guarded:
        both = guarded(*both, DENOISERS, mesh)
    settings = StepSettings(0, DENOISERS, 1, "target_tokens", 1e-4, "auto", 10.0, True)
    step = make_train_step(
        model, rule, schedule, mesh, state_shardings=both[1], settings=settings
    )

    def init() -> TrainState:
        state = init_state(make_model, rule, mesh, seed=0)
        if not is_guarded:
            return state
        assert both[1].guard is not None
        guard = Guard.fresh(DENOISERS).placed(both[1].guard.held)
        return state._replace(guard=guard)

    return Program(step, with_shardings(*both), init)


class Training:
    """A state, and the update that it goes through."""

    def __init__(self, program: Program, mesh: Mesh) -> None:
        self.program, self._mesh = program, mesh
        self.state = program.init()

    def update(self, batch: Batch) -> None:
        """Makes one update, and waits until it is done."""
        self.state, sums = self.program.step(self.state, place(batch, self._mesh))
        jax.block_until_ready((self.state, sums))


def one_device() -> Mesh:
    """Returns a mesh of the first device."""
    return make_mesh("auto", jax.devices()[:1])
