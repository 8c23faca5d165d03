"""Logical axis -> mesh axis: the whole sharding policy, as a table.

A model names what each dim of a parameter means (`ul2.axes`); this table says which
mesh axis splits it. An axis that appears twice in one array is used for the first dim
only, and one that does not divide its dim is dropped with a log line, so that every
model runs on every mesh.

    kernel [embed, mlp] = [512, 1024]   on fsdp=4, tensor=2   -> P('fsdp', 'tensor')
    kernel [embed, mlp] = [510, 1024]   on fsdp=4, tensor=2   -> P(None, 'tensor')
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import jax
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ul2 import axes
from ul2.sharding.mesh import DATA, FSDP, SEQUENCE, TENSOR

Rules = Mapping[str, str | tuple[str, ...] | None]

DEFAULT_RULES: Final[Rules] = {
    axes.LAYERS: None,  # the scan walks along it
    axes.EMBED: (FSDP, SEQUENCE),
    axes.HEADS: TENSOR,
    axes.KV_HEADS: TENSOR,
    axes.MLP: TENSOR,
    axes.VOCAB: TENSOR,
    axes.BIAS_HEADS: None,  # a few hundred numbers: not worth the traffic
    axes.BUCKETS: None,
    axes.BATCH: (DATA, FSDP),
    axes.LENGTH: SEQUENCE,
    # Norms and residuals: what `tensor` would only repeat, each device does a part of.
    axes.RESIDUAL_LENGTH: (SEQUENCE, TENSOR),
    axes.HEAD: TENSOR,
}


def mesh_axes(name: str, rules: Rules) -> tuple[str, ...]:
    """Returns the mesh axes that split the dims called `name`.

    Raises:
        ValueError: no rule names it.
    """
    if name not in rules:
        raise ValueError(
            f"no sharding rule for logical axis {name!r}; the rules name "
            f"{', '.join(sorted(rules))}."
        )
    found = rules[name]
    if found is None:
        return ()
    return (found,) if isinstance(found, str) else tuple(found)


def num_parts(name: str, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> int:
    """Returns into how many parts a mesh splits the dims called `name`."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(name, rules))


def partition_spec(
    shape: Sequence[int],
    names: Sequence[str | None],
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
) -> PartitionSpec:
    """Returns how an array of `shape`, whose dims are called `names`, is split."""
    assert len(names) <= len(shape), (shape, names)
    used: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for size, name in zip(shape, names, strict=False):
        wanted = () if name is None else mesh_axes(name, rules)
        wanted = tuple(a for a in wanted if a not in used and mesh.shape[a] > 1)
        if size % math.prod(mesh.shape[axis] for axis in wanted):
            _log_dropped(name, size, wanted)
            wanted = ()
        used.update(wanted)
        entries.append(wanted[0] if len(wanted) == 1 else (wanted or None))
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


@functools.cache
def _log_dropped(name: str | None, size: int, dropped: tuple[str, ...]) -> None:
    """Says once that a dim stays whole."""
    logging.info(
        "sharding: dim %s of size %d does not divide over %s; it stays whole.",
        name,
        size,
        "x".join(dropped),
    )


def named_shardings(
    abstract: Any, names: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES
) -> Any:
    """Returns a `NamedSharding` for every array of a tree.

    Args:
        abstract: a tree of anything with a shape.
        names: the same tree with a tuple of logical axis names at each leaf.
        mesh: the device mesh.
        rules: logical axis to mesh axis.
    """
    return jax.tree.map(
        lambda leaf, leaf_names: NamedSharding(
            mesh, partition_spec(leaf.shape, leaf_names, mesh, rules)
        ),
        abstract,
        names,
    )


@contextlib.contextmanager
def logical_axes(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Iterator[None]:
    """Lets models say by logical names how their activations are split.

    Enter it around the call of a compiled function, so that it is traced inside.
    """
    with jax.set_mesh(mesh), nnx.logical_axis_rules(tuple(rules.items())):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
