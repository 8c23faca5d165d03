"""One of two processes that train together; run by test_processes.py.

python two_processes.py PORT INDEX DIRECTORY
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, index, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)

from training_toys import (  # noqa: E402
    ToyBatches,
    make_batch,
    make_settings,
    run_train,
)

from ul2.sharding.mesh import make_mesh  # noqa: E402
from ul2.sharding.placement import host_rows  # noqa: E402


class HalfBatches(ToyBatches):
    """Reads only the rows that this process's device needs."""

    def __next__(self):
        batch = super().__next__()
        return jax.tree.map(host_rows(mesh).of, batch)


def interrupt_this_process_alone(batch_index):
    if index == 1 and batch_index == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def notify_jax_on_this_process_alone(batch_index):
    """Sends the signal before the loop listens: jax hears it, and tells the others."""
    if index == 1 and batch_index == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)


def eval_batches():
    rows = slice(4 * index, 4 * index + 4)
    return [jax.tree.map(lambda array: array[rows], make_batch(seed=1000))]


mesh = make_mesh("fsdp=2")
changes = {"mesh": mesh, "eval_batches": eval_batches}
noticed = run_train(
    directory / "noticed",
    batches=HalfBatches(on_next=notify_jax_on_this_process_alone),
    settings=make_settings(total_steps=400, eval_every_steps=0, save_every_steps=0),
    mesh=mesh,
)
whole = run_train(directory / "whole", batches=HalfBatches(), **changes)
resumed = run_train(directory / "whole", batches=HalfBatches(), **changes)
stopped = run_train(
    directory / "stopped",
    batches=HalfBatches(on_next=interrupt_this_process_alone),
    **changes,
)
report = {
    "shard": host_rows(mesh),
    "whole": whole.metrics,
    "evaluation": whole.evaluation,
    "resumed": resumed.step,
    "stopped": [stopped.step, stopped.preempted],
    "noticed": [noticed.step, noticed.preempted],
}
(directory / f"report{index}.json").write_text(json.dumps(report))
jax.distributed.shutdown()
