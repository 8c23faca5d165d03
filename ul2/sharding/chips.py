"""What the makers say of their chips: the only numbers here that no program measures.

Sources: the makers' data sheets (peaks); what XLA's compiler says it may use when a
program asks for more (memory of TPUs); "How to Scale Your Model", part 2 (links of
TPUs, one way, what is reached of what is printed); NVIDIA's data sheets (GPUs).
"""

import dataclasses
from typing import Final

# Dense bfloat16 FLOP/s of one jax device, by its `device_kind`.
PEAK_FLOPS: Final = {
    "TPU v2": 22.5e12,  # a core, half a chip
    "TPU v3": 61.5e12,  # a core, half a chip
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
_GIB: Final = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One jax device and what joins it to others.

    Attributes:
        name: as topologies write it.
        kind: its `device_kind`.
        memory_bytes: what a program may use.
        memory_bandwidth: bytes per second.
        link_bandwidth: bytes per second over one link, one way; of a GPU, over all
            its links to the switch.
        num_dims: of the torus that links make; 0 where a switch joins all of a node.
        wraps: a dim of this size, or a multiple of it, is a ring.
        domain: devices that fast links can join.
        network_bandwidth: bytes per second to other domains, one way.
    """

    name: str
    kind: str
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    num_dims: int
    wraps: int = 0
    domain: int
    network_bandwidth: float

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return PEAK_FLOPS[self.kind]


# The network of a TPU host is 25e9 bytes per second, over its 4 chips (8 of a v5e);
# v6e has 12.5e9 a chip. Of a GPU: one 400 Gbit/s card each (200 for A100).
_CHIPS: Final = (
    Chip(
        name="v4",
        kind="TPU v4",
        memory_bytes=int(30.75 * _GIB),
        memory_bandwidth=1.2e12,
        link_bandwidth=4.5e10,
        num_dims=3,
        wraps=4,
        domain=16 * 16 * 16,
        network_bandwidth=6.25e9,
    ),
    Chip(
        name="v5e",
        kind="TPU v5 lite",
        memory_bytes=int(15.75 * _GIB),
        memory_bandwidth=8.1e11,
        link_bandwidth=4.5e10,
        num_dims=2,
        wraps=16,
        domain=16 * 16,
        network_bandwidth=3.125e9,
    ),
    Chip(
        name="v5p",
        kind="TPU v5",
        memory_bytes=int(95.74 * _GIB),
        memory_bandwidth=2.8e12,
        link_bandwidth=9e10,
        num_dims=3,
        wraps=4,
        domain=16 * 20 * 28,
        network_bandwidth=6.25e9,
    ),
    Chip(
        name="v6e",
        kind="TPU v6 lite",
        memory_bytes=int(31.25 * _GIB),
        memory_bandwidth=1.6e12,
        link_bandwidth=9e10,
        num_dims=2,
        wraps=16,
        domain=16 * 16,
        network_bandwidth=12.5e9,
    ),
    # Of a GPU's memory, jax takes three quarters unless
    # XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
    Chip(
        name="a100",
        kind="NVIDIA A100-SXM4-80GB",
        memory_bytes=int(0.75 * 80e9),
        memory_bandwidth=2.04e12,
        link_bandwidth=3e11,
        num_dims=0,
        domain=8,
        network_bandwidth=2.5e10,
    ),
    Chip(
        name="h100",
        kind="NVIDIA H100 80GB HBM3",
        memory_bytes=int(0.75 * 80e9),
        memory_bandwidth=3.35e12,
        link_bandwidth=4.5e11,
        num_dims=0,
        domain=8,
        network_bandwidth=5e10,
    ),
    Chip(
        name="h200",
        kind="NVIDIA H200",
        memory_bytes=int(0.75 * 141e9),
        memory_bandwidth=4.8e12,
        link_bandwidth=4.5e11,
        num_dims=0,
        domain=8,
        network_bandwidth=5e10,
    ),
)
CHIPS: Final = {chip.name: chip for chip in _CHIPS}
