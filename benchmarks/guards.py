r"""What it costs that every update is judged before it is made.

    python benchmarks/guards.py

The same compiled update, once of a state with a guard and once of one without; the two
take turns, and which goes first changes from turn to turn. A measurement is of some
updates as training makes them: dispatched ahead, the sums of each read once the next is
on its way. Times are processor time of the whole process, all threads together, so that
other work on the machine counts little; with `--wall`, as on an accelerator, wall time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from updates import OPTIMIZERS, make_batch, make_config, make_program, one_device

from ul2.sharding.placement import place

# Rows of so many tokens, read and predicted, and updates of a measurement.
BATCHES = {"small": (4, 128, 8), "77M": (2, 64, 2)}


class Side:
    """One of the two: a state, and the update that it goes through."""

    def __init__(self, size: str, optimizer: str, is_guarded: bool) -> None:
        rows, length, self._updates = BATCHES[size]
        config, mesh = make_config(size), one_device()
        program = make_program(config, mesh, optimizer=optimizer, is_guarded=is_guarded)
        self._step, self._state = program.step, program.init()
        batch = make_batch(rows, length, length, config.vocab_size)
        self._batch = place(batch, mesh)

    def measure(self) -> dict[str, int]:
        """Returns what the compiler says of memory and of bytes moved."""
        compiled = self._step.lower(self._state, self._batch).compile()
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
        return {
            "temporaries": memory.temp_size_in_bytes,
            "arguments": memory.argument_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "flops": int(cost["flops"]),
            "bytes": int(cost["bytes accessed"]),
        }

    def run(self, clock: Callable[[], float]) -> float:
        """Returns the seconds that an update takes."""
        start, sums = clock(), None
        for _ in range(self._updates):
            before = sums
            self._state, sums = self._step(self._state, self._batch)
            if before is not None:
                jax.device_get(before)
        jax.device_get(sums)
        jnp.asarray(self._state.step).block_until_ready()
        return (clock() - start) / self._updates


def compare(shape: str, optimizer: str, turns: int, clock: Any) -> dict[str, Any]:
    """Returns both sides' times and memory, and how they compare."""
    sides = {name: Side(shape, optimizer, name == "guarded")
             for name in ("plain", "guarded")}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.run(clock)
    for turn in range(turns):
        for name in sorted(sides, reverse=bool(turn % 2)):
            times[name].append(sides[name].run(clock))
    ratios = [b / a for a, b in zip(times["plain"], times["guarded"], strict=True)]
    return {
        "shape": shape,
        "optimizer": optimizer,
        "seconds": {name: statistics.median(all_) for name, all_ in times.items()},
        "fastest": {name: min(all_) for name, all_ in times.items()},
        "overhead": statistics.median(ratios) - 1,
        "quartiles": [q - 1 for q in statistics.quantiles(ratios, n=4)[::2]],
        "memory": {name: side.measure() for name, side in sides.items()},
    }


def main() -> None:
    """Prints one JSON object per shape and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--shape", choices=BATCHES, action="append")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, action="append")
    parser.add_argument("--wall", action="store_true")
    options = parser.parse_args()
    clock = time.perf_counter if options.wall else time.process_time
    for shape in options.shape or BATCHES:
        for optimizer in options.optimizer or OPTIMIZERS:
            result = compare(shape, optimizer, options.turns, clock)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
