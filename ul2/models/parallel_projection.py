"""Into a sublayer and out of it: projections with what a mesh sends around them.

Between sublayers each device has some columns of its rows, inside them all columns and
a part of the heads or of the feed-forward (`constraints.py` has the picture):

    gather_and_project     all-gather the columns, by kernels [D, O/tensor]
    project_and_scatter    by a kernel [I/tensor, D], reduce-scatter the columns

One is the transpose of the other, so gradients go the same ways back. Written by hand,
since a compiler that is only told where results lie may sum all columns on all
devices, twice the bytes, and then drop most of them: libtpu 0.0.42 does where a device
has one row. Without a mesh, or where the columns or a kernel do not divide, these are
plain products and hints.
"""

import functools
import math
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from ul2.axes import BATCH, LENGTH, RESIDUAL_LENGTH
from ul2.models.constraints import constrain, gathered, is_split, split_axes
from ul2.models.projection import project

# What projections make, for the policies of rematerialisation.
PROJECTED: Final = "projected"

_Axes = tuple[str, ...]


class Gathered(NamedTuple):
    """Activations that many sublayers read: their columns are gathered once.

    Attributes:
        parts: between sublayers; gradients come back to these.
        whole: the same values, as sublayers read them.
    """

    parts: Float[Array, "B T D"]
    whole: Float[Array, "B T D"]


def gather(x: Float[Array, "B T D"]) -> Gathered:
    """Gathers the columns of `x` for many sublayers."""
    parts = constrain(x, BATCH, RESIDUAL_LENGTH, None)
    return Gathered(parts, constrain(x, BATCH, LENGTH, None))


def gather_and_project(
    x: Float[Array, "B T D"] | Gathered, *kernels: nnx.Param
) -> tuple[Float[Array, "B T O"], ...]:
    """Multiplies each vector of `x` by each kernel, for the inside of a sublayer."""
    parts, whole = x if isinstance(x, Gathered) else (x, None)
    owners = _owners(parts, -1, kernels)
    if not owners:
        inside = constrain(parts, BATCH, LENGTH, None) if whole is None else whole
        return tuple(_named(project(inside, kernel)) for kernel in kernels)
    rows, columns = split_axes(parts.shape[:2], BATCH, LENGTH)

    def enter(parts: Array, whole: Array | None, matrices: list[Array]) -> list[Array]:
        if whole is None:
            whole = gather_columns(parts, owners)
        else:
            whole = jax.lax.pcast(whole, owners, to="varying")
            whole = _gathered_before(owners, parts, whole)
        return [jnp.matmul(whole, matrix) for matrix in matrices]

    outs = jax.shard_map(
        enter,
        in_specs=(
            PartitionSpec(rows, (*columns, *owners)),
            PartitionSpec(rows, columns),
            PartitionSpec(None, owners),
        ),
        out_specs=PartitionSpec(rows, columns, owners),
    )(
        parts,
        None if whole is None else jax.lax.stop_gradient(whole),
        [gathered(kernel, parts.dtype) for kernel in kernels],
    )
    return tuple(_named(out) for out in outs)


def project_and_scatter(
    x: Float[Array, "B T I"], kernel: nnx.Param
) -> Float[Array, "B T D"]:
    """Multiplies each vector of `x` by a kernel, for the residual stream."""
    owners = _owners(x, -2, (kernel,))
    if not owners:
        out = constrain(project(x, kernel), BATCH, RESIDUAL_LENGTH, None)
        return _named(out)
    rows, columns = split_axes(x.shape[:2], BATCH, LENGTH)
    out = jax.shard_map(
        lambda x, matrix: scatter_columns(jnp.matmul(x, matrix), owners),
        in_specs=(PartitionSpec(rows, columns, owners), PartitionSpec(owners)),
        out_specs=PartitionSpec(rows, (*columns, *owners)),
    )(x, gathered(kernel, x.dtype))
    return _named(out)


def gather_columns(
    x: Float[Array, "B T/n D"], axes: tuple[str, ...]
) -> Float[Array, "B T D"]:
    """Gathers columns over axes of the mesh, inside `jax.shard_map`."""
    if x.shape[0] == 1:
        # libtpu makes no reduce-scatter, nor its transpose, behind a dim of size 1.
        whole = jax.lax.all_gather(x[0], axes, axis=0, tiled=True)[None]
    else:
        whole = jax.lax.all_gather(x, axes, axis=1, tiled=True)
    return jnp.asarray(whole)


def scatter_columns(
    x: Float[Array, "B T D"], axes: tuple[str, ...]
) -> Float[Array, "B T/n D"]:
    """Sums over axes of the mesh and keeps a part, inside `jax.shard_map`."""
    if x.shape[0] == 1:
        part = jax.lax.psum_scatter(x[0], axes, scatter_dimension=0, tiled=True)[None]
    else:
        part = jax.lax.psum_scatter(x, axes, scatter_dimension=1, tiled=True)
    return jnp.asarray(part)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered_before(axes: _Axes, parts: Array, whole: Array) -> Array:
    """Returns `whole`, whose gradient is summed and goes to `parts`."""
    del axes, parts
    return whole


def _forward(axes: _Axes, parts: Array, whole: Array) -> tuple[Array, None]:
    return _gathered_before(axes, parts, whole), None


def _backward(axes: _Axes, _: None, d_whole: Array) -> tuple[Array, None]:
    return scatter_columns(d_whole, axes), None


_gathered_before.defvjp(_forward, _backward)


def _owners(x: Array, dim: int, kernels: tuple[nnx.Param, ...]) -> _Axes:
    """Returns the axes that split this dim of all kernels and the columns of `x`.

    No axes if something does not divide: each is then split as far as it can be.
    """
    if not is_split():
        return ()
    sizes = jax.sharding.get_abstract_mesh().shape
    split = set()
    for kernel in kernels:
        names: Any = kernel.get_metadata()["out_sharding"]
        split |= set(split_axes(kernel.shape[dim:][:1], names[dim]))
    (columns,) = split_axes(x.shape[1:2], LENGTH)
    (residual,) = split_axes(x.shape[1:2], RESIDUAL_LENGTH)
    owners = split.pop()
    parts = math.prod(sizes[axis] for axis in owners)
    divides = not split and residual == (*columns, *owners)
    return owners if divides and parts > 1 else ()


def _named(x: Array) -> Array:
    named: Array = checkpoint_name(x, PROJECTED)
    return named
