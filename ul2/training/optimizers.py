"""Optimizers: functions of (schedule, parameter axes) that return optax transforms.

`adafactor` follows T5X's rule, which trained T5 and UL2, term by term:

    decay = 1 - (step + 1)^-0.8                  0 at the first step: no bias to correct
    v     = decay v + (1 - decay)(g^2 + 1e-30)   row and column means where factored
    u     = g / sqrt(v);   u /= max(1, rms(u))
    w    -= learning_rate * max(rms(w), 1e-3) * u

A scanned stack holds all layers of a kernel in one array. Each layer is its own matrix
here: statistics, clipping and parameter scale are taken layer by layer, so a scanned
and an unscanned model train alike.

Which matrices are factored is the one thing in which T5X treats the two differently:
arrays of three dims or more it factors by the names of the dims, however small they
are. Those are all kernels of a scanned model (`factor_stacked="always"`), and the
attention kernels of one whose heads are a dim of their own (`"attention"`). It matters
for small models alone, and for going on with the moments of such a run.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ul2 import axes

ParamAxes = Any  # the tree of the parameters, a tuple of logical axis names per leaf
Optimizer = Callable[[optax.Schedule, ParamAxes], optax.GradientTransformation]
FACTOR_STACKED: Final = ("by_size", "attention", "always")
_ATTENTION: Final = {axes.HEADS, axes.KV_HEADS}  # dims of attention kernels alone
_EPSILON1: Final = 1e-30  # added to squared gradients


class AdafactorState(NamedTuple):
    """Second moments; where one form is unused, its leaf is a single zero."""

    step: jax.Array
    v_row: Any
    v_col: Any
    v: Any


def adafactor(
    learning_rate: optax.ScalarOrSchedule,
    param_axes: ParamAxes,
    *,
    decay_rate: float = 0.8,
    epsilon2: float = 1e-3,
    clipping_threshold: float = 1.0,
    unscaled_params: Sequence[str] = ("relative_bias",),
    min_dim_size_to_factor: int = 128,
    factor_stacked: Literal["by_size", "attention", "always"] = "by_size",
) -> optax.GradientTransformation:
    """Returns T5X's Adafactor, without momentum.

    Args:
        learning_rate: number or schedule.
        param_axes: logical axes of every parameter.
        decay_rate: exponent of the second moment's decay.
        epsilon2: least parameter scale.
        clipping_threshold: largest RMS of an update, before the learning rate.
        unscaled_params: regular expressions of dotted parameter paths that are not
            multiplied by their own RMS; UL2 excludes the relative position biases,
            T5 nothing (`()`). Parameters with the `bias_heads` axis match
            `relative_bias` whatever they are called.
        min_dim_size_to_factor: a matrix keeps row and column means, instead of all
            its second moments, if both dims are at least this.
        factor_stacked: `always` factors the kernels of stacked layers whatever their
            size, and their relative biases never; `attention` does it for attention.

    Raises:
        ValueError: `factor_stacked` is none of these.
    """
    if factor_stacked not in FACTOR_STACKED:
        raise ValueError(
            f"{factor_stacked=} is not one of {', '.join(FACTOR_STACKED)}; set "
            "FACTOR_STACKED."
        )

    def moments_of(names: tuple[str, ...]) -> optax.GradientTransformation:
        """Returns the rule of a parameter's second moments, or of those of a layer."""
        by_name = _is_stacked(names) and (
            factor_stacked == "always"
            or (factor_stacked == "attention" and not _ATTENTION.isdisjoint(names))
        )
        # By name, a relative bias is not factored at all, whatever its size.
        is_factored = not (by_name and axes.BIAS_HEADS in names)
        min_dim = 1 if by_name else min_dim_size_to_factor
        return optax.scale_by_factored_rms(
            is_factored, decay_rate, 0, min_dim, _EPSILON1
        )

    scaled = jax.tree.map_with_path(
        lambda path, names: not _matches(_dotted(path, names), unscaled_params),
        param_axes,
        is_leaf=_is_names,
    )

    def init_param(
        names: tuple[str, ...], param: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        init = moments_of(names).init
        state = jax.vmap(init)(param) if _is_stacked(names) else init(param)
        return state.v_row, state.v_col, state.v

    def update_leaf(
        moments: optax.GradientTransformation,
        scale: bool,
        step: jax.Array,
        grad: jax.Array,
        v: tuple[jax.Array, jax.Array, jax.Array],
        param: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        old = optax.FactoredState(step, *v)
        update, new = moments.update(grad, old, param)
        update, _ = optax.clip_by_block_rms(clipping_threshold).update(
            update, optax.EmptyState()
        )
        if scale:
            update, _ = optax.scale_by_param_block_rms(epsilon2).update(
                update, optax.EmptyState(), param
            )
        return update, (new.v_row, new.v_col, new.v)

    def init(params: Any) -> AdafactorState:
        leaves = jax.tree.map(init_param, param_axes, params, is_leaf=_is_names)
        return AdafactorState(
            jnp.zeros((), jnp.int32), *_unzip(leaves, params, length=3)
        )

    def update(
        grads: Any, state: AdafactorState, params: Any = None
    ) -> tuple[Any, AdafactorState]:
        def update_param(
            names: tuple[str, ...],
            scale: bool,
            grad: jax.Array,
            *v_and_param: jax.Array,
        ) -> tuple[Any, ...]:
            *v, param = v_and_param
            moments = moments_of(names)

            def layer(grad: jax.Array, v: Any, param: jax.Array) -> Any:
                return update_leaf(moments, scale, state.step, grad, v, param)

            rule = jax.vmap(layer) if _is_stacked(names) else layer
            change, new_v = rule(grad, tuple(v), param)
            return change, *new_v

        result = jax.tree.map(
            update_param,
            param_axes,
            scaled,
            grads,
            state.v_row,
            state.v_col,
            state.v,
            params,
            is_leaf=_is_names,
        )
        updates, *new_moments = _unzip(result, params, length=4)
        return updates, AdafactorState(state.step + 1, *new_moments)

    rule = optax.GradientTransformation(init, update)
    return optax.chain(rule, optax.scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    param_axes: ParamAxes,
    *,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Returns optax's AdamW; norms and position biases do not decay."""
    decayed = jax.tree.map(
        lambda names: (
            len([n for n in names if n != axes.LAYERS]) > 1
            and axes.BIAS_HEADS not in names
        ),
        param_axes,
        is_leaf=_is_names,
    )
    rule = optax.adamw(
        learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decayed
    )
    if max_grad_norm is None:
        return rule
    if not (max_grad_norm > 0 and math.isfinite(max_grad_norm)):
        raise ValueError(f"{max_grad_norm=} must be positive; set MAX_GRAD_NORM.")
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), rule)


def _is_names(node: Any) -> bool:
    """Returns whether a node of the axes tree is a leaf of it."""
    return isinstance(node, tuple)


def _is_stacked(names: tuple[str, ...]) -> bool:
    """Returns whether the leading dim counts layers."""
    return bool(names) and names[0] == axes.LAYERS


def _dotted(path: tuple[Any, ...], names: tuple[str, ...]) -> str:
    """Returns the path as text; a relative bias says so whatever it is called."""
    text = ".".join(str(key.key) for key in path)
    return f"{text} relative_bias" if axes.BIAS_HEADS in names else text


def _matches(text: str, patterns: Sequence[str]) -> bool:
    """Returns whether any pattern occurs in the text."""
    return any(re.search(pattern, text) for pattern in patterns)


def _unzip(tree: Any, like: Any, *, length: int) -> tuple[Any, ...]:
    """Turns a tree of tuples into a tuple of trees."""
    leaves = jax.tree.structure(like)
    return tuple(jax.tree.transpose(leaves, jax.tree.structure((0,) * length), tree))
