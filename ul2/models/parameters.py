"""Parameters: how they are drawn and what their dims are called.

The initial distributions are T5X's, because UL2's learning rates were chosen with
them: normal of variance 1/fan_in for attention, the same truncated for feed-forward
and logits, N(0, 1) for embeddings, uniform for the relative position bias.
"""

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = jax.nn.initializers.Initializer

ATTENTION_INIT: Final = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
DENSE_INIT: Final = jax.nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal"
)
EMBEDDING_INIT: Final = jax.nn.initializers.normal(stddev=1.0)
BIAS_INIT: Final = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
ONES_INIT: Final = jax.nn.initializers.ones


def make_parameter(
    init: Initializer, shape: Sequence[int], axes: Sequence[str], *, rngs: nnx.Rngs
) -> Any:
    """Draws a float32 parameter whose dims carry the logical names `axes`.

    The names are only written down (`nnx.get_partition_spec` reads them). Placing the
    values is left to whoever jits the initialisation, so no mesh is needed here.
    """
    value = init(rngs.params(), tuple(shape), jnp.float32)
    return nnx.Param(value, out_sharding=tuple(axes), eager_sharding=False)
