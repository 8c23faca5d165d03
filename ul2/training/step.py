"""One update, and one evaluation, as pure compiled functions.

A batch may be cut into M microbatches that run one after another inside the same
program; their gradients and sums are added, and the division happens once at the end,
so M microbatches give the update of one batch whatever each of them holds. The loss is
divided by the number of target tokens of the whole global batch (`target_tokens`), or
by nothing (`sum`, as T5X; harmless under Adafactor, which does not see the scale).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from ul2 import axes
from ul2.batch import Batch
from ul2.models import probes
from ul2.sharding.placement import batch_sharding, num_batch_shards
from ul2.sharding.rules import (
    DEFAULT_RULES,
    Rules,
    logical_axes,
    mesh_axes,
    replicated,
)
from ul2.training.guard import Measured, Verdict, judge
from ul2.training.losses import LossSums, chunk_columns, cross_entropy, zero_sums
from ul2.training.precision import apply_updates, in_float32, tables_in_float32
from ul2.training.state import ModelDef, Params, TrainState

LOSS_NORMALIZERS = ("target_tokens", "sum")


class StepSums(NamedTuple):
    """What one update measured; all of it global, on every host the same."""

    loss: Float[Array, " K"]  # per denoiser, summed over its target tokens
    correct: Float[Array, " K"]
    tokens: Float[Array, " K"]
    z_loss: Float[Array, ""]
    weights: Float[Array, ""]
    grad_norm: Float[Array, ""]
    param_norm: Float[Array, ""]  # before the update
    learning_rate: Float[Array, ""]
    examples: Int[Array, ""]
    encoder_tokens: Int[Array, ""]  # not padding
    decoder_tokens: Int[Array, ""]
    columns: Int[Array, ""]  # padding or not, both sides
    verdict: Verdict | None = None  # None: without a guard, the update was made


class EvalSums(NamedTuple):
    """Sums per denoiser over one batch, and how often each target occurred."""

    loss: Float[Array, " K"]
    correct: Float[Array, " K"]
    tokens: Float[Array, " K"]
    target_counts: Int[Array, "K V"]
    examples: Int[Array, " K"]
    right_examples: Int[Array, " K"]  # all targets of which are the likeliest


class TrainStep(Protocol):
    """One update."""

    def __call__(
        self, state: TrainState, batch: Batch, /
    ) -> tuple[TrainState, StepSums]:
        """Makes an update; the state that it is given is consumed."""

    def lower(self, state: TrainState, batch: Batch, /) -> jax.stages.Lowered:
        """Returns the program of these shapes, not compiled yet."""


EvalStep = Callable[[Params, Batch], EvalSums]


def make_train_step(
    model: ModelDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
    *,
    state_shardings: TrainState,
    settings: "StepSettings",
    prior_steps: int = 0,
) -> TrainStep:
    """Returns the compiled update; it consumes (donates) the state it is given.

    Args:
        model: what is trained.
        optimizer: with its schedule.
        schedule: the same, to be measured.
        mesh: the devices.
        rules: logical axis to mesh axis.
        state_shardings: of the state.
        settings: what is compiled in.
        prior_steps: updates of the optimizer before the state's first. It is no part
            of the program, so a run that goes on with an optimizer has the bits of the
            one that it was taken from.
    """

    def train_step(
        state: TrainState, batch: Batch, prior_steps: Int[Array, ""]
    ) -> tuple[TrainState, StepSums]:
        key = key_of_update(settings.seed, state.step)
        grads, sums = accumulate(model, state.params, batch, key, mesh, rules, settings)
        grads = in_float32(grads)
        if settings.loss_normalizer == "target_tokens":
            total = jnp.maximum(sums.weights, 1.0)
            grads = jax.tree.map(lambda grad: grad / total, grads)
        rate = schedule(prior_steps + _updates_made(state))
        measured = _measure(state, batch, grads, sums, rate)

        def update(old: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(grads, old.opt_state, old.params)
            params = apply_updates(old.params, updates)
            return TrainState(old.step + 1, params, opt_state, old.guard)

        if state.guard is None:
            return update(state), measured
        others = (sums.objective, measured.learning_rate, measured.param_norm)
        guard, verdict = judge(
            state.guard,
            Measured(measured.loss, measured.tokens, measured.grad_norm, others),
            settings.spike_threshold,
            settings.holds_spikes,
        )
        # A branch, not a choice leaf by leaf: that would keep moments of old and new
        # at once, where the update of a parameter reads its new moments.
        new = jax.lax.cond(verdict.made, update, lambda old: old, state)
        return new._replace(guard=guard), measured._replace(verdict=verdict)

    compiled = jax.jit(
        train_step,
        in_shardings=(
            state_shardings,
            batch_sharding(mesh, rules),
            replicated(mesh),
        ),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return OnMesh(compiled, mesh, rules, np.int32(prior_steps))


class StepSettings(NamedTuple):
    """The part of `TrainSettings` that is compiled into the step."""

    seed: int
    num_denoisers: int
    microbatches: int
    loss_normalizer: str
    z_loss: float
    loss_chunk: int | str  # columns, or `auto`
    # Of a state that has a guard.
    spike_threshold: float = 0.0
    holds_spikes: bool = False


def key_of_update(seed: int, step: Int[Array, ""]) -> Array:
    """Returns what the dropout of an update is drawn from."""
    return jax.random.fold_in(jax.random.key(seed), step)


def accumulate(
    model: ModelDef,
    params: Params,
    batch: Batch,
    key: Array,
    mesh: Mesh,
    rules: Rules,
    settings: StepSettings,
) -> tuple[Params, LossSums]:
    """Returns the gradients and sums of a batch, summed over its microbatches."""

    def objective(
        params: Params, batch: Batch, key: Array
    ) -> tuple[Float[Array, ""], LossSums]:
        sums, _ = forward(
            model,
            params,
            batch,
            dropout_key=key,
            num_denoisers=settings.num_denoisers,
            z_loss=settings.z_loss,
            loss_chunk=settings.loss_chunk,
            row_shards=num_batch_shards(mesh, rules),
        )
        return sums.objective, sums

    gradient = jax.grad(objective, has_aux=True)
    params = tables_in_float32(params, model.param_axes)
    if settings.microbatches == 1:
        grads, sums = gradient(params, batch, key)
        return grads, sums

    def add_microbatch(
        carry: tuple[Params, LossSums], inputs: tuple[Array, Batch]
    ) -> tuple[tuple[Params, LossSums], None]:
        index, microbatch = inputs
        new = gradient(params, microbatch, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, carry, new), None

    microbatches = split_microbatches(batch, settings.microbatches, mesh, rules)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    totals, _ = jax.lax.scan(
        add_microbatch,
        (zeros, zero_sums(settings.num_denoisers)),
        (jnp.arange(settings.microbatches), microbatches),
    )
    return totals


def split_microbatches(batch: Batch, count: int, mesh: Mesh, rules: Rules) -> Batch:
    """Cuts the rows [B, ...] into microbatches [count, B / count, ...].

    Row r goes to microbatch r % count, so every device keeps its own rows.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, mesh_axes(axes.BATCH, rules)))

    def split(array: Array) -> Array:
        rows, *rest = array.shape
        cut = jnp.swapaxes(array.reshape(rows // count, count, *rest), 0, 1)
        constrained: Array = jax.lax.with_sharding_constraint(cut, sharding)
        return constrained

    result: Batch = jax.tree.map(split, batch)
    return result


def make_eval_step(
    model: ModelDef,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
    *,
    param_shardings: Any,
    num_denoisers: int,
    vocab_size: int,
    loss_chunk: int | str,
) -> EvalStep:
    """Returns the compiled evaluation of one batch, without dropout or z-loss."""

    def eval_step(params: Params, batch: Batch) -> EvalSums:
        sums, correct = forward(
            model,
            params,
            batch,
            dropout_key=None,
            num_denoisers=num_denoisers,
            z_loss=0.0,
            loss_chunk=loss_chunk,
            row_shards=num_batch_shards(mesh, rules),
        )
        counted = (batch.loss_weights > 0) & (batch.denoiser_ids >= 0)
        # Rows past the last are dropped: nowhere else to send what does not count.
        rows = jnp.where(counted, batch.denoiser_ids, num_denoisers)
        counts = jnp.zeros((num_denoisers, vocab_size), jnp.int32)
        counts = counts.at[rows, batch.targets].add(1, mode="drop")
        examples, right = _count_examples(batch, counted, correct, num_denoisers)
        return EvalSums(sums.loss, sums.correct, sums.tokens, counts, examples, right)

    compiled = jax.jit(
        eval_step,
        in_shardings=(param_shardings, batch_sharding(mesh, rules)),
        out_shardings=replicated(mesh),
    )
    return OnMesh(compiled, mesh, rules)


def _count_examples(
    batch: Batch,
    counted: Bool[Array, "B T"],
    correct: Bool[Array, "B T"],
    num_denoisers: int,
) -> tuple[Int[Array, " K"], Int[Array, " K"]]:
    """Returns the examples of each denoiser, and those predicted right to the end."""
    per_row = batch.prefix_lengths.shape[1]

    def of_row(
        segments: Array, counted: Array, correct: Array, ids: Array
    ) -> tuple[Array, Array]:
        places = jnp.where(counted, segments - 1, per_row)
        wrong = jnp.zeros(per_row, jnp.int32)
        wrong = wrong.at[places].add(~correct, mode="drop")
        owner = jnp.full(per_row, num_denoisers)
        return wrong, owner.at[places].min(ids, mode="drop")

    wrong, owner = jax.vmap(of_row)(
        batch.decoder.segment_ids, counted, correct, batch.denoiser_ids
    )
    none = jnp.zeros(num_denoisers, jnp.int32)
    examples = none.at[owner].add(1, mode="drop")
    return examples, none.at[owner].add(wrong == 0, mode="drop")


class OnMesh:
    """A jitted function, traced where logical names of activations mean something.

    Args:
        jitted: the function.
        mesh: the devices.
        rules: logical axis to mesh axis.
        last: its last arguments, the same at every call.
    """

    def __init__(self, jitted: Any, mesh: Mesh, rules: Rules, *last: Any) -> None:
        self._jitted, self._mesh, self._rules = jitted, mesh, rules
        self._last = last

    def __call__(self, *args: Any) -> Any:
        """Calls it."""
        with logical_axes(self._mesh, self._rules):
            return self._jitted(*args, *self._last)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Returns the program of these shapes, not compiled yet."""
        with logical_axes(self._mesh, self._rules):
            lowered: jax.stages.Lowered = self._jitted.lower(*args, *self._last)
        return lowered


def forward(
    model: ModelDef,
    params: Params,
    batch: Batch,
    *,
    dropout_key: Array | None,
    num_denoisers: int,
    z_loss: float,
    loss_chunk: int | str,
    row_shards: int,
) -> tuple[LossSums, Bool[Array, "B T"]]:
    """Runs the model and its loss on one batch; returns sums, and what is right."""
    module = model.merge(params)
    hidden = module(batch, dropout_key=dropout_key)
    probes.probe("hidden states", hidden)
    rows, columns = batch.targets.shape
    chunk_length = chunk_columns(
        loss_chunk,
        rows=-(-rows // row_shards),
        columns=columns,
        vocab_size=jax.eval_shape(module.unembed, hidden[:1, :1]).shape[-1],
    )
    return cross_entropy(
        module.unembed,
        hidden,
        batch.targets,
        batch.loss_weights,
        batch.denoiser_ids,
        num_denoisers=num_denoisers,
        z_loss_weight=z_loss,
        chunk_length=chunk_length,
    )


def _measure(
    state: TrainState,
    batch: Batch,
    grads: Params,
    sums: LossSums,
    learning_rate: Any,
) -> StepSums:
    """Returns what is worth knowing about an update."""
    encoder = batch.encoder
    decoder_ids = batch.decoder.segment_ids
    zero = jnp.zeros((), jnp.int32)
    columns = decoder_ids.size + (encoder.segment_ids.size if encoder else 0)
    return StepSums(
        loss=sums.loss,
        correct=sums.correct,
        tokens=sums.tokens,
        z_loss=sums.z_loss,
        weights=sums.weights,
        grad_norm=optax.tree.norm(grads),
        param_norm=optax.tree.norm(in_float32(state.params)),
        learning_rate=jnp.asarray(learning_rate, jnp.float32),
        examples=jnp.sum(jnp.max(decoder_ids, axis=1)),
        encoder_tokens=jnp.sum(encoder.segment_ids > 0) if encoder else zero,
        decoder_tokens=jnp.sum(decoder_ids > 0),
        columns=jnp.asarray(columns, jnp.int32),
    )


def _updates_made(state: TrainState) -> Int[Array, ""]:
    """Returns the updates that the optimizer has counted: not those left out."""
    made: Array = state.step
    return made if state.guard is None else made - state.guard.skipped
