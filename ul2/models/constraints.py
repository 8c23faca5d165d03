"""Where activations live on a mesh: a hint to the compiler, or nothing."""

import jax
from flax.core import spmd
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float


def constrain(x: Float[Array, "..."], *names: str | None) -> Float[Array, "..."]:
    """Asks that the dims of `x` be split as the rules for their names say.

    Rules and mesh come from whoever traces the model, inside
    `ul2.sharding.rules.logical_axes(mesh, rules)`; elsewhere this returns `x` itself.
    """
    rules = dict(spmd.get_logical_axis_rules())
    if not rules:
        return x
    spec = PartitionSpec(*(name and rules[name] for name in names))
    constrained: Array = jax.lax.with_sharding_constraint(x, spec)
    return constrained
