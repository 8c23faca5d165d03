import jax
import pytest
from training_toys import make_programs, make_run, make_settings

from ul2.sharding.mesh import make_mesh
from ul2.training.loop import train


@pytest.fixture(scope="session")
def one_device():
    return make_mesh("auto", jax.devices()[:1])


@pytest.fixture(scope="module")
def programs(one_device):
    return make_programs(make_run("unused", one_device))


@pytest.fixture(scope="module")
def train_toy(one_device, programs):
    """Trains without compiling anew, with a clock that stands still."""

    def train_toy(model_dir, settings=None, **changes):
        run = make_run(model_dir, one_device, **changes)
        settings = settings or make_settings()
        return train(run, settings, programs=programs, clock=lambda: 0.0)

    return train_toy
