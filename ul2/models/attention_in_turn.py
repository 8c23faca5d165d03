"""Attention to one example after another, for a single CPU.

A CPU computes attention as fast as its caches allow. The logits of a whole batch
[E, H, L, S] fit in none, and a backward pass writes and reads several such arrays;
those of one example nearly do. So examples take turns, forward and back, and each
turn's logits are gone before the next:

    forward    logits, m = max, sum = sum exp(logits - m)     keeps out, m + log(sum)
    backward   logits again -> weights -> gradients of queries, keys, values; that of
               the bias, which all examples share, adds up from turn to turn

The softmax's backward pass needs the sum of weights * gradient of weights over keys;
that is the sum of out * gradient of out over the width (Dao et al. 2022,
"FlashAttention", appendix B.2). Against attention to all examples at once: 0.5 of the
time forward and back for 8 examples of 512, 6 heads of 64.
"""

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

# Finite, so that a query that sees nothing (padding) gives numbers and not NaN.
UNSEEN: Final = -1e10
# What the backward pass reads beside queries, keys and values.
ATTENDED: Final = "attended"


class _Example(NamedTuple):
    """What one turn reads; with a leading dim, what all turns do."""

    q: Float[Array, "*E H L K"]
    k: Float[Array, "*E G S K"]
    v: Float[Array, "*E G S K"]
    mask: Bool[Array, "*E 1 #L #S"]


@jax.custom_vjp
def attend_in_turn(
    q: Float[Array, "E H L K"],
    k: Float[Array, "E G S K"],
    v: Float[Array, "E G S K"],
    mask: Bool[Array, "#E 1 #L #S"],
    bias: Float[Array, "H L S"] | None = None,
) -> Float[Array, "E H L K"]:
    """Does what `ul2.models.attention.attend` does, without dropout."""
    return _forward(q, k, v, mask, bias)[0]


def _forward(
    q: Float[Array, "E H L K"],
    k: Float[Array, "E G S K"],
    v: Float[Array, "E G S K"],
    mask: Bool[Array, "#E 1 #L #S"],
    bias: Float[Array, "H L S"] | None,
) -> tuple[Float[Array, "E H L K"], Any]:
    examples = _Example(q, k, v, jnp.broadcast_to(mask, (len(q), *mask.shape[1:])))

    def attend_one(example: _Example) -> tuple[Array, Array]:
        logits = _logits(example, bias)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights.astype(v.dtype)
        out = _grouped("gqs,gsk->gqk", weights, example.v, jnp.float32)
        return (out / total).astype(v.dtype), largest + jnp.log(total)

    out, normalizers = jax.lax.map(attend_one, examples)
    out = checkpoint_name(out, ATTENDED)
    normalizers = checkpoint_name(normalizers, ATTENDED)
    return out, (examples, bias, out, normalizers)


def _backward(residuals: Any, d_out: Float[Array, "E H L K"]) -> tuple[Any, ...]:
    examples, bias, out, normalizers = residuals

    def pull_back(
        d_bias: Array | None, turn: tuple[_Example, Array, Array, Array]
    ) -> tuple[Array | None, tuple[Array, Array, Array]]:
        example, out, normalizer, d_out = turn
        groups = len(example.k)
        weights = jnp.exp(_logits(example, bias) - normalizer)
        d_v = _by_group("gqs,gqk->gsk", weights.astype(d_out.dtype), d_out, groups)
        d_weights = _grouped("gqk,gsk->gqs", d_out, example.v, jnp.float32)
        along = jnp.sum(d_out * out, axis=-1, keepdims=True, dtype=jnp.float32)
        d_logits = weights * (d_weights - along)
        if d_bias is not None:
            d_bias += d_logits
        d_logits = d_logits.astype(d_out.dtype)
        d_q = _grouped("gqs,gsk->gqk", d_logits, example.k)
        d_k = _by_group("gqs,gqk->gsk", d_logits, example.q, groups)
        return d_bias, (d_q, d_k, d_v)

    none = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    turns = (examples, out, normalizers, d_out)
    d_bias, (d_q, d_k, d_v) = jax.lax.scan(pull_back, none, turns)
    return d_q, d_k, d_v, None, None if d_bias is None else d_bias.astype(bias.dtype)


attend_in_turn.defvjp(_forward, _backward)


def _logits(example: _Example, bias: Array | None) -> Float[Array, "H L S"]:
    logits = _grouped("gqk,gsk->gqs", example.q, example.k, jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    return jnp.where(example.mask, logits, UNSEEN)


def _grouped(
    formula: str, x: Array, y: Float[Array, "G S K"], result: Any = None
) -> Float[Array, "H L X"]:
    """Multiplies [H, L, ...] by keys or values: heads of one group stand as one."""
    tall = x.reshape(len(y), -1, x.shape[-1])
    out = jnp.einsum(formula, tall, y, preferred_element_type=result)
    return out.reshape(*x.shape[:-1], out.shape[-1])


def _by_group(
    formula: str, x: Float[Array, "H L S"], y: Float[Array, "H L K"], groups: int
) -> Float[Array, "G S K"]:
    """Sums over the queries of each group."""
    tall = (array.reshape(groups, -1, array.shape[-1]) for array in (x, y))
    out: Array = jnp.einsum(formula, *tall)
    return out
