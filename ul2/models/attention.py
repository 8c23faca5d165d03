"""Attention over the examples of packed rows.

Projections run on whole rows [B, T], where almost every column is a token. Only the
product of queries and keys needs to know examples: they are cut out after the
projections (see `packing.py`), attend each on its own, and go back. E = B * N is the
number of examples in a batch.

    x [B,T,D] -> query, key, value [B,T,H*K] -> examples [E,H,L,K] -> softmax(q k) v
              -> rows [B,T,H*K] -> out [B,T,D]
"""

import math
from typing import Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ul2.axes import EMBED, HEADS, KV_HEADS
from ul2.batch import Packed
from ul2.models.config import ModelConfig
from ul2.models.dropout import DropoutKey, dropout
from ul2.models.masks import Mask
from ul2.models.packing import pack, unpack
from ul2.models.parameters import ATTENTION_INIT, make_parameter
from ul2.models.positions import rotate
from ul2.models.projection import project

# Finite, so that a query that sees nothing (padding) gives numbers and not NaN.
_UNSEEN: Final = -1e10


def attend(
    q: Float[Array, "E H L K"],
    k: Float[Array, "E G S K"],
    v: Float[Array, "E G S K"],
    mask: Bool[Array, "#E 1 #L #S"],
    bias: Float[Array, "H L S"] | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: DropoutKey = None,
) -> Float[Array, "E H L K"]:
    """Averages the values each query may see, weighted by its match with the keys.

    The logits are not divided by sqrt(K); softmax is in float32. Query heads
    h*H/G .. (h+1)*H/G - 1 share key head h: they stand under one another as
    one tall matrix, so keys are never repeated.
    """
    examples, num_heads, length, width = q.shape
    kv_heads, num_keys = k.shape[1:3]
    q = q.reshape(examples, kv_heads, -1, width)
    logits = jnp.einsum("eglk,egsk->egls", q, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(examples, num_heads, length, num_keys)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)[None]
    logits = jnp.where(mask, logits, _UNSEEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    weights = weights.reshape(examples, kv_heads, -1, num_keys)
    out = jnp.einsum("egls,egsk->eglk", weights, v)
    return out.reshape(examples, num_heads, length, width)


class Attention(nnx.Module):
    """Grouped-query attention; self-attention where queries and keys are one side.

    Kernels join heads and head width in one dim, as T5's published checkpoints do.
    """

    def __init__(self, config: ModelConfig, *, rotary: bool, rngs: nnx.Rngs) -> None:
        self.config = config
        self.rotary = rotary
        model_dim = config.embed_dim
        query_dim = config.num_heads * config.head_dim
        kv_dim = config.kv_heads * config.head_dim
        self.query = make_parameter(
            _query_init(config), (model_dim, query_dim), (EMBED, HEADS), rngs=rngs
        )
        self.key = make_parameter(
            ATTENTION_INIT, (model_dim, kv_dim), (EMBED, KV_HEADS), rngs=rngs
        )
        self.value = make_parameter(
            ATTENTION_INIT, (model_dim, kv_dim), (EMBED, KV_HEADS), rngs=rngs
        )
        self.out = make_parameter(
            ATTENTION_INIT, (query_dim, model_dim), (HEADS, EMBED), rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        packed: Packed,
        source: Float[Array, "B T2 D"],
        source_packed: Packed,
        mask: Mask,
        bias: Float[Array, "H L S"] | None,
        dropout_key: DropoutKey,
    ) -> Float[Array, "B T D"]:
        """Lets each example of `x` attend to the example of `source` beside it."""
        q = self._project(x, self.query, packed)
        k = self._project(source, self.key, source_packed)
        v = self._heads(project(source, self.value), source_packed)
        if self.config.positions == "rope":
            q = q * jnp.asarray(1 / math.sqrt(self.config.head_dim), q.dtype)
        visible = mask.materialize(jnp.arange(q.shape[2]), jnp.arange(k.shape[2]))
        attended = attend(
            q,
            k,
            v,
            visible.reshape(-1, 1, *visible.shape[2:]),
            bias,
            dropout_rate=self.config.dropout_rate,
            dropout_key=dropout_key,
        )
        by_position = jnp.swapaxes(attended, 1, 2)
        examples = by_position.reshape(*packed.columns.shape, -1)
        return project(pack(examples, packed), self.out)

    def _project(
        self, x: Float[Array, "B T D"], kernel: nnx.Param, packed: Packed
    ) -> Float[Array, "E H L K"]:
        """Makes queries or keys, rotated to their positions if this is RoPE."""
        projected = project(x, kernel)
        if self.rotary:
            heads = projected.reshape(*x.shape[:2], -1, self.config.head_dim)
            heads = rotate(heads, packed.positions, theta=self.config.rope_theta)
            projected = heads.reshape(projected.shape)
        return self._heads(projected, packed)

    def _heads(
        self, x: Float[Array, "B T HK"], packed: Packed
    ) -> Float[Array, "E H L K"]:
        """Cuts out all examples of all rows and puts heads before positions.

        That order makes each head's matrices contiguous: on CPU the forward pass of
        attention was 1.14 times as fast as with heads after positions.
        """
        examples = unpack(x, packed)
        split = examples.reshape(
            -1,
            examples.shape[2],
            x.shape[2] // self.config.head_dim,
            self.config.head_dim,
        )
        return jnp.swapaxes(split, 1, 2)


def _query_init(config: ModelConfig) -> jax.nn.initializers.Initializer:
    """Returns the query init; T5's holds the 1/sqrt(K) that its logits lack."""
    if config.positions == "rope":
        return ATTENTION_INIT
    return jax.nn.initializers.variance_scaling(
        1.0 / config.head_dim, "fan_in", "normal"
    )
