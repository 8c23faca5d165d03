r"""What an update costs at 512, 1024, 2048 and 4096 tokens a row.

    python benchmarks/length.py

The 77M model; every batch has 4,096 tokens to read and a quarter as many to predict
(decoder-only: 4,096 of both), in as many rows as it takes. What does not depend on the
length of a row, all but attention, costs the same in each; attention grows with the
length. So seconds are fitted as a + b * length, and `b * length / a` is what attention
adds. Lengths take turns.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import numpy as np
from updates import Training, make_batch, make_config, make_program, one_device

from ul2.batch import Batch

LENGTHS = (512, 1024, 2048, 4096)
TOKENS = 4096


def batch_of(architecture: str, length: int, vocab_size: int) -> Batch:
    """Returns `TOKENS` tokens in rows of a length."""
    rows = TOKENS // length
    if architecture == "decoder_only":
        return make_batch(rows, 0, length, vocab_size)
    return make_batch(rows, length, length // 4, vocab_size)


def measure(architecture: str, remat: str, turns: int) -> dict[str, Any]:
    """Returns medians and the line through them."""
    layers = {} if architecture == "encoder_decoder" else {"num_encoder_layers": 0}
    config, mesh = make_config("77M", remat=remat, **layers), one_device()
    program = make_program(config, mesh, architecture=architecture)
    training = Training(program, mesh)
    batches = {length: batch_of(architecture, length, config.vocab_size)
               for length in LENGTHS}  # fmt: skip
    memory = {}
    for length, batch in batches.items():
        shapes = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(np.shape(array), array.dtype), batch
        )
        compiled = program.step.lower(program.abstract, shapes).compile()
        memory[length] = compiled.memory_analysis().temp_size_in_bytes
        training.update(batch)
    times: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for turn in range(turns):
        for length in sorted(LENGTHS, reverse=bool(turn % 2)):
            start = time.perf_counter()
            training.update(batches[length])
            times[length].append(time.perf_counter() - start)
    seconds = {length: statistics.median(all_) for length, all_ in times.items()}
    slope, fixed = np.polyfit(list(seconds), list(seconds.values()), 1)
    return {
        "architecture": architecture,
        "remat": remat,
        "seconds": seconds,
        "ratio to 512": {length: one / seconds[512] for length, one in seconds.items()},
        "temporary gigabytes": {length: size / 1e9 for length, size in memory.items()},
        "seconds per 1000 tokens of length": 1000 * slope,
        "seconds at length 0": fixed,
        "times": times,
    }


def main() -> None:
    """Prints one JSON object per architecture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", action="append")
    parser.add_argument("--remat", default="dots")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    for architecture in options.architecture or ("encoder_decoder", "decoder_only"):
        result = measure(architecture, options.remat, options.turns)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
