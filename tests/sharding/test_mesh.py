import jax
import pytest

from ul2.sharding.mesh import make_mesh, mesh_sizes


@pytest.mark.parametrize(
    ("spec", "devices", "sizes"),
    [
        ("auto", 1, (1, 1, 1)),
        ("auto", 8, (1, 8, 1)),
        ("data=2,fsdp=4,tensor=1", 8, (2, 4, 1)),
        ("tensor=2, data=-1", 8, (4, 1, 2)),
        ("fsdp=-1", 6, (1, 6, 1)),
    ],
)
def test_mesh_sizes_follow_the_text(spec, devices, sizes):
    assert mesh_sizes(spec, devices) == sizes


@pytest.mark.parametrize(
    "spec",
    ["fsdp", "fsdp=two", "fsdp=0", "model=8", "fsdp=2,fsdp=4", "data=-1,fsdp=-1",
     "fsdp=3", "fsdp=3,data=-1", "fsdp=16", "", "fsdp=-2", "fsdp=--1"],
)  # fmt: skip
def test_mesh_error_is_one_line_and_names_the_knob(spec):
    with pytest.raises(ValueError, match=r"^[^\n]*MESH\.$"):
        mesh_sizes(spec, 8)


def test_make_mesh_uses_every_device_it_is_given():
    mesh = make_mesh("data=2,fsdp=-1", jax.devices()[:4])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1}
