import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from children import free_port, xla_flags

from ul2.batch import Batch, HostRows, Packed
from ul2.sharding.mesh import make_mesh
from ul2.sharding.placement import check_rows, host_rows, place


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
    assert host_rows(mesh) == HostRows((0, 1, 2, 3), 4)


def test_rows_that_do_not_divide_name_the_multiple_and_the_knob():
    mesh = make_mesh("data=2,fsdp=2", jax.devices()[:4])
    check_rows(16, mesh, microbatches=4)
    with pytest.raises(ValueError, match=r"of 6 rows .* multiple of 4: set BATCH_SIZE"):
        place(make_batch(6), mesh)
    with pytest.raises(ValueError, match=r"in 4 microbatches; use a multiple of 16"):
        check_rows(8, mesh, microbatches=4)


# Two processes of two devices each, which take turns in the mesh.
INTERLEAVED = """
import sys
import jax, numpy as np
from jax.sharding import Mesh
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
from test_placement import make_batch
from ul2.sharding.placement import host_rows, place
ours, theirs = (
    [d for d in jax.devices() if d.process_index == index] for index in (0, 1)
)
order = np.array([ours[0], theirs[0], ours[1], theirs[1]])
mesh = Mesh(order.reshape(1, 4, 1, 1), ("data", "fsdp", "sequence", "tensor"))
host = host_rows(mesh)
whole = make_batch(8)
placed = place(jax.tree.map(host.of, whole), mesh)
for shard in placed.targets.addressable_shards:
    np.testing.assert_array_equal(shard.data, whole.targets[shard.index])
assert host.parts == (jax.process_index(), jax.process_index() + 2), host
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_rows_reach_devices_that_do_not_stand_side_by_side():
    here, port = Path(__file__).parent, str(free_port())
    flags = {
        "XLA_FLAGS": xla_flags(2),
        "PYTHONPATH": os.pathsep.join(map(str, [here, here.parent])),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", INTERLEAVED, port, str(index)],
            env={**os.environ, **flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
