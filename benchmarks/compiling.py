r"""How the time to compile a whole update grows with the number of layers.

    python benchmarks/compiling.py

Each measurement is a process of its own, without jax's persistent cache: it traces and
lowers the update that `ul2 train` makes (guard, optimizer, donated state), and compiles
it. Sizes take turns. Times are processor time of the process, all threads together, so
that other work on the machine counts little; wall time stands beside it. Nothing is
allocated: the model and the batch are shapes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from updates import make_batch, make_config, make_program, one_device

from ul2.batch import Batch
from ul2.models.architectures import ARCHITECTURES

LAYERS = (4, 8, 16, 32, 48)
ROWS, LENGTH = 2, 64


class Seconds(NamedTuple):
    """What a part of the work took."""

    processor: float
    wall: float


def lower(architecture: str, layers: int, remat: str) -> jax.stages.Lowered:
    """Returns the update of a model with so many layers (on each side), lowered."""
    is_both = architecture == "encoder_decoder"
    config = make_config(
        "77M", remat=remat,
        num_encoder_layers=layers if is_both else 0, num_decoder_layers=layers,
    )  # fmt: skip
    program = make_program(config, one_device(), architecture=architecture)
    batch = make_batch(ROWS, LENGTH if is_both else 0, LENGTH, config.vocab_size)
    shapes: Batch = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(np.shape(array), array.dtype), batch
    )
    return program.step.lower(program.abstract, shapes)


def _timed(work: Callable[[], Any]) -> tuple[Any, Seconds]:
    processor, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, Seconds(time.process_time() - processor, time.perf_counter() - wall)


def measure(architecture: str, layers: int, remat: str) -> dict[str, Any]:
    """Returns the times of one compilation, and how long the program is."""
    # What any first program pays: backends, and modules imported late.
    lower(architecture, 1, remat)
    jax.clear_caches()
    lowered, lowering = _timed(lambda: lower(architecture, layers, remat))
    compiled, compiling = _timed(lowered.compile)
    return {
        "lower": lowering,
        "compile": compiling,
        "lines": len(lowered.as_text().splitlines()),
        "instructions": compiled.as_text().count(" = "),
    }


def measure_apart(architecture: str, layers: int, remat: str) -> dict[str, Any]:
    """Returns the same, measured in a process of its own."""
    words = ["--one", architecture, str(layers), "--remat", remat]
    result = subprocess.run(
        [sys.executable, __file__, *words],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    fields: dict[str, Any] = json.loads(result.stdout)
    return fields


def rows_of(measured: dict[int, list[dict[str, Any]]]) -> Iterator[list[float]]:
    """Yields a row per number of layers: medians, ratios to the first, the program."""
    first = 0.0
    for layers, all_ in measured.items():
        lowering, compiling, wall = (
            statistics.median(values)
            for values in (
                [one["lower"][0] for one in all_],
                [one["compile"][0] for one in all_],
                [one["lower"][1] + one["compile"][1] for one in all_],
            )
        )
        total = statistics.median(one["lower"][0] + one["compile"][0] for one in all_)
        first = first or total
        yield [
            layers, lowering, compiling, total, wall, total / first,
            all_[-1]["lines"], all_[-1]["instructions"],
        ]  # fmt: skip


def slope(rows: list[list[float]]) -> tuple[float, float]:
    """Returns the least squares line through the totals: per layer, and at none."""
    per_layer, at_none = np.polyfit(
        [row[0] for row in rows], [row[3] for row in rows], 1
    )
    return float(per_layer), float(at_none)


def main() -> None:
    """Prints a table for an architecture, and the line through it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("ARCHITECTURE", "LAYERS"))
    parser.add_argument("--architecture", choices=ARCHITECTURES, action="append")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    if options.one:
        architecture, layers = options.one
        print(json.dumps(measure(architecture, int(layers), options.remat)))
        return
    for architecture in options.architecture or ARCHITECTURES:
        measured: dict[int, list[dict[str, Any]]] = {layers: [] for layers in LAYERS}
        for turn in range(options.turns):
            for layers in sorted(LAYERS, reverse=bool(turn % 2)):
                one = measure_apart(architecture, layers, options.remat)
                measured[layers].append(one)
        rows = list(rows_of(measured))
        print(f"{architecture}, remat {options.remat}")
        print("| layers | trace and lower | compile | both | wall | growth | lines |"
              " instructions |")  # fmt: skip
        print("|---" * 8 + "|")
        for layers, *seconds, growth, lines, instructions in rows:
            words = [f"{layers}", *(f"{one:.2f}" for one in seconds)]
            words += [f"{growth:.2f}", f"{lines}", f"{instructions}"]
            print("| " + " | ".join(words) + " |")
        print("{:.4f} s a layer, {:.2f} s without".format(*slope(rows)), flush=True)


if __name__ == "__main__":
    main()
