"""What a host delivers: packed batches against a device that reads a million tokens/s.

    python benchmarks/delivering.py --length 512

A loader with its usual prefetch reads a token store. First batches are taken as fast as
they come. Then the consumer is a device: it is busy for as long as the filled
positions of a batch take at `--rate`, and asks for the next. What it then waits is
printed, beside what handing over a finished batch costs at the least.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np
from denoising import our_store, our_stream, sentinels_for

from ul2.batch import Batch, padding_fraction
from ul2.data.loader import Loader, Source
from ul2.data.packing import ARCHITECTURES, pack


def tokens_of(batch: Batch) -> float:
    """Returns the filled positions of a batch, both sides."""
    sides = [side for side in (batch.encoder, batch.decoder) if side is not None]
    positions = sum(int(np.size(side.segment_ids)) for side in sides)
    return positions * (1 - padding_fraction(batch))


def free_rate(loader: Loader, tokens: float, seconds: float) -> float:
    """Returns tokens per second of a consumer that does nothing."""
    begin, batches = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        next(loader)
        batches += 1
    return batches * tokens / (time.monotonic() - begin)


def waits(loader: Loader, busy: float, seconds: float) -> list[float]:
    """Returns how long a consumer waited for each batch, busy in between."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(busy)
        begin = time.monotonic()
        next(loader)
        found.append(time.monotonic() - begin)
    return found


def measure(store: Any, architecture: str, arguments: argparse.Namespace) -> list[str]:
    """Returns the cells of one architecture."""
    stream = our_stream(store, arguments.length)
    source = Source(stream, pack(stream, architecture))
    tokens = statistics.mean(tokens_of(source[batch]) for batch in range(20))
    loader = Loader(source)
    next(loader)
    rate = free_rate(loader, tokens, arguments.seconds)
    busy = tokens / arguments.rate
    time.sleep(busy)
    begin, cpu = time.monotonic(), time.process_time()
    found = waits(loader, busy, arguments.seconds)
    wall, cpu = time.monotonic() - begin, time.process_time() - cpu
    milliseconds = 1000 * np.array(found)
    return [
        architecture,
        f"{rate / 1e6:.2f}",
        f"{len(found)}",
        f"{1000 * busy:.0f}",
        f"{np.median(milliseconds):.2f}",
        f"{np.percentile(milliseconds, 99):.2f}",
        f"{milliseconds.max():.2f}",
        f"{sum(found) / wall:.3%}",
        f"{cpu / wall:.2f}",
    ]


def main() -> None:
    """Prints the table of one length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument(
        "--rate", type=float, default=1e6, help="tokens/s of the device"
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--cores", type=int, default=1)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.cores :])
    names = [
        "architecture",
        "M tokens/s, as fast as they come",
        "batches",
        "busy, ms",
        "median wait, ms",
        "99 %, ms",
        "longest, ms",
        "share waited",
        "cores used",
    ]
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    with our_store(arguments.documents, sentinels_for(arguments.length)) as store:
        for architecture in ARCHITECTURES:
            cells = measure(store, architecture, arguments)
            print(f"| {' | '.join(cells)} |", flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "grain")}
    print(json.dumps({"python": sys.version.split()[0], **versions}))


if __name__ == "__main__":
    main()
