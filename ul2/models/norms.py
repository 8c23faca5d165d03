"""RMSNorm: T5's layer norm, without mean and without bias."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ul2.axes import EMBED
from ul2.models.config import ModelConfig
from ul2.models.parameters import ONES_INIT, make_parameter


class RMSNorm(nnx.Module):
    """Divides by the root mean square, in float32 whatever the compute dtype."""

    def __init__(
        self, config: ModelConfig, *, use_scale: bool = True, rngs: nnx.Rngs
    ) -> None:
        self.epsilon = config.norm_epsilon
        self.scale = (
            make_parameter(ONES_INIT, (config.embed_dim,), (EMBED,), rngs=rngs)
            if use_scale
            else None
        )

    def __call__(self, x: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
        """Returns `x` at unit scale, in its own dtype."""
        x_f32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True)
        normed = (x_f32 * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype)
        if self.scale is None:
            return normed
        scale = self.scale[...].astype(x.dtype)
        return normed * jnp.expand_dims(scale, range(x.ndim - 1))
