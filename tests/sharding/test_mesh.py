import operator
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ul2.sharding.mesh import Workload, arrange, count_slices, make_mesh, mesh_sizes


@pytest.mark.parametrize(
    ("spec", "devices", "sizes"),
    [
        ("auto", 1, (1, 1, 1, 1)),
        ("auto", 8, (1, 8, 1, 1)),
        ("data=2,fsdp=4,tensor=1", 8, (2, 4, 1, 1)),
        ("tensor=2, data=-1", 8, (4, 1, 1, 2)),
        ("sequence=2,fsdp=-1", 8, (1, 4, 2, 1)),
        ("fsdp=-1", 6, (1, 6, 1, 1)),
        ("dcn_data=2,fsdp=4", 8, (2, 4, 1, 1)),
    ],
)
def test_mesh_sizes_follow_the_text(spec, devices, sizes):
    assert mesh_sizes(spec, devices).total == sizes


@pytest.mark.parametrize(
    ("spec", "slices", "within", "across"),
    [
        ("auto", 2, (1, 8, 1, 1), (2, 1, 1, 1)),
        ("dcn_data=2,fsdp=-1", 2, (1, 8, 1, 1), (2, 1, 1, 1)),
        ("data=2,fsdp=8", 2, (1, 8, 1, 1), (2, 1, 1, 1)),
        ("data=4,fsdp=4", 2, (2, 4, 1, 1), (2, 1, 1, 1)),
        ("fsdp=8,tensor=2", 2, (1, 4, 1, 2), (1, 2, 1, 1)),
        ("dcn_data=2,dcn_fsdp=2,fsdp=2,tensor=2", 4, (1, 2, 1, 2), (2, 2, 1, 1)),
    ],
)
def test_slices_run_along_the_outermost_axis_that_they_divide(
    spec, slices, within, across
):
    assert mesh_sizes(spec, 16, slices) == (within, across)


@pytest.mark.parametrize(
    ("devices", "batch_size", "heads", "sizes"),
    [
        (64, 1024, 16, (1, 64, 1, 1)),
        (256, 1024, 16, (1, 128, 1, 2)),  # 128 parts of 8 examples
        (1024, 128, 16, (1, 16, 4, 16)),  # what heads leave goes to columns
        (8, 28, 4, (1, 2, 1, 4)),  # 28 does not divide by 4 and leave 8
        (8, 7, 4, (1, 1, 2, 4)),
    ],
)
def test_auto_gives_each_part_of_the_batch_enough_examples(
    devices, batch_size, heads, sizes
):
    workload = Workload(batch_size, heads)
    assert mesh_sizes("auto", devices, workload=workload).total == sizes


@pytest.mark.parametrize(
    "spec",
    ["fsdp", "fsdp=two", "fsdp=0", "model=8", "fsdp=2,fsdp=4", "data=-1,fsdp=-1",
     "fsdp=3", "fsdp=3,data=-1", "fsdp=16", "", "fsdp=-2", "fsdp=--1",
     "dcn_model=2", "dcn_data=16"],
)  # fmt: skip
def test_mesh_error_is_one_line_and_names_the_knob(spec):
    with pytest.raises(ValueError, match=r"^[^\n]*MESH\.$"):
        mesh_sizes(spec, 8)


def test_make_mesh_uses_every_device_it_is_given():
    mesh = make_mesh("data=2,fsdp=-1", jax.devices()[:4])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 1}


@pytest.mark.parametrize("spec", ["fsdp=3,tensor=3", "dcn_data=3,fsdp=3"])
def test_slices_that_do_not_fit_are_an_error(spec):
    with pytest.raises(ValueError, match=r"^[^\n]*slices[^\n]*MESH\.$"):
        mesh_sizes(spec, 9, 2 if "dcn" in spec else 9)


def test_only_the_axis_that_says_so_leaves_a_slice():
    # No tuples: numpy would take them apart.
    devices = [
        SimpleNamespace(id=n, slice_index=n // 4, platform="gpu", device_kind="H200")
        for n in range(8)
    ]
    assert count_slices(devices) == 2
    placed = arrange(mesh_sizes("dcn_data=2,fsdp=2,tensor=2", 8, 2), devices)
    assert placed.shape == (2, 2, 1, 2)
    slices = np.vectorize(operator.attrgetter("slice_index"))(placed)
    assert (slices[0] == 0).all() and (slices[1] == 1).all()
