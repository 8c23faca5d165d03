"""This host's rows -> one global batch, split over the mesh.

Each host reads only the rows its own devices need. `host_shard` says which those are;
`place` joins what all hosts read into global arrays without moving any of it between
hosts.
"""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ul2 import axes
from ul2.batch import Batch
from ul2.sharding.rules import DEFAULT_RULES, Rules, mesh_axes


def batch_sharding(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> NamedSharding:
    """Returns the sharding of the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(mesh_axes(axes.BATCH, rules)))


def num_batch_shards(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> int:
    """Returns into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(axes.BATCH, rules))


def num_column_shards(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> int:
    """Returns into how many parts the columns of a row are split between sublayers."""
    return math.prod(
        mesh.shape[axis] for axis in mesh_axes(axes.RESIDUAL_LENGTH, rules)
    )


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


def host_shard(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> tuple[int, int]:
    """Returns (index, count): which of `count` equal parts of the rows is this host's.

    Hosts that share rows (a `tensor` axis across hosts) get the same index.
    """
    shards = num_batch_shards(mesh, rules)
    rows_of_device = batch_sharding(mesh, rules).addressable_devices_indices_map(
        (shards,)
    )
    mine = {
        0 if index is None or index[0].start is None else index[0].start
        for index in rows_of_device.values()
    }
    assert shards % len(mine) == 0 and max(mine) - min(mine) == len(mine) - 1, mine
    return min(mine) // len(mine), shards // len(mine)


def place(
    batch: Batch, mesh: Mesh, rules: Rules = DEFAULT_RULES, microbatches: int = 1
) -> Batch:
    """Returns the global batch, given this host's rows of it.

    Raises:
        ValueError: the rows do not divide over the mesh.
    """
    _, count = host_shard(mesh, rules)
    check_rows(np.shape(batch.targets)[0] * count, mesh, rules, microbatches)
    sharding = batch_sharding(mesh, rules)

    def global_array(rows: np.ndarray) -> jax.Array:
        shape = (rows.shape[0] * count, *rows.shape[1:])
        placed: jax.Array = jax.make_array_from_process_local_data(
            sharding, rows, shape
        )
        return placed

    placed: Batch = jax.tree.map(global_array, batch)
    return placed
