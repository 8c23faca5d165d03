"""How long a step takes: a roofline. What it assumes is part of every report.

Some of what is sent is *hidden*, some *exposed*. Along the axes that split rows,
parameters are gathered and gradients summed beside the computation of other layers.
Along all others the next product waits for it.

    compute     operations / (peak x efficiency)
    memory      bytes to and from HBM / bandwidth, counted by hand
    step        max(compute, memory, hidden) + exposed
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from ul2 import axes
from ul2.models.config import ModelConfig
from ul2.planning.collectives import Collective
from ul2.planning.flops import Flops
from ul2.planning.links import link_along
from ul2.planning.memory import MemoryUse
from ul2.planning.shapes import BatchShape
from ul2.planning.topology import Topology
from ul2.sharding.placement import num_batch_shards
from ul2.sharding.rules import DEFAULT_RULES, mesh_axes

# Of the peak, in matrix products as large as a layer's and all that stands between.
EFFICIENCY: Final = 0.7
# Times that a sublayer reads or writes its rows, in one pass over it.
_TOUCHES: Final = 8
_SUBLAYERS: Final = 3
# The same of attention's logits in float32: made, masked, normalised, used.
_PRODUCT_TOUCHES: Final = 4


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by cause."""

    compute: float
    memory: float
    hidden: float
    exposed: float

    @property
    def total(self) -> float:
        """Of the whole step."""
        return max(self.compute, self.memory, self.hidden) + self.exposed

    @property
    def bound_by(self) -> str:
        """What takes the most of it."""
        causes = {
            "compute": self.compute,
            "memory": self.memory,
            "communication": max(self.hidden, self.exposed),
        }
        return max(causes, key=causes.__getitem__)

    def to_json(self) -> dict[str, Any]:
        """Returns every cause."""
        return {**dataclasses.asdict(self), "bound_by": self.bound_by}


class Work(NamedTuple):
    """What a step computes, whatever it is computed on."""

    config: ModelConfig
    shape: BatchShape
    flops: Flops
    params: int
    microbatches: int
    loss_chunk: int


def step_time(
    topology: Topology,
    mesh: Mesh,
    work: Work,
    held: MemoryUse,
    sent: Sequence[Collective],
) -> StepTime | None:
    """Returns how long a step takes; None where nothing is known of the chips."""
    chip = topology.chip
    if chip is None:
        return None
    hidden = exposed = 0.0
    for one in sent:
        seconds = link_along(topology, mesh, one.axes).seconds(one)
        # The compiler has cut a product in pieces that are sent meanwhile.
        if one.kind == "collective-permute" or splits_rows(one.axes):
            hidden += seconds
        else:
            exposed += seconds
    return StepTime(
        compute=work.flops.total / mesh.size / (chip.peak_flops * EFFICIENCY),
        memory=_moved_bytes(mesh, work, held) / chip.memory_bandwidth,
        hidden=hidden,
        exposed=exposed,
    )


def splits_rows(names: Sequence[str]) -> bool:
    """Returns whether these axes split rows alone: what they send is parameters."""
    return set(names) <= set(mesh_axes(axes.BATCH, DEFAULT_RULES))


def _moved_bytes(mesh: Mesh, work: Work, held: MemoryUse) -> float:
    """Returns the bytes that a device moves to and from its memory in a step."""
    config, shape = work.config, work.shape
    number = jnp.dtype(config.compute_dtype).itemsize
    # Kernels as layers use them: whole along the axes that split rows.
    kernels = work.params * number * num_batch_shards(mesh) / mesh.size
    passes = 3 + (config.remat not in ("none", "dots"))
    layers = config.num_encoder_layers + config.num_decoder_layers
    rows = shape.columns / mesh.size * config.embed_dim * number
    pairs = sum(queries * keys for queries, keys in _views(config, shape))
    logits = 4 * shape.examples * config.num_heads * pairs / mesh.size
    read = kernels * work.microbatches
    read += rows * _SUBLAYERS * layers * _TOUCHES + logits * _PRODUCT_TOUCHES
    update = 2 * (held.parameters + held.optimizer) + 2 * held.parameters
    return passes * read + update


def _views(config: ModelConfig, shape: BatchShape) -> list[tuple[int, int]]:
    """Returns (queries, keys) of every attention of every layer."""
    last, first = shape.views[-1], shape.views[0]
    views = [(last, last)] * config.num_decoder_layers
    if config.num_encoder_layers:
        views += [(last, first)] * config.num_decoder_layers
        views += [(first, first)] * config.num_encoder_layers
    return views


def assumptions(topology: Topology) -> list[str]:
    """Returns what the numbers of a plan rest on, a line each."""
    lines = []
    if topology.compiler == "cpu":
        lines.append(
            "memory and communication are those of the CPU's compiler, which fuses "
            "less than a TPU's or GPU's, sums in float32, and errs high"
        )
    chip = topology.chip
    if chip is None:
        return [
            *lines,
            "no speed is known of fake devices: name a chip for a time (v5p:4x4x4, "
            "h200:8)",
            "fits: all fake devices together into this machine's memory",
        ]
    network = f"{chip.network_bandwidth:.3g} bytes/s a chip between slices or nodes"
    return [
        *lines,
        f"{chip.peak_flops:.3g} FLOP/s of bfloat16 a chip, of which products reach "
        f"{EFFICIENCY:.0%}",
        f"{chip.memory_bandwidth:.3g} bytes/s of HBM; traffic is counted by hand, not "
        "measured",
        f"{chip.link_bandwidth:.3g} bytes/s a link and direction, two links where a "
        f"group is a ring; {network}"
        if chip.num_dims
        else f"{chip.link_bandwidth:.3g} bytes/s to a switch within a node; {network}",
        "what is sent along axes that split rows hides behind computation, and so do "
        "permutations; everything else is waited for",
        "no time is lost to the input, to checkpoints, evaluations or restarts",
    ]
