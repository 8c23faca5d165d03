import jax
import pytest
from jax.sharding import PartitionSpec as P

from ul2 import axes
from ul2.sharding.mesh import make_mesh
from ul2.sharding.rules import DEFAULT_RULES, partition_spec


@pytest.fixture
def mesh():
    return make_mesh("data=2,fsdp=2,tensor=2", jax.devices()[:8])


def test_every_logical_axis_has_a_rule():
    assert set(DEFAULT_RULES) == set(axes.ALL)


@pytest.mark.parametrize(
    ("shape", "names", "spec"),
    [
        ((64, 128), ("embed", "mlp"), P("fsdp", "tensor")),
        ((6, 64, 128), ("layers", "heads", "embed"), P(None, "tensor", "fsdp")),
        ((8, 16), ("batch", "length"), P(("data", "fsdp"))),
        ((63, 128), ("embed", "mlp"), P(None, "tensor")),  # 63 is odd
        ((64, 64), ("embed", "embed"), P("fsdp")),  # an axis splits one dim
        (
            (8, 16, 64),
            ("batch", "residual_length", None),
            P(("data", "fsdp"), "tensor"),
        ),
        ((12, 32), ("bias_heads", "buckets"), P()),
        ((4, 64), (None, "embed"), P(None, "fsdp")),
        ((4,), (), P()),
    ],
)
def test_partition_spec_follows_the_table(mesh, shape, names, spec):
    assert partition_spec(shape, names, mesh) == spec


def test_unknown_axis_is_an_error(mesh):
    with pytest.raises(ValueError, match="no sharding rule for logical axis 'width'"):
        partition_spec((4,), ("width",), mesh)
