"""How fast the devices along a mesh axis can send to each other.

On a torus a group works as one ring in both directions where its chips can be laid in
a circle: along a dim that wraps around, or in a block of two or more dims. Otherwise
it is a line, and what passes its middle goes over one link each way. Groups that lie
in several slices (or nodes) send within each first, and a share of it, as large as one
of a slice's chips holds, over the network.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from ul2.planning.collectives import Collective
from ul2.planning.topology import Topology
from ul2.sharding.chips import Chip

_WHOLE_RING: int = 4  # devices from which an all-to-all on a ring is slower


class Link(NamedTuple):
    """What joins the devices of a group.

    Attributes:
        bandwidth: bytes per second that each sends to those in its own domain.
        inside: devices of the group that share a domain.
        network: bytes per second to other domains; 0 where there are none.
        is_ring: whether messages to all others travel past those between.
    """

    bandwidth: float
    inside: int
    network: float
    is_ring: bool

    def seconds(self, collective: Collective) -> float:
        """Returns how long all collectives of a kind take in a step."""
        sent = collective.sent_bytes
        total = 0.0
        if self.inside > 1:
            total += sent / self.bandwidth
            if collective.kind == "all-to-all" and self.is_ring:
                total *= max(1.0, self.inside / _WHOLE_RING)
        if self.network:
            total += sent / self.inside / self.network
        return total


def link_along(topology: Topology, mesh: Mesh, axes: tuple[str, ...]) -> Link:
    """Returns what joins the devices along some axes of a mesh.

    Raises:
        AssertionError: nothing is known of the topology's chips.
    """
    chip = topology.chip
    assert chip is not None, topology.name
    members = _members(mesh, axes)
    places = {id(device): index for index, device in enumerate(topology.devices)}
    domains = [topology.domain_of(places[id(device)]) for device in members]
    inside = domains.count(domains[0])
    network = chip.network_bandwidth if len(set(domains)) > 1 else 0.0
    if not chip.num_dims:
        return Link(chip.link_bandwidth, inside, network, False)
    rings = 2
    if topology.shape:
        own = [d for d, of in zip(members, domains, strict=True) if of == domains[0]]
        rings = 2 if _is_circle(_coordinates(own), topology.shape, chip) else 1
    return Link(rings * chip.link_bandwidth, inside, network, True)


def _members(mesh: Mesh, axes: tuple[str, ...]) -> list[object]:
    """Returns the devices of one group along some axes."""
    places = tuple(
        slice(None) if name in axes else slice(0, 1) for name in mesh.axis_names
    )
    return list(mesh.devices[places].ravel())


def _coordinates(devices: list[object]) -> NDArray[np.int64]:
    """Returns `[devices, dims]`."""
    return np.array([getattr(device, "coords", (0,)) for device in devices])


def _is_circle(places: NDArray[np.int64], shape: tuple[int, ...], chip: Chip) -> bool:
    """Returns whether chips can be laid in a circle of neighbours."""
    extents = [len(np.unique(column)) for column in places.T]
    long = [dim for dim, extent in enumerate(extents) if extent > 1]
    if math.prod(extents) != len(places) or not long:
        return False  # not a block
    if len(long) > 1:
        return len(places) % 2 == 0
    (dim,) = long
    whole = dim < len(shape) and extents[dim] == shape[dim]
    return whole and shape[dim] % chip.wraps == 0
