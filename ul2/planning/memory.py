"""What a device's memory holds while a step runs, by cause.

Parameters, optimizer state and batch are counted from their shardings: exact. The
rest is the compiler's word. Two of its numbers look alike and are not:

    temp   the sum of all temporary allocations, with room that is used twice counted
           twice where two of them never live at once
    peak   the most that lives at once, arguments and results included

`peak` is what the TPU compiler holds against the memory of a chip. A step that it
gives 0.1 GiB of arguments, 21.0 GiB of `temp` and a `peak` of 13.9 compiles for a
v5e, which has 15.75 GiB; where it refuses a program, the number in its message is
arguments, results and what lives at once (toys of which all three are known agree to
the last digit). So `total` is `peak`, and the program itself. The CPU's compiler counts
nothing but arguments as `peak`; its `temp` is taken instead.
"""

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple

import jax
import numpy as np

from ul2.batch import Batch
from ul2.planning.hlo import Array, Module
from ul2.training.state import TrainState

# What the backward pass is called in the names of operations.
_BACKWARD: Final = "transpose("
_WRITES_SLICE: Final = re.compile(r"dynamic.update.slice|dynamic_update_index")
_VIEWS: Final = ("parameter", "get-tuple-element", "tuple", "bitcast", "while")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes of one device's memory.

    Attributes:
        parameters: of its shards.
        optimizer: of its shards.
        batch: its rows.
        padding: what tiles add to all three.
        temporaries: the most that lives at once beside them; `activations` and
            `gradients` are part of it.
        activations: what the forward pass keeps for the backward pass.
        gradients: that the backward pass collects: of stacked parameters, and of the
            columns that the head is applied to.
        program: the code.
        allocated_temporaries: the compiler's `temp`, see above.
    """

    parameters: int
    optimizer: int
    batch: int
    padding: int = 0
    temporaries: int = 0
    activations: int = 0
    gradients: int = 0
    program: int = 0
    allocated_temporaries: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        held = self.parameters + self.optimizer + self.batch + self.padding
        return held + self.temporaries + self.program

    def to_json(self) -> dict[str, int]:
        """Returns every field and the total."""
        return {**dataclasses.asdict(self), "total": self.total}


class Buffer(NamedTuple):
    """An array that a program makes on every device."""

    array: Array
    op_name: str

    def to_json(self) -> dict[str, Any]:
        """Returns its size, shape and origin."""
        shape = f"{self.array.dtype}[{','.join(map(str, self.array.dims))}]"
        return {"bytes": self.array.size, "shape": shape, "made_by": self.op_name}


def shard_bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of abstract arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def held(state: TrainState, batch: Batch) -> MemoryUse:
    """Returns what a device holds whatever the program does."""
    return MemoryUse(
        parameters=shard_bytes(state.params),
        optimizer=shard_bytes((state.opt_state, state.guard)),
        batch=shard_bytes(batch),
    )


def memory_use(
    known: MemoryUse, stats: Any, module: Module, *, is_tpu: bool
) -> MemoryUse:
    """Returns what a device holds while a compiled step runs.

    Args:
        known: what it holds anyway.
        stats: `memory_analysis()` of the step.
        module: its text.
        is_tpu: whether a TPU's compiler made it.
    """
    given = int(stats.argument_size_in_bytes)
    tiles = max(0, given - known.total) if is_tpu else 0
    live = max(0, int(stats.peak_memory_in_bytes) - given)
    activations, gradients = _kept(module)
    return dataclasses.replace(
        known,
        padding=tiles,
        temporaries=live if is_tpu else int(stats.temp_size_in_bytes),
        activations=activations,
        gradients=gradients,
        program=int(stats.generated_code_size_in_bytes),
        allocated_temporaries=int(stats.temp_size_in_bytes),
    )


def _kept(module: Module) -> tuple[int, int]:
    """Returns the bytes that loops of the forward, and of the backward, pass collect.

    A loop collects what it hands from turn to turn and writes one slice of per turn.
    """
    forward = backward = 0
    for computation, loop, _ in module.instructions():
        if loop.opcode != "while" or not computation.is_entry:
            continue
        turns = module.turns(computation, loop)
        body = module.body(loop)
        root = body.root
        if turns is None or turns < 2 or root.opcode != "tuple":
            continue
        for array, operand in zip(loop.arrays, root.operands, strict=True):
            made = body.resolve(operand)
            writes = made is not None and _WRITES_SLICE.search(made.line)
            if writes and len(array.dims) > 1 and array.dims[0] == turns:
                if _BACKWARD in loop.op_name:
                    backward += array.size
                else:
                    forward += array.size
    return forward, backward


def largest_buffers(module: Module, count: int) -> list[Buffer]:
    """Returns the largest arrays of different shapes that a step makes."""
    largest: dict[Array, Buffer] = {}
    for computation, one, _ in module.instructions():
        if computation.name in module.fused or one.opcode in _VIEWS:
            continue
        for array in one.arrays:
            if array not in largest:
                largest[array] = Buffer(array, one.op_name)
    return sorted(largest.values(), key=lambda buffer: -buffer.array.size)[:count]


def whole_parameters(module: Module, state: TrainState) -> list[str]:
    """Returns the stacked parameters that a device makes whole, though they are split.

    Dims are compared without their order: a transposed stack is as large.
    """
    split = {}
    for path, leaf in jax.tree.leaves_with_path(state.params):
        if len(leaf.shape) > 2 and leaf.sharding.shard_shape(leaf.shape) != leaf.shape:
            split[_sorted_dims(leaf.shape)] = jax.tree_util.keystr(
                path, simple=True, separator="."
            )
    seen = {
        _sorted_dims(array.dims)
        for computation, one, _ in module.instructions()
        if computation.name not in module.fused
        for array in one.arrays
    }
    return sorted(name for dims, name in split.items() if dims in seen)


def makes_whole_logits(module: Module, widths: Collection[int], columns: int) -> bool:
    """Returns whether a device makes the logits of all its columns at once.

    Args:
        module: the program.
        widths: how many logits a column may have there: all, or the device's part.
        columns: of a device's rows of one microbatch.
    """
    for computation, one, _ in module.instructions():
        if computation.name in module.fused:
            continue
        for array in one.arrays:
            own = [size for size in array.dims if size in widths]
            if any(math.prod(array.dims) == columns * width for width in own):
                return True
    return False


def _sorted_dims(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size > 1))
