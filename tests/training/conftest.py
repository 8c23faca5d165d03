import jax
import pytest

from ul2.sharding.mesh import make_mesh


@pytest.fixture
def one_device():
    return make_mesh("auto", jax.devices()[:1])
