"""What a compiled program sends between devices: by kind, by mesh axis, in bytes.

Bytes are what each device sends when n of them work as a ring:

    all-gather           (n - 1) / n of the result
    reduce-scatter       (n - 1) / n of the operand
    all-reduce           both: 2 (n - 1) / n
    all-to-all           (n - 1) / n of the operand
    collective-permute   the operand

A group is named by the mesh axes along which its devices differ: `fsdp`, or
`data+fsdp` where one collective runs over both.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from ul2.planning.hlo import Array, Computation, Instruction, Module

KINDS: Final = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_LISTED: Final = re.compile(r"replica_groups=\{(\{[\d,{}]*\})?\}")
_IOTA: Final = re.compile(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
_NAMED: Final = re.compile(
    r"replica_groups=(?:@\w+)?mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_NAMED_AXIS: Final = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+)|=(\d+))?")
_PAIRS: Final = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")
# How TPU's compiler writes a reduce-scatter: an all-reduce and a slice, fused.
_FUSED_SCATTER: Final = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes.

    Attributes:
        kind: one of `KINDS`.
        axes: mesh axes, in the order of the mesh.
        group_size: devices that work together.
        count: how often one runs in a step.
        sent_bytes: what each device sends in a step.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    count: int
    sent_bytes: float

    @property
    def axis(self) -> str:
        """The axes as one name."""
        return "+".join(self.axes)


def collectives(module: Module, mesh: Mesh) -> list[Collective]:
    """Returns what a program sends, the most first."""
    found: dict[tuple[str, tuple[str, ...], int], tuple[int, float]] = {}
    for computation, instruction, runs in module.instructions():
        kind = _kind(computation, instruction)
        if kind is None:
            continue
        groups = _groups(instruction, mesh.size)
        size = _group_size(kind, groups)
        if size < 2:
            continue
        key = (kind, _axes(groups, mesh), size)
        count, total = found.get(key, (0, 0.0))
        sent = _payload(kind, instruction) * _share(kind, size)
        found[key] = (count + runs, total + runs * sent)
    made = (Collective(*key, *sums) for key, sums in found.items())
    return sorted(made, key=lambda one: -one.sent_bytes)


def _kind(computation: Computation, instruction: Instruction) -> str | None:
    """Returns which kind of collective an instruction starts, if it does."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    if kind == "all-reduce" and computation.name.startswith(_FUSED_SCATTER):
        return "reduce-scatter"
    return kind


def _payload(kind: str, instruction: Instruction) -> int:
    """Returns the bytes that `_share` is a share of: of the larger side."""
    arrays = instruction.arrays
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        arrays = _results(arrays)
    total = sum(array.size for array in arrays)
    scatters = instruction.opcode.startswith("reduce-scatter")
    return total * _group_size(kind, _groups(instruction, 1)) if scatters else total


def _results(arrays: list[Array]) -> list[Array]:
    """Returns the results among (operands, results, contexts) of what was started."""
    real = [array for array in arrays if array.dims or len(arrays) == 1]
    return real[len(real) // 2 :]


def _share(kind: str, size: int) -> float:
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (size - 1) / size * (2 if kind == "all-reduce" else 1)


def _group_size(kind: str, groups: NDArray[np.int64]) -> int:
    if kind == "collective-permute":
        return 2 if (groups[:, 0] != groups[:, 1]).any() else 1
    return int(groups.shape[1])


def _groups(instruction: Instruction, num_devices: int) -> NDArray[np.int64]:
    """Returns `[groups, devices]` of a collective, or `[pairs, 2]` of a permutation.

    Raises:
        ValueError: they are written in a way that is not known.
    """
    line = instruction.line
    if pairs := _PAIRS.search(line):
        return _listed(pairs[1])
    if named := _NAMED.search(line):
        return _named(named)
    if iota := _IOTA.search(line):
        return _iota(_ints(iota[2]), iota[3]).reshape(_ints(iota[1]))
    if listed := _LISTED.search(line):
        return _listed(listed[1]) if listed[1] else np.arange(num_devices)[None]
    raise ValueError(f"no replica groups can be read in {line.strip()[:200]!r}.")


def _listed(text: str) -> NDArray[np.int64]:
    """Reads groups one by one: {0,2},{1,3} -> [[0 2] [1 3]]."""
    return np.array([_ints(one) for one in re.findall(r"\{([\d,]+)\}", text)])


def _iota(dims: Sequence[int], transposed: str | None) -> NDArray[np.int64]:
    """Reads a transposed count: [4,2]T(1,0) -> 0 2 4 6 1 3 5 7."""
    ids = np.arange(math.prod(dims)).reshape(dims)
    return (ids.transpose(_ints(transposed)) if transposed else ids).ravel()


def _named(found: re.Match[str]) -> NDArray[np.int64]:
    """Reads axes of a mesh: mesh['a'=2,'b'=4] {'b'} -> [[0 1 2 3] [4 5 6 7]].

    `'b':(2)2` is the part of size 2 of axis b that has 2 above it.
    """
    dims = {axis[0]: int(axis[3]) for axis in _NAMED_AXIS.findall(found[1])}
    ids = np.arange(math.prod(dims.values()))
    if found[2]:
        ids = _iota(_ints(found[2]), found[3])
    wanted = {axis[0]: axis for axis in _NAMED_AXIS.findall(found[4])}
    shape: list[int] = []
    within: list[int] = []
    for name, size in dims.items():
        _, above, part, _ = wanted.get(name, ("", "", "", ""))
        if name in wanted:
            within.append(len(shape) + bool(part))
        before = int(above or 1) * int(part or 1)
        shape += [int(above), int(part), size // before] if part else [size]
    ids = np.moveaxis(ids.reshape(shape), within, range(-len(within), 0))
    return ids.reshape(-1, math.prod(shape[place] for place in within))


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _axes(groups: NDArray[np.int64], mesh: Mesh) -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of a group differ."""
    places = np.stack(np.unravel_index(groups, mesh.devices.shape))
    differs = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(
        name for name, one in zip(mesh.axis_names, differs.tolist(), strict=True) if one
    )


def by_axis(found: Sequence[Collective]) -> Iterator[tuple[str, float]]:
    """Yields the bytes that each device sends along each axis, the most first."""
    totals: dict[str, float] = {}
    for one in found:
        totals[one.axis] = totals.get(one.axis, 0.0) + one.sent_bytes
    yield from sorted(totals.items(), key=lambda item: -item[1])
