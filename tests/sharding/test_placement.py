import jax
import numpy as np
import pytest

from ul2.batch import Batch, Packed
from ul2.sharding.mesh import make_mesh
from ul2.sharding.placement import check_rows, host_shard, place


def make_batch(rows):
    ints = np.arange(rows * 4, dtype=np.int32).reshape(rows, 4)
    packed = Packed(ints, ints, ints, ints.reshape(rows, 1, 4))
    weights = np.ones((rows, 4), np.float32)
    return Batch(None, packed, ints, weights, ints, ints[:, :1])


def test_placed_batch_keeps_values_and_splits_rows():
    mesh = make_mesh("data=2,fsdp=2,tensor=2", jax.devices()[:8])
    batch = make_batch(8)
    placed = place(batch, mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), batch)
    assert {s.data.shape for s in placed.targets.addressable_shards} == {(2, 4)}
    assert host_shard(mesh) == (0, 1)


def test_rows_that_do_not_divide_name_the_multiple_and_the_knob():
    mesh = make_mesh("data=2,fsdp=2", jax.devices()[:4])
    check_rows(16, mesh, microbatches=4)
    with pytest.raises(ValueError, match=r"of 6 rows .* multiple of 4: set BATCH_SIZE"):
        place(make_batch(6), mesh)
    with pytest.raises(ValueError, match=r"in 4 microbatches; use a multiple of 16"):
        check_rows(8, mesh, microbatches=4)
