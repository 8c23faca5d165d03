"""The feed-forward sublayer: T5 v1.1's gated form, and T5's plain one."""

from typing import Final

import jax
from flax import nnx
from jaxtyping import Array, Float

from ul2.axes import BATCH, EMBED, LENGTH, MLP
from ul2.models.config import ModelConfig
from ul2.models.constraints import constrain
from ul2.models.dropout import DropoutKey, dropout
from ul2.models.parallel_projection import gather_and_project, project_and_scatter
from ul2.models.parameters import DENSE_INIT, make_parameter

_ACTIVATIONS: Final = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class FeedForward(nnx.Module):
    """wo(activation(wi_0(x)) * wi_1(x)); without the second factor if not gated."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        wide = (config.embed_dim, config.mlp_dim)
        self.wi_0 = make_parameter(DENSE_INIT, wide, (EMBED, MLP), rngs=rngs)
        self.wi_1 = (
            make_parameter(DENSE_INIT, wide, (EMBED, MLP), rngs=rngs)
            if config.gated
            else None
        )
        self.wo = make_parameter(DENSE_INIT, wide[::-1], (MLP, EMBED), rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], dropout_key: DropoutKey
    ) -> Float[Array, "B T D"]:
        """Transforms each position by itself."""
        activate = _ACTIVATIONS[self.config.activation]
        if self.wi_1 is None:
            (hidden,) = gather_and_project(x, self.wi_0)
            hidden = activate(hidden)
        else:
            hidden, factor = gather_and_project(x, self.wi_0, self.wi_1)
            hidden = activate(hidden) * factor
        hidden = constrain(hidden, BATCH, LENGTH, MLP)
        hidden = dropout(hidden, self.config.dropout_rate, dropout_key)
        return project_and_scatter(hidden, self.wo)
