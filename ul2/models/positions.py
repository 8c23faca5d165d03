"""Where a token stands: T5's relative position bias, and rotary embeddings (RoPE)."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ul2.axes import BIAS_HEADS, BUCKETS
from ul2.models.cache import Place, StepBias
from ul2.models.config import ModelConfig
from ul2.models.parameters import BIAS_INIT, make_parameter


@functools.cache
def _buckets_by_distance(num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of each distance 0..max_distance.

    The first half of the buckets hold one distance each, the others grow with its
    logarithm. A table of integers, made once in T5's own float32 arithmetic: a
    logarithm on the device rounds differently from one backend to the next, and
    distances at a border would change their bucket.
    """
    num_exact = num_buckets // 2
    distances = np.arange(max_distance + 1)
    # The epsilon lets exact powers reach the bucket that they begin (T5X has it too).
    scaled = distances.astype(np.float32) / num_exact + np.finfo(np.float32).eps
    share = np.log(scaled) / np.log(max_distance / num_exact)
    logarithmic = num_exact + (share * (num_buckets - num_exact)).astype(np.int32)
    logarithmic = np.minimum(logarithmic, num_buckets - 1)
    buckets = np.where(distances < num_exact, distances, logarithmic)
    return np.asarray(buckets, np.int32)


def relative_buckets(
    relative_positions: Int[Array, "..."],
    *,
    bidirectional: bool,
    num_buckets: int,
    max_distance: int,
) -> Int[Array, "..."]:
    """Returns the bucket of each relative position (key minus query).

        -130  -2  -1   0   1   2  130     bidirectional, 32 buckets, distance 128
          15   2   1   0  17  18   31
          31   2   1   0   0   0    0     not bidirectional

    Args:
        relative_positions: position of the key minus that of the query.
        bidirectional: whether half of the buckets are for keys after the query;
            otherwise those all fall into bucket 0.
        num_buckets: buckets in all.
        max_distance: from here on everything is one bucket.
    """
    offsets = jnp.zeros_like(relative_positions)
    if bidirectional:
        num_buckets //= 2
        offsets = jnp.where(relative_positions > 0, num_buckets, 0)
        distances = jnp.abs(relative_positions)
    else:
        distances = jnp.maximum(-relative_positions, 0)
    table = jnp.asarray(_buckets_by_distance(num_buckets, max_distance))
    return offsets + table[jnp.minimum(distances, max_distance)]


class RelativeBias(nnx.Module):
    """A learned number for each head and bucket, added to the attention logits."""

    def __init__(
        self, config: ModelConfig, *, bidirectional: bool, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        self.bidirectional = bidirectional
        self.rel_embedding = make_parameter(
            BIAS_INIT,
            (config.num_heads, config.relative_buckets),
            (BIAS_HEADS, BUCKETS),
            rngs=rngs,
        )

    def __call__(self, num_queries: int, num_keys: int) -> Float[Array, "H L S"]:
        """Returns the bias of queries 0..L-1 and keys 0..S-1 of any example."""
        distances = jnp.arange(1 - num_queries, num_keys)
        return _skew(self.lookup(distances), num_queries, num_keys)

    def of_step(self, place: Place) -> StepBias:
        """Returns the bias of the new tokens of a step, towards all before them."""
        prompt = jnp.arange(place.prompt_valid.shape[-1])
        return StepBias(
            self.lookup(prompt[None] - place.positions),
            self.lookup(place.written_columns[None] - place.columns[:, None]),
        )

    def lookup(self, relative_positions: Int[Array, "..."]) -> Float[Array, "H ..."]:
        """Returns the bias at each relative position (key minus query)."""
        buckets = relative_buckets(
            relative_positions,
            bidirectional=self.bidirectional,
            num_buckets=self.config.relative_buckets,
            max_distance=self.config.relative_max_distance,
        )
        table = self.rel_embedding[...].astype(self.config.compute_dtype)
        return jnp.take(table, buckets, axis=1, mode="clip")


def _skew(
    values: Float[Array, "H W"], num_queries: int, num_keys: int
) -> Float[Array, "H L S"]:
    """Lays a vector along diagonals: out[:, l, s] = values[:, s - l + L - 1].

    Rows of W+1 read as rows of W shift by one column each. The backward pass is then
    reshapes and one sum, where a gather of all L x S pairs would need a scatter.
    """
    num_heads, width = values.shape
    padded = jnp.pad(values, ((0, 0), (0, 1)))
    rows = jnp.broadcast_to(padded[:, None], (num_heads, num_queries, width + 1))
    flat = rows.reshape(num_heads, -1)[:, : num_queries * width]
    skewed = flat.reshape(num_heads, num_queries, width)
    return skewed[:, :, num_queries - 1 : num_queries - 1 + num_keys]


def rotate(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], *, theta: float
) -> Float[Array, "B T H K"]:
    """Turns each pair of channels by an angle proportional to the position (RoPE).

    The product of a rotated query and key then depends on positions only through
    their difference. Channel i pairs with channel i + K/2.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (
        positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    )
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
