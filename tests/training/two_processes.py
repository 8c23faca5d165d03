"""One of two processes that train together; run by test_processes.py.

python two_processes.py PORT INDEX DIRECTORY
"""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, index, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)

from jax.experimental import multihost_utils  # noqa: E402
from training_toys import (  # noqa: E402
    ToyBatches,
    make_batch,
    make_programs,
    make_run,
    make_settings,
    run_train,
)

from ul2.sharding.mesh import make_mesh  # noqa: E402
from ul2.sharding.placement import host_rows  # noqa: E402
from ul2.training import run_checkpoints, saving  # noqa: E402
from ul2.training.failures import StorageError  # noqa: E402
from ul2.training.guard import GuardSettings  # noqa: E402
from ul2.training.loop import train  # noqa: E402


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
        summary = train(run, settings, programs=changes["programs"])
    return {**summary.metrics, "position": run.batches.index}


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
# Compiled once for all runs.
changes["programs"] = make_programs(make_run(directory, **changes))
# First, while SIGTERM is still jax's; and no run after it hears it, for jax asks again
# whoever comes to the step at which it asked before.
noticed = run_train(
    directory / "noticed",
    batches=HalfBatches(on_next=notify_jax_on_this_process_alone),
    settings=make_settings(total_steps=400, eval_every_steps=0, save_every_steps=0),
    **changes,
)
jax.config.update("jax_enable_preemption_service", False)
whole = run_train(directory / "whole", batches=HalfBatches(), **changes)
resumed = run_train(directory / "whole", batches=HalfBatches(), **changes)
stopped = run_train(
    directory / "stopped",
    batches=HalfBatches(on_next=interrupt_this_process_alone),
    **changes,
)


def run_on_a_bad_disk(name, which, **settings):
    """Lets some of this process's attempts to save fail; returns how it ended."""
    begin, numbers = saving.Attempt._begin, itertools.count()

    def failing(self, trees):
        if which(next(numbers)):
            raise OSError(28, "No space left on device")
        return begin(self, trees)

    saving.Attempt._begin = failing
    try:
        settings = make_settings(**settings)
        path = directory / name
        return run_train(path, batches=HalfBatches(), settings=settings, **changes).step
    except StorageError as error:
        return str(error)
    finally:
        saving.Attempt._begin = begin


# Process 1 alone fails to save, once; and then from the second time on.
run_checkpoints.FIRST_PAUSE = 0.0
failed_once = run_on_a_bad_disk("once", lambda number: index == 1 and number == 0)
gave_up = run_on_a_bad_disk(
    "ever", lambda number: index == 1 and number >= 1, save_retry_seconds=0.0
)
if index == 0:
    damaged = directory / "whole" / "checkpoints" / "6" / "params" / "manifest.ocdbt"
    damaged.write_bytes(b"")
multihost_utils.sync_global_devices("it is damaged")
stepped_over = run_train(directory / "whole", batches=HalfBatches(), **changes)
bad = {policy: train_with(policy, 4) for policy in ("skip", "rollback")}
report = {
    "failed_once": failed_once,
    "gave_up": gave_up,
    "stepped_over": [stepped_over.step, stepped_over.metrics["loss"]],
    "bad": bad,
    "shard": host_rows(mesh),
    "whole": whole.metrics,
    "evaluation": whole.evaluation,
    "resumed": resumed.step,
    "stopped": [stopped.step, stopped.preempted],
    "noticed": [noticed.step, noticed.preempted],
}
(directory / f"report{index}.json").write_text(json.dumps(report))
jax.distributed.shutdown()
