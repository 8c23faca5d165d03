"""This host's rows -> one global batch, split over the mesh.

Each host reads only the rows its own devices need. `host_rows` says which those are;
`place` joins what all hosts read into global arrays without moving any of it between
hosts.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ul2 import axes
from ul2.batch import Batch, HostRows
from ul2.sharding.rules import DEFAULT_RULES, Rules, mesh_axes, num_parts


def batch_sharding(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> NamedSharding:
    """Returns the sharding of the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(mesh_axes(axes.BATCH, rules)))


def num_batch_shards(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> int:
    """Returns into how many parts the rows of a batch are split."""
    return num_parts(axes.BATCH, mesh, rules)


def num_column_shards(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> int:
    """Returns into how many parts the columns of a row are split between sublayers."""
    return num_parts(axes.RESIDUAL_LENGTH, mesh, rules)


def check_rows(
    rows: int, mesh: Mesh, rules: Rules = DEFAULT_RULES, microbatches: int = 1
) -> None:
    """Checks that the rows of a global batch divide over the mesh.

    Raises:
        ValueError: they do not.
    """
    multiple = num_batch_shards(mesh, rules) * microbatches
    if rows % multiple:
        split = "x".join(f"{a}={mesh.shape[a]}" for a in mesh_axes(axes.BATCH, rules))
        raise ValueError(
            f"a batch of {rows} rows does not divide over {split} in {microbatches} "
            f"microbatches; use a multiple of {multiple}: set BATCH_SIZE (or MESH)."
        )


def host_rows(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> HostRows:
    """Returns which rows this process's devices need.

    Processes that share rows (a `tensor` axis across hosts) need the same.
    """
    shards = num_batch_shards(mesh, rules)
    rows_of_device: Mapping[Any, Any] = batch_sharding(
        mesh, rules
    ).addressable_devices_indices_map((shards,))
    mine = {index[0].start or 0 for index in rows_of_device.values()}
    return HostRows(tuple(sorted(mine)), shards)


def place(
    batch: Batch, mesh: Mesh, rules: Rules = DEFAULT_RULES, microbatches: int = 1
) -> Batch:
    """Returns the global batch, given this host's rows of it.

    Raises:
        ValueError: the rows do not divide over the mesh.
    """
    parts, count = host_rows(mesh, rules)
    num_rows = np.shape(batch.targets)[0] * count // len(parts)
    check_rows(num_rows, mesh, rules, microbatches)
    sharding = batch_sharding(mesh, rules)
    size = num_rows // count
    first = {part * size: index * size for index, part in enumerate(parts)}

    def global_array(rows: np.ndarray) -> jax.Array:
        def of_device(index: Any) -> np.ndarray:
            start = first[index[0].start or 0]
            return rows[start : start + size]

        shape = (num_rows, *rows.shape[1:])
        placed: jax.Array = jax.make_array_from_callback(shape, sharding, of_device)
        return placed

    placed: Batch = jax.tree.map(global_array, batch)
    return placed
