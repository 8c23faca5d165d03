"""What went bad first, in an update that was held back.

Compiled and run only then, on the batch and the parameters of that update, dropout
included, on all hosts alike. In the order in which a person wants to know it:

    parameters   those that were not finite before the update
    forward      the first sublayer whose output is not, and in which rows
    loss         weights of the batch, or logits of finite hidden states
    backward     the first parameter, from the loss downwards, whose gradient is not

and, where all of that is finite, as for a spike, the examples that lost the most.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from ul2 import axes
from ul2.batch import Batch
from ul2.models import probes
from ul2.sharding.placement import batch_sharding, num_batch_shards
from ul2.sharding.rules import Rules, replicated
from ul2.training.precision import tables_in_float32
from ul2.training.state import ModelDef, Params, TrainState
from ul2.training.step import (
    OnMesh,
    StepSettings,
    accumulate,
    forward,
    key_of_update,
    split_microbatches,
)

_SHOWN: Final = 5
# The sublayers of a layer, in the order of the forward pass.
_SUBLAYERS: Final = (
    "relative_bias",
    "pre_attention_norm",
    "attention",
    "pre_cross_attention_norm",
    "cross_attention",
    "pre_mlp_norm",
    "mlp",
)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is known of a bad update.

    Attributes:
        first_bad: what went bad first, in words; None where all is finite.
        rows: of the global batch, in which it did; empty where it was all of them, or
            nobody knows.
        parameters: dotted paths of those that were not finite before the update, with
            the layer where there are several.
        worst_examples: (row, number in the row, loss per token) of those that lost the
            most, the worst first; empty where a loss is not finite.
    """

    first_bad: str | None = None
    rows: tuple[int, ...] = ()
    parameters: tuple[str, ...] = ()
    worst_examples: tuple[tuple[int, int, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain JSON values."""
        return dataclasses.asdict(self)


class Site(NamedTuple):
    """A place in a model: a sublayer, or a parameter."""

    name: str
    layer: int | None

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}, layer {self.layer}"


class _Seen(NamedTuple):
    """What a forward pass showed."""

    params: Any  # of each parameter whether it is finite: [], or [layers]
    places: tuple[Any, ...]  # of each row whether it is finite: [B], or [layers, B]
    weights: Any  # of each row, [B]
    losses: Any  # [B, N], summed over the targets of each example
    tokens: Any  # [B, N]


class Diagnoser:
    """Finds what went bad; nothing is compiled before it is asked.

    Args:
        model: that trains.
        mesh: the devices.
        rules: logical axis to mesh axis.
        param_shardings: of the parameters.
        settings: of the step.
    """

    def __init__(
        self,
        model: ModelDef,
        mesh: Mesh,
        rules: Rules,
        *,
        param_shardings: Any,
        settings: StepSettings,
    ) -> None:
        self._model, self._mesh, self._rules = model, mesh, rules
        self._settings = settings
        self._names: tuple[str, ...] = ()
        whole = replicated(mesh)
        shardings = (param_shardings, whole, batch_sharding(mesh, rules))
        self._look, self._differentiate = (
            OnMesh(
                jax.jit(function, in_shardings=shardings, out_shardings=whole),
                mesh,
                rules,
            )
            for function in (self._seen, self._finite_gradients)
        )

    def __call__(self, state: TrainState, batch: Batch) -> Diagnosis:
        """Looks at an update; call it on all hosts.

        Args:
            state: before it.
            batch: that it was to be made with.
        """
        seen: _Seen = jax.device_get(self._look(state.params, state.step, batch))
        bad = [str(site) for site in _not_finite(seen.params)]
        first, rows = _first_place(self._names, seen)
        if first is None and bad:
            first = f"the parameter {bad[0]}"
        if first is None:
            finite = self._differentiate(state.params, state.step, batch)
            sites = sorted(_not_finite(jax.device_get(finite)), key=backward_order)
            first = f"the gradient of {sites[0]}" if sites else None
        worst = _worst_examples(seen) if first is None else ()
        return Diagnosis(first, rows, tuple(bad[:_SHOWN]), worst)

    def _seen(self, params: Params, step: Int[Array, ""], batch: Batch) -> _Seen:
        """Runs the batch forward, one microbatch after another, as the step does."""
        count = self._settings.microbatches
        key = key_of_update(self._settings.seed, step)
        keys = (
            key[None]
            if count == 1
            else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
        )
        cut = split_microbatches(batch, count, self._mesh, self._rules)
        wide = tables_in_float32(params, self._model.param_axes)
        places, *others = jax.lax.map(lambda one: self._run(wide, *one), (keys, cut))
        return _Seen(
            _finite(params, self._model.param_axes),
            tuple(_in_order(rows, rows.ndim - 1) for rows in places),
            *(_in_order(array, 1) for array in others),
        )

    def _run(
        self, params: Params, key: Array, batch: Batch
    ) -> tuple[tuple[Array, ...], Array, Array, Array]:
        """Runs one microbatch; its examples stand where denoisers usually do."""
        num_rows, per_row = batch.prefix_lengths.shape[:2]
        rows = jnp.arange(num_rows)[:, None] * per_row
        segments = batch.decoder.segment_ids
        ids = jnp.where(segments > 0, rows + segments - 1, -1)
        with probes.watching() as seen:
            sums, _ = forward(
                self._model,
                params,
                batch._replace(denoiser_ids=ids),
                dropout_key=key,
                num_denoisers=num_rows * per_row,
                z_loss=self._settings.z_loss,
                loss_chunk=self._settings.loss_chunk,
                row_shards=num_batch_shards(self._mesh, self._rules),
            )
        self._names = tuple(seen.names)
        weights = jnp.all(jnp.isfinite(batch.loss_weights), axis=1)
        losses, tokens = (
            array.reshape(num_rows, per_row) for array in (sums.loss, sums.tokens)
        )
        return tuple(seen.rows), weights, losses, tokens

    def _finite_gradients(
        self, params: Params, step: Int[Array, ""], batch: Batch
    ) -> Params:
        key = key_of_update(self._settings.seed, step)
        grads, _ = accumulate(
            self._model, params, batch, key, self._mesh, self._rules, self._settings
        )
        return _finite(grads, self._model.param_axes)


def _finite(tree: Params, param_axes: Any) -> Params:
    """Returns of each array whether it is finite; of a stacked one, layer by layer."""

    def of_one(array: Array, names: tuple[str, ...]) -> Array:
        first = 1 if names[:1] == (axes.LAYERS,) else 0
        return jnp.all(jnp.isfinite(array), axis=tuple(range(first, array.ndim)))

    finite: Params = jax.tree.map(of_one, tree, param_axes)
    return finite


def _in_order(array: Array, dim: int) -> Array:
    """Puts rows back that were cut into microbatches; `dim` is that of the rows.

    [M, ..., B / M, ...]  ->  [..., B, ...]       row r was in microbatch r % M
    """
    moved = jnp.moveaxis(array, 0, dim)
    shape = (*moved.shape[: dim - 1], -1, *moved.shape[dim + 1 :])
    return moved.reshape(shape)


def _not_finite(finite: Any) -> list[Site]:
    """Returns which arrays, or layers of them, are not finite."""
    return [
        Site(jax.tree_util.keystr(path, simple=True, separator="."), layer)
        for path, leaf in jax.tree.leaves_with_path(finite)
        for layer in _layers(np.asarray(leaf))
    ]


def _layers(finite: np.ndarray) -> Iterator[int | None]:
    """Yields the layers that are not finite; None for an array of no layers."""
    if finite.ndim:
        yield from np.flatnonzero(~finite).tolist()
    elif not finite:
        yield None


def _first_place(
    names: Sequence[str], seen: _Seen
) -> tuple[str | None, tuple[int, ...]]:
    """Returns the first place of the forward pass that is not finite, and its rows."""
    for site, rows in _in_forward_order(names, seen.places):
        if not rows.all():
            return str(site), _numbers(~rows)
    if not seen.weights.all():
        return "the loss weights of the batch", _numbers(~seen.weights)
    if not np.isfinite(seen.losses).all():
        return "the logits, or the loss of them", ()
    return None, ()


def _in_forward_order(
    names: Sequence[str], places: Sequence[np.ndarray]
) -> Iterator[tuple[Site, np.ndarray]]:
    """Yields places and their rows: of a stack, all those of a layer, then the next.

    a [B], b [2, B], c [2, B], d [B]   ->   a, b 0, c 0, b 1, c 1, d
    """
    pairs = zip(names, places, strict=True)
    for dims, group in itertools.groupby(pairs, key=lambda pair: pair[1].ndim):
        some = list(group)
        if dims == 1:
            yield from ((Site(name, None), rows) for name, rows in some)
            continue
        for layer in range(len(some[0][1])):
            yield from ((Site(name, layer), rows[layer]) for name, rows in some)


def _numbers(chosen: np.ndarray) -> tuple[int, ...]:
    """Returns which are chosen; none where all are: that tells nothing of any."""
    return () if chosen.all() else tuple(np.flatnonzero(chosen).tolist())


def backward_order(site: Site) -> tuple[int, int, int]:
    """Sorts parameters as the backward pass meets them; tables are met at both ends."""
    stack, *rest = site.name.split(".")
    if "logits_kernel" in rest:
        return 0, 0, 0
    first = {"decoder": 0, "encoder": 3}.get(stack, 6)
    if rest[:1] == ["layers"]:
        known = rest[1] in _SUBLAYERS
        sublayer = _SUBLAYERS.index(rest[1]) if known else 0
        return first + 2, -(site.layer or 0), -sublayer
    return first + (1 if rest[:1] == ["final_norm"] else 3), -(site.layer or 0), 0


def _worst_examples(seen: _Seen) -> tuple[tuple[int, int, float], ...]:
    """Returns the examples whose targets were the least expected."""
    means = np.where(seen.tokens > 0, seen.losses / np.maximum(seen.tokens, 1), -np.inf)
    order = np.argsort(-means, axis=None)[:_SHOWN]
    places = (np.unravel_index(place, means.shape) for place in order)
    return tuple(
        (int(row), int(number), float(means[row, number]))
        for row, number in places
        if seen.tokens[row, number] > 0
    )
