"""Layers, and stacks of them that are compiled once whatever their number."""

import operator
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from ul2.axes import BATCH, LAYERS, RESIDUAL_LENGTH
from ul2.batch import Packed
from ul2.models import probes
from ul2.models.attention import Attention
from ul2.models.attention_in_turn import ATTENDED
from ul2.models.cache import Cache, KeyValues, LayerCache, LayerKeys, Place, StepBias
from ul2.models.config import ModelConfig
from ul2.models.constraints import (
    constrain,
    is_split,
    keep_what_is_computed,
)
from ul2.models.dropout import DropoutKey, dropout, split_key
from ul2.models.feed_forward import FeedForward
from ul2.models.masks import Mask
from ul2.models.norms import RMSNorm
from ul2.models.parallel_projection import PROJECTED, Gathered
from ul2.models.positions import RelativeBias

# The one value of a layer from which all others can be computed again.
_LAYER_INPUT: Final = "layer_input"
_POLICIES: Final = {
    "none": keep_what_is_computed,
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED, ATTENDED),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}

# In decoding, stacks of up to so many layers are run layer by layer, for speed. With
# deeper ones the time of compilation would grow, and a loop runs over all of them.
_MAX_CUT: Final = 16

# (tokens, columns, cache) to hidden states and the cache with the tokens.
Step = Callable[[Array, Array, Cache], tuple[Array, Cache]]

_Tree = TypeVar("_Tree")


class Side(NamedTuple):
    """What the layers of a stack share: where the examples lie and what they see."""

    packed: Packed
    mask: Mask


class Memory(NamedTuple):
    """An encoder's output, for a decoder to read."""

    encoded: Gathered
    packed: Packed
    mask: Mask


