"""Where activations and gathered kernels live on a mesh: hints, or nothing.

Between sublayers the residual stream is split over all axes of the mesh, rows and
columns; norms and dropout work on those parts. A sublayer gathers the columns that
`tensor` splits, multiplies by its part of the kernels, and scatters its sums back:

    x [B/(data fsdp), T/(sequence tensor), D]  -> norm -> [.., T/sequence, D]
      -> kernel [D, M/tensor] -> [.., T/sequence, M/tensor]
      -> kernel [M/tensor, D] -> sum over tensor, and scatter -> like x

(Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
Models", section 4.2.2.) Rules and mesh come from whoever traces the model, inside
`ul2.sharding.rules.logical_axes(mesh, rules)`; elsewhere everything here returns what
it is given.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import jax
from flax import nnx
from flax.core import spmd
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ul2.axes import EMBED

# Primitives whose results are gathered; `pvary` gives them another type, no more.
_GATHERING: Final = ("sharding_constraint", "all_gather", "pvary")


def is_split() -> bool:
    """Whether a program for several devices is being traced, by rules."""
    mesh = jax.sharding.get_abstract_mesh()
    rules = spmd.get_logical_axis_rules()
    return not mesh.empty and mesh.size > 1 and bool(rules)


def is_one_cpu() -> bool:
    """Whether a program for one CPU is being traced, by rules."""
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    return bool(mesh.size == 1 and device is not None and device.platform == "cpu")


def split_axes(shape: Sequence[int], *names: str | None) -> tuple[tuple[str, ...], ...]:
    """Returns the axes of the mesh that split dims called `names`, as the rules say.

    A dim that an axis does not divide is not split by it.
    """
    rules = dict(spmd.get_logical_axis_rules())
    sizes = jax.sharding.get_abstract_mesh().shape
    found: list[tuple[str, ...]] = []
    for dim, name in zip(shape, names, strict=True):
        wanted = rules[name] if name else ()
        wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted or ())
        while dim % math.prod(sizes[axis] for axis in wanted):
            wanted = wanted[:-1]
        found.append(wanted)
    return tuple(found)


def constrain(x: Float[Array, "..."], *names: str | None) -> Float[Array, "..."]:
    """Asks that the dims of `x` be split as the rules for their names say."""
    if not is_split():
        return x
    spec = PartitionSpec(*split_axes(x.shape, *names))
    constrained: Array = jax.lax.with_sharding_constraint(x, spec)
    return constrained


def keep_what_is_computed(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint`: the backward pass gathers anew what was gathered.

    Otherwise a scan would stack what all layers gathered on every device.
    """
    return primitive.name not in _GATHERING


def gathered(kernel: nnx.Param, dtype: DTypeLike) -> Float[Array, "..."]:
    """Asks that a kernel be whole along its `embed` dim, and split along the other.

    Said here, the compiler need not guess between gathering a kernel and moving
    activations, and a kernel travels in the dtype of what it is multiplied with.

    Args:
        kernel: knows what its dims are called; whole or one layer of it.
        dtype: that of the result.
    """
    value: Array = kernel[...].astype(dtype)
    names = kernel.get_metadata().get("out_sharding") or ()
    if len(names) < value.ndim:
        return value
    kept = (None if n == EMBED else n for n in names[len(names) - value.ndim :])
    return constrain(value, *kept)
