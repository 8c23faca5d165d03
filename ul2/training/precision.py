"""Parameters that are stored in bfloat16, and how updates of them are rounded.

A bfloat16 number has 8 significant bits: its neighbours are up to 1/128 of it away.
Most updates of training are smaller than half of that, and rounding to nearest throws
them away: training stalls. So the new weight is computed in float32, and then either

    stochastic   rounded up or down by chance, with the probabilities that make the mean
                 of the rounded number the exact one: small updates count on average
    master       kept in float32, in the optimizer's state; the parameters are it,
                 rounded to nearest

Either is a wrapper around any optimizer of `training.optimizers`, which itself sees
float32 weights and float32 gradients alone. Per parameter:

                            parameter  optimizer  gradient
    float32                         4          -         4 bytes, and 2 for a copy to
    bfloat16, stochastic            2          -         2       compute with
    bfloat16, master                2          4         2

The gradient of a layer's kernel is a single matrix product with bfloat16 operands and
comes out of it in bfloat16, however the parameter is stored. Sums of several gradients
are float32: over microbatches, and those of tables, which are read in several places.
So an update has the gradients that a float32 run with these weights would have.
"""

import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, BFloat16, Float, Float32, Key

from ul2 import axes
from ul2.spelling import did_you_mean
from ul2.training.optimizers import Optimizer, ParamAxes

PARAM_DTYPES: Final = ("float32", "bfloat16")
ROUNDINGS: Final = ("stochastic", "master")
_EXPONENT_BITS, _FRACTION_BITS = 8, 7  # of bfloat16
_DROPPED_BITS: Final = 16  # of a float32
_LARGEST: Final = 0x7F7F  # the bits of the largest finite bfloat16


class StochasticState(NamedTuple):
    """What stochastic rounding remembers."""

    rounded_updates: Any  # int32 scalar: how many; part of the key of the next


class MasterState(NamedTuple):
    """What rounding to nearest remembers."""

    master: Any  # the parameters, in float32


class NewParams(NamedTuple):
    """The outcome of an update that is no difference: the parameters after it.

    The difference of two bfloat16 numbers need not be a float32 number, so adding it
    would not always give the second.
    """

    params: Any


def check(param_dtype: str, rounding: str) -> None:
    """Refuses what is no dtype of parameters, or no way to round.

    Raises:
        ValueError: names the knob.
    """
    if param_dtype not in PARAM_DTYPES:
        raise ValueError(
            f"{param_dtype=} is not one of {', '.join(PARAM_DTYPES)}"
            f"{did_you_mean(param_dtype, PARAM_DTYPES)}; set PARAM_DTYPE."
        )
    if rounding not in ROUNDINGS:
        raise ValueError(
            f"{rounding=} is not one of {', '.join(ROUNDINGS)}; set ROUNDING."
        )


def in_bfloat16(make_model: Callable[..., nnx.Module]) -> Callable[..., nnx.Module]:
    """Returns a `make_model(rngs=...)` whose parameters are bfloat16.

    They are drawn in float32 and rounded to nearest.
    """

    def make(*, rngs: nnx.Rngs) -> nnx.Module:
        model = make_model(rngs=rngs)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(round_to_nearest, params))
        return model

    return make


