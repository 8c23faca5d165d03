"""A topology's name is devices, or one line that says what is allowed."""

import importlib.util

import jax
import numpy as np
import pytest

from ul2.planning import topology
from ul2.planning.collectives import Collective
from ul2.planning.links import Link, link_along
from ul2.planning.topology import open_topologies
from ul2.sharding.chips import CHIPS
from ul2.sharding.mesh import make_mesh

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the `plan` extra"
)


def open_one(name):
    (found,) = open_topologies([name])
    return found


def test_fake_devices_share_this_machine():
    four, eight = open_topologies(["cpu:4", "cpu:8"])
    assert list(eight.devices) == jax.devices()[:8]
    assert (eight.compiler, eight.chip, eight.shape) == ("cpu", None, ())
    assert four.memory_bytes == pytest.approx(2 * eight.memory_bytes, abs=8)


def test_counted_chips_are_fake_devices_with_their_numbers():
    found = open_one("h200:8")
    assert found.devices == tuple(jax.devices()[:8])
    assert found.memory_bytes == CHIPS["h200"].memory_bytes
    assert found.compiler == "cpu"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9:4x4", "is not a TPU slice such as v4:2x2x2"),
        ("v5p", "h200:8; v4, v5e, v5p, v6e, a100, h100, h200"),
        ("v5p:4x0x4", "holds no device"),
        ("0*v5p:4x4x4", "holds no device"),
        ("2*cpu:4", "only slices with a shape are joined by a network"),
        ("cpu:2x4", "cpu has no torus; write cpu:8"),
        ("h200:2x4", "h200 has no torus; write h200:8"),
        ("cpu:4096", "XLA_FLAGS=--xla_force_host_platform_device_count=4096"),
    ],
)
def test_unknown_topology_is_refused_in_one_line(name, said):
    with pytest.raises(ValueError, match="--topology") as raised:
        open_one(name)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_compiler_names_the_extra_and_the_fallback(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="libtpu") as raised:
        open_one("2*v5p:4x4x4")
    assert "pip install 'ul2[plan]'" in str(raised.value)
    assert "--topology=v5p:128" in str(raised.value)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "devices", "slices"),
    [
        ("v4:2x2x2", 8, 1),
        ("v5e:1x1", 1, 1),
        ("v5e:4x8", 32, 1),
        ("2*v5p:2x2x2", 16, 2),
        ("v6e:4x4", 16, 1),
    ],
)
def test_slices_are_as_large_as_they_say(name, devices, slices):
    found = open_one(name)
    assert (len(found.devices), found.slices) == (devices, slices)
    assert found.devices[0].device_kind == found.chip.kind
    assert found.domain_of(devices - 1) == slices - 1


@needs_libtpu
def test_slice_that_no_pod_has_is_refused():
    with pytest.raises(ValueError, match="libtpu knows no such slice"):
        open_one("v5p:3x5x7")


class Chipless:
    """A device of a slice, as far as its place."""

    def __init__(self, coords, slice_index=0):
        self.coords, self.slice_index = coords, slice_index


class SliceMesh:
    axis_names = ("a", "b")

    def __init__(self, devices):
        self.devices = devices


def link_of(shape, mesh_shape, axes, chip="v5p", slices=1):
    """Links along axes of a mesh that is laid over slices in order of coordinates."""
    devices = np.empty(slices * int(np.prod(shape)), object)
    for index in range(len(devices)):
        of_slice, place = divmod(index, int(np.prod(shape)))
        coords = tuple(int(c) for c in np.unravel_index(place, shape))
        devices[index] = Chipless((*coords, 0)[:3], of_slice)
    found = topology.Topology(
        "toy", tuple(devices), CHIPS[chip], shape, slices, "libtpu"
    )
    return link_along(found, SliceMesh(devices.reshape(mesh_shape)), axes)


def test_rings_have_two_links_and_lines_one():
    one = CHIPS["v5p"].link_bandwidth
    # A dim of four wraps around, one of two does not, two dims make a circle.
    assert link_of((4, 4, 4), (16, 4), ("b",)).bandwidth == 2 * one
    assert link_of((4, 4, 2), (16, 2), ("b",)).bandwidth == one
    assert link_of((4, 4, 2), (4, 8), ("b",)).bandwidth == 2 * one
    # Half of a ring is a line. v5e wraps at sixteen.
    assert link_of((4, 4, 8), (32, 4), ("b",)).bandwidth == one
    lite = CHIPS["v5e"].link_bandwidth
    assert link_of((4, 8), (4, 8), ("b",), "v5e").bandwidth == lite
    assert link_of((2, 16), (2, 16), ("b",), "v5e").bandwidth == 2 * lite


def test_slices_are_joined_by_the_network():
    within = link_of((4, 4, 4), (2, 64), ("b",), slices=2)
    assert (within.inside, within.network) == (64, 0.0)
    across = link_of((4, 4, 4), (2, 64), ("a",), slices=2)
    assert (across.inside, across.network) == (1, CHIPS["v5p"].network_bandwidth)
    both = link_of((4, 4, 4), (2, 64), ("a", "b"), slices=2)
    assert (both.inside, both.network) == (64, CHIPS["v5p"].network_bandwidth)


def test_nodes_of_gpus_have_eight():
    found = topology.Topology("h200:32", tuple(range(32)), CHIPS["h200"], (), 1, "cpu")
    assert [found.domain_of(index) for index in (0, 7, 8, 31)] == [0, 0, 1, 3]


def test_seconds_are_bytes_over_what_carries_them():
    sent = Collective("all-gather", ("a",), 8, 1, 80.0)
    assert Link(10.0, 8, 0.0, True).seconds(sent) == 8.0
    assert Link(10.0, 1, 5.0, True).seconds(sent) == 16.0
    # Within each of two halves first, and what one of them holds of it between.
    assert Link(10.0, 4, 5.0, True).seconds(sent) == 8.0 + 4.0
    # On a ring of eight, messages to all others pass two links on average.
    swapped = Collective("all-to-all", ("a",), 8, 1, 80.0)
    assert Link(10.0, 8, 0.0, True).seconds(swapped) == 16.0
    assert Link(10.0, 8, 0.0, False).seconds(swapped) == 8.0


def test_mesh_of_counted_chips_is_a_ring():
    found = open_one("v5p:8")
    mesh = make_mesh("fsdp=4,tensor=2", found.devices)
    link = link_along(found, mesh, ("fsdp",))
    assert link == Link(2 * CHIPS["v5p"].link_bandwidth, 4, 0.0, True)