class SelfAttentionBlock(nnx.Module):
    """A layer of an encoder or of a decoder-only model: attention, feed-forward.

    Each sublayer is x + dropout(sublayer(norm(x))).
    """

    def __init__(
        self, config: ModelConfig, *, bidirectional: bool, rngs: nnx.Rngs
    ) -> None:
        self.dropout_rate = config.dropout_rate
        rotary = config.positions == "rope"
        per_layer = config.relative_bias == "per_layer" and not rotary
        self.relative_bias = (
            RelativeBias(config, bidirectional=bidirectional, rngs=rngs)
            if per_layer
            else None
        )
        self.pre_attention_norm = RMSNorm(config, rngs=rngs)
        self.attention = Attention(config, rotary=rotary, rngs=rngs)
        self.pre_mlp_norm = RMSNorm(config, rngs=rngs)
        self.mlp = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        side: Side,
        memory: Memory | None,
        shared_bias: Float[Array, "H L S"] | None,
        dropout_key: DropoutKey,
    ) -> tuple[Float[Array, "B T D"], LayerKeys]:
        """Runs the layer; `memory` is for layers that have an encoder."""
        attention_key, mlp_key = split_key(dropout_key, 2)
        x, own = self.attend_self(x, side, shared_bias, attention_key)
        return self.feed_forward(x, mlp_key), LayerKeys(own, None)

    def step(
        self,
        x: Float[Array, "E J D"],
        place: Place,
        layer: Int[Array, ""] | None,
        read: LayerKeys,
        written: KeyValues,
        shared_bias: StepBias | None,
    ) -> tuple[Float[Array, "E J D"], KeyValues]:
        """Runs the layer on one new token of each hypothesis.

        Args:
            x: the tokens.
            place: where they stand.
            layer: which of the stack's this is, where `written` is by all of them.
            read: this layer's prompt and memory.
            written: by this layer or by all.
            shared_bias: of the stack.

        Returns:
            The layer's output, and `written` with the tokens.
        """
        x, written = self.step_self(x, place, layer, read, written, shared_bias)
        return self.feed_forward(x, None), written

    def step_self(
        self,
        x: Float[Array, "E J D"],
        place: Place,
        layer: Int[Array, ""] | None,
        read: LayerKeys,
        written: KeyValues,
        shared_bias: StepBias | None,
    ) -> tuple[Float[Array, "E J D"], KeyValues]:
        """Adds what the new tokens read from those before them."""
        bias = shared_bias
        if self.relative_bias is not None:
            bias = self.relative_bias.of_step(place)
        y = self.pre_attention_norm(x)
        y, written = self.attention.step_self(y, place, layer, read.own, written, bias)
        return x + y, written

    def attend_self(
        self,
        x: Float[Array, "B T D"],
        side: Side,
        shared_bias: Float[Array, "H L S"] | None,
        dropout_key: DropoutKey,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Adds what each position reads from its own example."""
        inner_key, outer_key = split_key(dropout_key, 2)
        bias = shared_bias
        if self.relative_bias is not None:
            length = side.packed.columns.shape[-1]
            bias = self.relative_bias(length, length)
        y = self.pre_attention_norm(x)
        y, own = self.attention(
            y, side.packed, None, side.packed, side.mask, bias, inner_key
        )
        x = x + dropout(y, self.dropout_rate, outer_key)
        probes.probe("self-attention", x)
        return x, own

    def feed_forward(
        self, x: Float[Array, "B T D"], dropout_key: DropoutKey
    ) -> Float[Array, "B T D"]:
        """Adds what the feed-forward sublayer makes of each position."""
        inner_key, outer_key = split_key(dropout_key, 2)
        y = self.mlp(self.pre_mlp_norm(x), inner_key)
        x = x + dropout(y, self.dropout_rate, outer_key)
        probes.probe("feed-forward", x)
        return x


class CrossAttentionBlock(SelfAttentionBlock):
    """A layer of an encoder-decoder's decoder: it also reads the encoder's output."""

    def __init__(
        self, config: ModelConfig, *, bidirectional: bool, rngs: nnx.Rngs
    ) -> None:
        super().__init__(config, bidirectional=bidirectional, rngs=rngs)
        self.pre_cross_attention_norm = RMSNorm(config, rngs=rngs)
        self.cross_attention = Attention(config, rotary=False, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        side: Side,
        memory: Memory | None,
        shared_bias: Float[Array, "H L S"] | None,
        dropout_key: DropoutKey,
    ) -> tuple[Float[Array, "B T D"], LayerKeys]:
        """Runs the layer."""
        assert memory is not None
        attention_key, cross_key, mlp_key = split_key(dropout_key, 3)
        x, own = self.attend_self(x, side, shared_bias, attention_key)
        x, read = self.attend_memory(x, side, memory, cross_key)
        return self.feed_forward(x, mlp_key), LayerKeys(own, read)

    def step(
        self,
        x: Float[Array, "E J D"],
        place: Place,
        layer: Int[Array, ""] | None,
        read: LayerKeys,
        written: KeyValues,
        shared_bias: StepBias | None,
    ) -> tuple[Float[Array, "E J D"], KeyValues]:
        """Runs the layer on one new token of each hypothesis."""
        assert read.memory is not None
        x, written = self.step_self(x, place, layer, read, written, shared_bias)
        y = self.pre_cross_attention_norm(x)
        x = x + self.cross_attention.step_memory(y, place, read.memory)
        return self.feed_forward(x, None), written

    def attend_memory(
        self,
        x: Float[Array, "B T D"],
        side: Side,
        memory: Memory,
        dropout_key: DropoutKey,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Adds what each position reads from the encoder."""
        inner_key, outer_key = split_key(dropout_key, 2)
        y = self.pre_cross_attention_norm(x)
        y, read = self.cross_attention(
            y,
            side.packed,
            memory.encoded,
            memory.packed,
            memory.mask,
            None,
            inner_key,
        )
        x = x + dropout(y, self.dropout_rate, outer_key)
        probes.probe("cross-attention", x)
        return x, read


class Stack(nnx.Module):
    """`num_layers` blocks with stacked parameters, and the norm above them."""

    def __init__(
        self,
        config: ModelConfig,
        block: type[SelfAttentionBlock],
        num_layers: int,
        *,
        bidirectional: bool,
        final_norm_scale: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.num_layers = num_layers
        shared = config.positions == "relative" and config.relative_bias == "shared"
        self.relative_bias = (
            RelativeBias(config, bidirectional=bidirectional, rngs=rngs)
            if shared
            else None
        )

        def make_layer(rngs: nnx.Rngs) -> SelfAttentionBlock:
            return block(config, bidirectional=bidirectional, rngs=rngs)

        # Every layer draws from a key of its own; the names get "layers" in front.
        make_layers = nnx.vmap(
            make_layer, transform_metadata={nnx.PARTITION_NAME: LAYERS}
        )
        self.layers = nnx.split_rngs(splits=num_layers)(make_layers)(rngs)
        self.final_norm = RMSNorm(config, use_scale=final_norm_scale, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        side: Side,
        memory: Memory | None,
        dropout_key: DropoutKey,
    ) -> Float[Array, "B T D"]:
        """Runs embeddings through all layers and the final norm."""
        layers_key, last_key = split_key(dropout_key, 2)
        probes.probe("embedding", x)
        x = self.run_layers(x, side, memory, layers_key)
        x = dropout(self.final_norm(x), self.config.dropout_rate, last_key)
        probes.probe("final norm", x)
        return x

    def run_layers(
        self,
        x: Float[Array, "B T D"],
        side: Side,
        memory: Memory | None,
        dropout_key: DropoutKey,
    ) -> Float[Array, "B T D"]:
        """Runs embeddings through all layers, without the final norm."""
        return self._scan(x, side, memory, dropout_key, keep=False)[0]

    def prefill(
        self, x: Float[Array, "E P D"], side: Side, memory: Memory | None
    ) -> tuple[Float[Array, "E P D"], LayerKeys | tuple[LayerKeys, ...]]:
        """Runs prompts, and keeps what each layer read, as `Cache` has it."""
        x, keys = self._scan(x, side, memory, None, keep=True)
        assert keys is not None
        kept = self._cut(keys) if self._is_cut else keys
        return self.final_norm(x), kept

    def cut_layers(self) -> tuple[Any, ...] | None:
        """Returns the parameters of each layer, or None where a loop runs over all."""
        return self._cut(nnx.state(self.layers)) if self._is_cut else None

    def make_step(self, layers: tuple[Any, ...] | None = None) -> Step:
        """Returns what runs one new token of each hypothesis.

        It is called with embedded tokens [E, J, D], the columns [E] that they are
        written in, and the cache. Make it before the loop over tokens: a slice inside
        the loop is a copy at every step.

        Args:
            layers: of `cut_layers`, for a program that is called often; by default
                they are cut here.
        """
        graphdef, parameters = nnx.split(self.layers)
        apart = self.cut_layers() if layers is None else layers

        def step(
            x: Float[Array, "E J D"], columns: Int[Array, " E"], cache: Cache
        ) -> tuple[Float[Array, "E J D"], Cache]:
            cache, place = cache.begin(columns)
            bias = None
            if self.relative_bias is not None:
                bias = self.relative_bias.of_step(place)

            def run_layer(
                carry: tuple[Array, KeyValues],
                layer: Int[Array, ""] | None,
                layer_parameters: Any,
                read: LayerKeys,
            ) -> tuple[Array, KeyValues]:
                x, written = carry
                block = nnx.merge(graphdef, layer_parameters)
                x, written = block.step(x, place, layer, read, written, bias)
                return constrain(x, BATCH, None, None), written

            layers: LayerCache | tuple[LayerCache, ...]
            if isinstance(cache.layers, LayerCache):
                read, written = cache.layers
                (x, written), _ = jax.lax.scan(
                    lambda carry, layer: (run_layer(carry, *layer), None),
                    (x, written),
                    (jnp.arange(self.num_layers), parameters, read),
                )
                layers = LayerCache(read, written)
            else:
                assert apart is not None
                layers = ()
                for own, (read, written) in zip(apart, cache.layers, strict=True):
                    x, written = run_layer((x, written), None, own, read)
                    layers = (*layers, LayerCache(read, written))
            return self.final_norm(x), cache._replace(layers=layers)

        return step

    @property
    def _is_cut(self) -> bool:
        return self.num_layers <= _MAX_CUT

    def _cut(self, stacked: _Tree) -> tuple[_Tree, ...]:
        """Cuts what is stacked over layers apart."""
        return tuple(
            jax.tree.map(operator.itemgetter(layer), stacked)
            for layer in range(self.num_layers)
        )

    def _scan(
        self,
        x: Float[Array, "B T D"],
        side: Side,
        memory: Memory | None,
        dropout_key: DropoutKey,
        *,
        keep: bool,
    ) -> tuple[Float[Array, "B T D"], LayerKeys | None]:
        """Runs all layers; keeps what they read if asked to."""
        first_key, layers_key = split_key(dropout_key, 2)
        length = side.packed.columns.shape[-1]
        bias = None
        if self.relative_bias is not None:
            bias = self.relative_bias(length, length)
        graphdef, parameters = nnx.split(self.layers)

        def run_layer(
            x: Array, layer: tuple[Any, DropoutKey]
        ) -> tuple[Array, tuple[LayerKeys | None, list[Array]]]:
            layer_parameters, layer_key = layer
            x = checkpoint_name(x, _LAYER_INPUT)
            block = nnx.merge(graphdef, layer_parameters)
            with probes.layer() as seen:
                x, keys = block(x, side, memory, bias, layer_key)
            x = constrain(x, BATCH, RESIDUAL_LENGTH, None)
            return x, (keys if keep else None, seen.rows)

        x = dropout(x, self.config.dropout_rate, first_key)
        x = constrain(x, BATCH, RESIDUAL_LENGTH, None)
        keys = (
            layers_key
            if layers_key is None
            else jax.random.split(layers_key, self.num_layers)
        )
        kept: LayerKeys | None
        x, (kept, rows) = jax.lax.scan(self._remat(run_layer), x, (parameters, keys))
        probes.stacked(rows)
        return x, kept

    def _remat(self, run_layer: Callable[..., Any]) -> Callable[..., Any]:
        if self.config.remat == "none" and not is_split():
            return run_layer
        # Inside a scan XLA cannot merge the recomputation with the original.
        return jax.checkpoint(
            run_layer, policy=_POLICIES[self.config.remat], prevent_cse=False
        )
