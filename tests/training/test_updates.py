"""What is done about bad updates: each fault is injected into a batch or a parameter."""

import json

import jax
import numpy as np
import pytest
from training_toys import NAMES, ToyBatches, make_run, make_settings

from ul2.sharding.mesh import make_mesh
from ul2.training.checkpoints import load_model
from ul2.training.events import EVENTS, PASSED
from ul2.training.guard import GuardSettings
from ul2.training.loop import step_settings, train
from ul2.training.run import Programs

TOTAL = 6


class StoppedError(Exception):
    """The machine went away."""


class FaultyBatches(ToyBatches):
    """Toy batches, some of them with weights that are not finite, or left out.

    Args:
        bad: indices of batches whose loss is infinite.
        stop: index at which the machine goes away.
    """

    def __init__(self, bad=(), stop=None, **changes):
        super().__init__(**changes)
        self.bad, self.stop = bad, stop
        self.read = []

    def __next__(self):
        if self.index == self.stop:
            raise StoppedError
        self.read.append(self.index)
        is_bad = self.index in self.bad
        batch = super().__next__()
        if is_bad:
            batch.loss_weights[3, 2] = np.inf
        return batch


class Programmed:
    """Runs that share what is compiled."""

    def __init__(self, mesh, **settings):
        self.mesh = mesh
        self.settings = {"eval_every_steps": 0, "total_steps": TOTAL, **settings}
        self.programs = {}

    def train(self, model_dir, batches, guard=None, **changes):
        settings = make_settings(
            **{**self.settings, "guard": guard or GuardSettings(), **changes}
        )
        run = make_run(model_dir, mesh=self.mesh, batches=batches, eval_batches=None)
        key = step_settings(settings, len(NAMES))
        programs = self.programs.setdefault(key, Programs(run, key))
        return train(run, settings, programs=programs, clock=lambda: 0.0)


@pytest.fixture(scope="module")
def toys():
    return Programmed(make_mesh("auto", jax.devices()[:1]))


def params_of(model_dir, mesh, step=None):
    from training_toys import ToyModel

    model, _ = load_model(model_dir, mesh, make_model=ToyModel, step=step)
    return jax.device_get(jax.tree.leaves(model))


def lines_of(model_dir, name):
    path = model_dir / name
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


SKIP = GuardSettings(on_bad_numbers="skip", max_bad_updates=3)
ROLLBACK = GuardSettings(on_bad_numbers="rollback", max_bad_updates=3)


def test_try(toys, tmp_path):
    b = FaultyBatches(bad=(4,))
    s = toys.train(tmp_path / "a", b, SKIP)
    print(s)
    print((tmp_path / "a" / EVENTS).read_text())
    print((tmp_path / "a" / "metrics.jsonl").read_text())
    print(b.read)
    b = FaultyBatches(bad=(4,))
    s = toys.train(tmp_path / "b", b, ROLLBACK)
    print(s)
    print((tmp_path / "b" / EVENTS).read_text())
    print((tmp_path / "b" / PASSED).read_text())
    print((tmp_path / "b" / "metrics.jsonl").read_text())
    print(b.read)
    assert 0