def in_float32(tree: Any) -> Any:
    """Returns the arrays of a tree in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def tables_in_float32(params: Any, param_axes: ParamAxes) -> Any:
    """Returns parameters whose gradients are sums over several places in float32.

    A layer of a stack is read in one place. All other parameters are small.
    """

    def of_one(param: Array, names: tuple[str, ...]) -> Array:
        is_layer = names[:1] == (axes.LAYERS,)
        return param if is_layer else param.astype(jnp.float32)

    return jax.tree.map(of_one, params, param_axes)


def rounded(optimizer: Optimizer, rounding: str, seed: int) -> Optimizer:
    """Returns an optimizer of bfloat16 parameters.

    Its state is that of `optimizer`, a tuple, with one more link behind: a
    `StochasticState` or a `MasterState`. Its updates are `NewParams`.

    Args:
        optimizer: of float32 parameters.
        rounding: `stochastic` or `master`.
        seed: of stochastic rounding. What is drawn for a number is a function of seed,
            update, path of the parameter and place in it: the same on every mesh.
    """

    def make(
        schedule: optax.Schedule, param_axes: ParamAxes
    ) -> optax.GradientTransformation:
        inner = optimizer(schedule, param_axes)
        link = _Stochastic(seed) if rounding == "stochastic" else _Master()

        def init(params: Any) -> tuple[Any, ...]:
            state = inner.init(in_float32(params))
            assert type(state) is tuple, "an optimizer is an optax.chain"
            return (*state, link.init(params))

        def update(
            grads: Any, state: tuple[Any, ...], params: Any = None
        ) -> tuple[NewParams, tuple[Any, ...]]:
            *links, last = state
            weights = link.weights(last, params)
            changes, links = inner.update(in_float32(grads), tuple(links), weights)
            weights = optax.apply_updates(weights, changes)
            params, last = link.round(last, weights)
            return NewParams(params), (*links, last)

        return optax.GradientTransformation(init, update)

    return make


def apply_updates(params: Any, updates: Any) -> Any:
    """Returns the parameters after an update, rounded or not."""
    if isinstance(updates, NewParams):
        return updates.params
    return optax.apply_updates(params, updates)


def split_state(opt_state: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the state of an optimizer without the link that rounds, and that link.

    The link is empty for an optimizer that does not round.
    """
    if type(opt_state) is tuple and isinstance(
        opt_state[-1], StochasticState | MasterState
    ):
        return opt_state[:-1], opt_state[-1:]
    return opt_state, ()


def stochastic_round(
    x: Float32[Array, "..."], key: Key[Array, ""]
) -> BFloat16[Array, "..."]:
    """Rounds up or down by chance, so that the mean is `x`.

    The dropped half of the bits, as a fraction of what it may be at most, is the
    probability of the neighbour that is farther from 0: adding a random number of as
    many bits carries into the kept half exactly that often.

        0.3 is 0x3e99 999a    0x999a / 0x10000 = 60 % become 0x3e9a, the rest 0x3e99

    Numbers that bfloat16 has, infinities among them, stay what they are. Finite numbers
    stay finite: beyond the largest bfloat16 they become it.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    chance = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = ((bits + chance) >> _DROPPED_BITS).astype(jnp.uint16)
    sign, magnitude = kept & jnp.uint16(0x8000), kept & jnp.uint16(0x7FFF)
    kept = sign | jnp.minimum(magnitude, jnp.uint16(_LARGEST))
    rounded = jax.lax.bitcast_convert_type(kept, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def round_to_nearest(x: Float[Array, "..."]) -> BFloat16[Array, "..."]:
    """Returns the nearest bfloat16 numbers.

    XLA may leave out a conversion that is undone later, and keep all bits of `x`; it
    leaves `reduce_precision` where it is.
    """
    exact = jax.lax.reduce_precision(x, _EXPONENT_BITS, _FRACTION_BITS)
    return exact.astype(jnp.bfloat16)


def rounded_to(x: Float32[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
    """Returns a float32 array as it is stored in one of `PARAM_DTYPES`."""
    return x if dtype == jnp.float32 else round_to_nearest(x)


class _Stochastic:
    """Weights are the parameters themselves."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def init(self, params: Any) -> StochasticState:
        del params
        return StochasticState(jnp.zeros((), jnp.int32))

    def weights(self, state: StochasticState, params: Any) -> Any:
        del state
        return in_float32(params)

    def round(
        self, state: StochasticState, weights: Any
    ) -> tuple[Any, StochasticState]:
        # Dropout draws from a key of the same seed; this is another.
        key = jax.random.fold_in(jax.random.key(self._seed), _number_of("rounding"))
        key = jax.random.fold_in(key, state.rounded_updates)

        def of_one(path: tuple[Any, ...], weight: Array) -> Array:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return stochastic_round(weight, jax.random.fold_in(key, _number_of(name)))

        params = jax.tree.map_with_path(of_one, weights)
        return params, StochasticState(state.rounded_updates + 1)


class _Master:
    """Weights are kept beside the parameters."""

    def init(self, params: Any) -> MasterState:
        return MasterState(in_float32(params))

    def weights(self, state: MasterState, params: Any) -> Any:
        del params
        return state.master

    def round(self, state: MasterState, weights: Any) -> tuple[Any, MasterState]:
        del state
        return jax.tree.map(round_to_nearest, weights), MasterState(weights)


def _number_of(text: str) -> int:
    """Returns the same number for the same text, always."""
    return zlib.crc32(text.encode())
