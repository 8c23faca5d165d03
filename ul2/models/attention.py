"""Attention over the examples of packed rows.

Projections run on whole rows [B, T], where almost every column is a token. Only the
product of queries and keys needs to know examples: they are cut out after the
projections (see `packing.py`), attend each on its own, and go back. E = B * N is the
number of examples in a batch.

    x [B,T,D] -> query, key, value [B,T,H*K] -> examples [E,H,L,K] -> softmax(q k) v
              -> rows [B,T,H*K] -> out [B,T,D]
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ul2.axes import (
    BATCH,
    EMBED,
    HEAD,
    HEADS,
    KV_HEADS,
    LENGTH,
)
from ul2.batch import Packed
from ul2.models.attention_in_turn import UNSEEN, attend_in_turn
from ul2.models.cache import KeyValues, Place, StepBias, take_layer, write_columns
from ul2.models.config import ModelConfig
from ul2.models.constraints import constrain, is_one_cpu, is_split
from ul2.models.dropout import DropoutKey, dropout
from ul2.models.masks import Mask
from ul2.models.packing import pack, unpack
from ul2.models.parallel_projection import (
    Gathered,
    gather_and_project,
    project_and_scatter,
)
from ul2.models.parameters import ATTENTION_INIT, make_parameter
from ul2.models.positions import rotate
from ul2.models.projection import project


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
    one tall matrix, so keys are never repeated. (On a mesh they stay apart, for
    different axes split heads and queries.)
    """
    examples, num_heads, length, width = q.shape
    kv_heads, num_keys = k.shape[1:3]
    tall = (num_heads // kv_heads, length) if is_split() else (-1,)
    q = q.reshape(examples, kv_heads, *tall, width)
    logits = jnp.einsum("eg...k,egsk->eg...s", q, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(examples, num_heads, length, num_keys)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)[None]
    logits = jnp.where(mask, logits, UNSEEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    weights = weights.reshape(examples, kv_heads, *tall, num_keys)
    out = jnp.einsum("eg...s,egsk->eg...k", weights, v)
    return out.reshape(examples, num_heads, length, width)


def attend_step(
    q: Float[Array, "E J H K"],
    shared: KeyValues,
    shared_valid: Bool[Array, "E S"],
    written: KeyValues | None = None,
    written_valid: Bool[Array, " E #J W"] | None = None,
    bias: StepBias | None = None,
) -> Float[Array, "E J HK"]:
    """Does for one token of each hypothesis what `attend` does for whole examples.

    Args:
        q: one query per hypothesis.
        shared: keys [E, G, K, S] and values [E, G, S, K] that all hypotheses of an
            example see.
        shared_valid: which of them there are.
        written: values by each hypothesis [E, G*J, W, K] or by all [E, G, W*J, K],
            and their keys.
        written_valid: which of that a hypothesis sees.
        bias: added to the logits; with `written`.
    """
    examples, hypotheses, num_heads, width = q.shape
    groups, num_shared = shared.values.shape[1:3]
    q = jnp.swapaxes(q.reshape(examples, hypotheses, groups, -1, width), 1, 2)
    logits = _match(q, shared.keys)
    if bias is not None:
        logits += _by_example(bias.prompt, groups)
    logits = jnp.where(shared_valid[:, None, None, None], logits, UNSEEN)
    if written is not None:
        assert written_valid is not None
        behind = _match(q, written.keys)
        if bias is not None:
            behind += _by_example(bias.written, groups)
        behind = jnp.where(written_valid[:, None, :, None], behind, UNSEEN)
        logits = jnp.concatenate([logits, behind], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1).astype(shared.values.dtype)
    out = _average(weights[..., :num_shared], shared.values)
    if written is not None:
        out += _average(weights[..., num_shared:], written.values)
    return jnp.swapaxes(out, 1, 2).reshape(examples, hypotheses, num_heads * width)


def _by_example(bias: Float[Array, "H E S"], groups: int) -> Float[Array, "E G 1 n S"]:
    """Lays out the bias of a step like its logits."""
    by_head = bias.reshape(groups, -1, *bias.shape[1:])
    return jnp.transpose(by_head, (2, 0, 1, 3))[:, :, None].astype(jnp.float32)


def _match(
    q: Float[Array, "E G J n K"], keys: Float[Array, "E M K S"]
) -> Float[Array, "E G J n S"]:
    """Returns logits towards the keys of M = G heads, or of M = G*J.

    All query heads and hypotheses that read from the same keys are one tall matrix.
    """
    tall = q.reshape(*keys.shape[:2], -1, q.shape[-1])
    logits = jnp.einsum(
        "emqk,emks->emqs", tall, keys, preferred_element_type=jnp.float32
    )
    return logits.reshape(*q.shape[:-1], keys.shape[-1])


def _average(
    weights: Float[Array, "E G J n S"], values: Float[Array, "E M S K"]
) -> Float[Array, "E G J n K"]:
    """Returns weighted sums of the values of M = G heads, or of M = G*J."""
    tall = weights.reshape(*values.shape[:2], -1, weights.shape[-1])
    out = jnp.einsum("emqs,emsk->emqk", tall, values)
    return out.reshape(*weights.shape[:-1], values.shape[-1])


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
        source: Gathered | None,
        source_packed: Packed,
        mask: Mask,
        bias: Float[Array, "H L S"] | None,
        dropout_key: DropoutKey,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Lets each example of `x` attend to the example of `source` beside it.

        Args:
            x: [B, T, D], between sublayers.
            packed: where its examples lie.
            source: [B, T2, D]; None is `x` itself.
            source_packed: where the examples of the source lie.
            mask: what each position sees of its example of the source.
            bias: added to the logits.
            dropout_key: for the weights.

        Returns:
            What it read, and from which keys [E, G, K, S] and values [E, G, S, K].
        """
        if source is None:
            q, k, v = gather_and_project(x, self.query, self.key, self.value)
        else:
            (q,) = gather_and_project(x, self.query)
            k, v = gather_and_project(source, self.key, self.value)
        q = self._scaled(self._heads(self._turned(q, packed.positions), packed))
        k = self._heads(self._turned(k, source_packed.positions), source_packed)
        v = self._heads(v, source_packed)
        # Each part of the queries sees all keys.
        q = constrain(q, BATCH, HEAD, LENGTH, None)
        k = constrain(k, BATCH, HEAD, None, None)
        v = constrain(v, BATCH, HEAD, None, None)
        visible = mask.materialize(jnp.arange(q.shape[2]), jnp.arange(k.shape[2]))
        visible = visible.reshape(-1, 1, *visible.shape[2:])
        rate = self.config.dropout_rate
        if is_one_cpu() and (dropout_key is None or rate == 0.0):
            attended = attend_in_turn(q, k, v, visible, bias)
        else:
            attended = attend(
                q, k, v, visible, bias, dropout_rate=rate, dropout_key=dropout_key
            )
        by_position = jnp.swapaxes(attended, 1, 2)
        examples = by_position.reshape(*packed.columns.shape, -1)
        rows = pack(examples, packed)
        rows = constrain(rows, BATCH, LENGTH, HEADS)
        out = project_and_scatter(rows, self.out)
        return out, KeyValues(jnp.swapaxes(k, 2, 3), v)

    def step_self(
        self,
        x: Float[Array, "E J D"],
        place: Place,
        layer: Int[Array, ""] | None,
        prompt: KeyValues,
        written: KeyValues,
        bias: StepBias | None,
    ) -> tuple[Float[Array, "E J D"], KeyValues]:
        """Lets one new token of each hypothesis attend to all before it.

        Args:
            x: the new tokens.
            place: where they stand.
            layer: which of the stack's this is, where `written` is by all of them.
            prompt: this layer's.
            written: by this layer or by all, without the new tokens.
            bias: of the new tokens and what they see.

        Returns:
            What they read, and `written` with them.
        """
        new = KeyValues(
            self._split(self._turned(project(x, self.key), place.positions)),
            self._split(project(x, self.value)),
        )
        written = write_columns(written, new, place.columns, layer)
        own = written if layer is None else take_layer(written, layer)
        q = self._scaled(
            self._split(self._turned(project(x, self.query), place.positions))
        )
        out = attend_step(q, prompt, place.prompt_valid, own, place.written_valid, bias)
        return project(out, self.out), written

    def step_memory(
        self, x: Float[Array, "E J D"], place: Place, memory: KeyValues
    ) -> Float[Array, "E J D"]:
        """Lets one new token of each hypothesis attend to its encoder's output."""
        assert place.memory_valid is not None
        q = self._scaled(self._split(project(x, self.query)))
        return project(attend_step(q, memory, place.memory_valid), self.out)

    def _scaled(self, q: Float[Array, "*dims K"]) -> Float[Array, "*dims K"]:
        """Divides by sqrt(K) where the initialisation has not done so."""
        if self.config.positions != "rope":
            return q
        return q * jnp.asarray(1 / math.sqrt(self.config.head_dim), q.dtype)

    def _split(self, x: Float[Array, "E J HK"]) -> Float[Array, "E J H K"]:
        """Gives every head its own dim."""
        return x.reshape(*x.shape[:2], -1, self.config.head_dim)

    def _turned(
        self, x: Float[Array, "B T HK"], positions: Int[Array, "#B #T"]
    ) -> Float[Array, "B T HK"]:
        """Rotates queries or keys to their positions, if this is RoPE."""
        if not self.rotary:
            return x
        turned = rotate(self._split(x), positions, theta=self.config.rope_theta)
        return turned.reshape(x.shape)

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
