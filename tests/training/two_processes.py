"""One of two processes that train together; run by test_processes.py.

python two_processes.py PORT INDEX DIRECTORY
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, index, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)

from training_toys import ToyBatches, make_batch, make_run, make_settings, run_train  # noqa: E402

from ul2.sharding.mesh import make_mesh  # noqa: E402
from ul2.sharding.placement import host_rows  # noqa: E402
from ul2.training.guard import GuardSettings  # noqa: E402
from ul2.training.loop import step_settings, train  # noqa: E402
from ul2.training.run import Programs  # noqa: E402


class HalfBatches(ToyBatches):
    """Reads only the rows that this process's device needs; one batch may be bad."""

    def __init__(self, bad=None, **changes):
        super().__init__(**changes)
        self.bad = bad

    def __next__(self):
        is_bad = self.index == self.bad
        batch = super().__next__()
        if is_bad:  # In a row that process 1 alone reads.
            batch.loss_weights[6, 2] = np.nan
        return jax.tree.map(host_rows(mesh).of, batch)


def train_with(policy, bad):
    """Returns the last metrics of a run with a bad batch that goes on once more."""
    for total_steps in (6, 7):
        settings = make_settings(
            total_steps=total_steps,
            eval_every_steps=0,
            guard=GuardSettings(on_bad_numbers=policy),
        )
        run = make_run(
            directory / policy,
            mesh=mesh,
            batches=HalfBatches(bad=bad),
            eval_batches=None,
        )
        summary = train(run, settings, programs=programs)
    return {**summary.metrics, "position": run.batches.index}


def interrupt_this_process_alone(batch_index):
    if index == 1 and batch_index == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def eval_batches():
    rows = slice(4 * index, 4 * index + 4)
    return [jax.tree.map(lambda array: array[rows], make_batch(seed=1000))]


mesh = make_mesh("fsdp=2")
changes = {"mesh": mesh, "eval_batches": eval_batches}
whole = run_train(directory / "whole", batches=HalfBatches(), **changes)
resumed = run_train(directory / "whole", batches=HalfBatches(), **changes)
stopped = run_train(
    directory / "stopped",
    batches=HalfBatches(on_next=interrupt_this_process_alone),
    **changes,
)
programs = Programs(make_run(directory, mesh=mesh), step_settings(make_settings(), 3))
bad = {policy: train_with(policy, 4) for policy in ("skip", "rollback")}
report = {
    "bad": bad,
    "shard": host_rows(mesh),
    "whole": whole.metrics,
    "evaluation": whole.evaluation,
    "resumed": resumed.step,
    "stopped": [stopped.step, stopped.preempted],
}
(directory / f"report{index}.json").write_text(json.dumps(report))
jax.distributed.shutdown()
