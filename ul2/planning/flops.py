"""Floating-point operations of an update, counted from the model's sizes.

A product of [m, k] and [k, n] is 2 m k n. Its backward pass makes two of the same
size. Counted are all products over all columns of packed rows, padding included, and
attention over the whole view of each example, as the program computes it; what is
done element by element is not (one or two percent).

    layer     queries, keys, values, output; logits and averages; feed-forward
    head      columns, in whole chunks of the loss, times the vocabulary
    remat     what the backward pass computes again of each layer, by its policy; of the
              head nothing, whose gradients are made with its logits
"""

from typing import NamedTuple

from ul2.models.config import ModelConfig
from ul2.planning.shapes import BatchShape
from ul2.vocab import round_up


class Flops(NamedTuple):
    """Of one update, on all devices together."""

    forward: float
    backward: float
    recompute: float

    @property
    def model(self) -> float:
        """What the update needs, however memory is saved: the numerator of MFU."""
        return self.forward + self.backward

    @property
    def total(self) -> float:
        """What the devices compute."""
        return self.model + self.recompute


class _Layers(NamedTuple):
    """Forward operations of all layers of a stack, by what remat tells apart."""

    projections: float
    products: float  # of attention: logits and averages
    last: float  # the feed-forward block's last product, which nobody needs again


def step_flops(config: ModelConfig, shape: BatchShape, loss_chunk: int) -> Flops:
    """Returns the operations of an update."""
    stacks = [_decoder(config, shape)]
    if config.num_encoder_layers:
        stacks.append(_encoder(config, shape))
    chunk = min(loss_chunk, shape.widths[-1])
    head = 2.0 * shape.rows * round_up(shape.widths[-1], chunk)
    head *= config.embed_dim * config.vocab_size
    forward = head + sum(stack.projections + stack.products for stack in stacks)
    recompute = sum(_again(config.remat, stack) for stack in stacks)
    return Flops(forward, 2 * forward, recompute)


def _again(remat: str, stack: _Layers) -> float:
    """Returns what a policy computes again."""
    if remat == "none":
        return 0.0
    if remat == "dots":
        return stack.products
    return stack.projections + stack.products - stack.last


def _encoder(config: ModelConfig, shape: BatchShape) -> _Layers:
    columns = shape.rows * shape.widths[0]
    feed_forward, last = _feed_forward(config, columns)
    own = _query_side(config, columns) + _key_side(config, columns)
    products = _products(config, shape, shape.views[0], shape.views[0])
    layers = config.num_encoder_layers
    return _Layers(layers * (own + feed_forward), layers * products, layers * last)


def _decoder(config: ModelConfig, shape: BatchShape) -> _Layers:
    columns, view = shape.rows * shape.widths[-1], shape.views[-1]
    feed_forward, last = _feed_forward(config, columns)
    projections = _query_side(config, columns) + _key_side(config, columns)
    products = _products(config, shape, view, view)
    if config.num_encoder_layers:
        read = shape.rows * shape.widths[0]
        projections += _query_side(config, columns) + _key_side(config, read)
        products += _products(config, shape, view, shape.views[0])
    layers = config.num_decoder_layers
    projections += feed_forward
    return _Layers(layers * projections, layers * products, layers * last)


def _query_side(config: ModelConfig, columns: int) -> float:
    """Returns the operations of queries and outputs."""
    width = config.num_heads * config.head_dim
    return 2 * 2.0 * columns * config.embed_dim * width


def _key_side(config: ModelConfig, columns: int) -> float:
    """Returns the operations of keys and values."""
    width = config.kv_heads * config.head_dim
    return 2 * 2.0 * columns * config.embed_dim * width


def _products(config: ModelConfig, shape: BatchShape, queries: int, keys: int) -> float:
    """Returns the operations of logits and averages."""
    width = config.num_heads * config.head_dim
    return 2 * 2.0 * shape.examples * queries * keys * width


def _feed_forward(config: ModelConfig, columns: int) -> tuple[float, float]:
    """Returns the operations of the block, and those of its last product."""
    last = 2.0 * columns * config.embed_dim * config.mlp_dim
    return last * (3 if config.gated else 2), last
