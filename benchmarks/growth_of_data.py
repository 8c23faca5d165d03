"""Does the cost of data grow with the corpus? Stores of a megabyte to ten gigabytes.

    python benchmarks/growth_of_data.py --scratch /some/empty/folder

Each store is built by one process, piece by piece, and read by another: opening, going
to a batch anywhere (`Loader.seek` and the batch itself), making batches while blocks of
text are touched for the first time (their checksums are compared then), and making
them when all have been. Rates are per second of processor time. Memory is told apart:
anonymous pages are the process's own; resident ones count the page cache that the map
of the store shows, and can be taken back. A line is fitted to logarithms: slope 0 is
no growth, 1 is growth in proportion. Stores are deleted as soon as they are measured.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
from denoising import BATCH_SIZE, EOS, our_stream, our_vocab, sentinels_for

from ul2.data.loader import Loader, Source
from ul2.data.packing import pack
from ul2.data.token_store import Split, TokenStore
from ul2.data.token_store_writer import TokenStoreWriter

LENGTH = 512
PIECE_TOKENS = 2**24
DOCUMENT_TOKENS = 512
BLOCK_TOKENS = 2**13
SEEKS = 40
MODEL = b"benchmark"
COLUMNS = {
    "megabytes": "store, MB",
    "open_ms": "open, ms",
    "seek_ms": "seek and a batch, ms",
    "first": "examples/s, blocks new",
    "later": "examples/s, blocks known",
    "anonymous": "anonymous, MiB",
    "resident": "resident, MiB",
    "building": "anonymous while built, MiB",
    "build_mb_s": "built, MB/s",
}


def memory() -> tuple[float, float]:
    """Returns anonymous and resident MiB of this process."""
    lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return found["Anonymous"], found["Rss"]


def build(path: pathlib.Path, megabytes: int) -> dict[str, float]:
    """Writes a store of random documents of one length."""
    rng = np.random.default_rng(0)
    left, most, begin = megabytes * 500_000, 0.0, time.monotonic()
    vocab = our_vocab(MODEL, sentinels_for(LENGTH))
    tokens = rng.integers(3, 32_000, min(left, PIECE_TOKENS), dtype=np.uint16)
    with TokenStoreWriter(path, tokenizer=MODEL, vocab=vocab) as writer:
        first = 0
        while left:
            piece = np.roll(tokens, rng.integers(len(tokens)))[:left]
            lengths = np.full(-(-len(piece) // DOCUMENT_TOKENS), DOCUMENT_TOKENS)
            lengths[-1] -= lengths.sum() - len(piece)
            piece[np.cumsum(lengths) - 1] = EOS
            origins = [("random", first + index) for index in range(len(lengths))]
            writer.add("train", piece, lengths, origins)
            first, left = first + len(lengths), left - len(piece)
            most = max(most, memory()[0])
    seconds = time.monotonic() - begin
    return {"building": most, "build_mb_s": megabytes / seconds}


def rate(source: Source, first: int, seconds: float) -> float:
    """Returns examples per second of processor time, of batches from `first` on."""
    begin, batch = time.process_time(), first
    while time.process_time() - begin < seconds:
        source[batch]
        batch += 1
    return (batch - first) * BATCH_SIZE / (time.process_time() - begin)


def touch(split: Split) -> None:
    """Reads a token of every block."""
    places = np.arange(0, split.num_tokens, BLOCK_TOKENS)
    for part in np.array_split(places, -(-len(places) // 4096)):
        split.take(part, 1)


def seek_ms(source: Source, batches: Sequence[int]) -> float:
    """Returns the median time to go to a batch and have it."""
    loader, found = Loader(source), []
    position = loader.position()
    for batch in batches:
        begin = time.monotonic()
        loader.seek({**position, "batch": batch})
        next(loader)
        found.append(1000 * (time.monotonic() - begin))
    return statistics.median(found)


def measure(path: pathlib.Path, seconds: float) -> dict[str, float]:
    """Measures everything about one store."""
    begin = time.monotonic()
    store = TokenStore.open(path)
    open_ms = 1000 * (time.monotonic() - begin)
    stream = our_stream(store, LENGTH)
    source = Source(stream, pack(stream, "encoder_decoder"))
    source[0]  # dealing is planned once
    first = rate(source, 0, seconds)
    touch(store.split("train"))
    later = rate(source, 10**6, seconds)
    anonymous, resident = memory()
    anywhere = np.random.default_rng(1).integers(2**32, size=SEEKS).tolist()
    return {
        "open_ms": open_ms,
        "seek_ms": seek_ms(source, anywhere),
        "first": first,
        "later": later,
        "anonymous": anonymous,
        "resident": resident,
    }


def in_a_process(role: str, *arguments: object) -> dict[str, float]:
    """Runs one role in a process of its own."""
    command = [sys.executable, __file__, "--role", role, *map(str, arguments)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(out.stdout)
    return found


def slope(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Returns the slope of logarithms over logarithms, and its standard error."""
    x = np.log([float(size) for size in sizes])
    y = np.log([float(value) for value in values])
    fitted = np.polyfit(x, y, 1)
    residual = float(np.sum((y - np.polyval(fitted, x)) ** 2))
    spread = float(np.sum((x - x.mean()) ** 2))
    return float(fitted[0]), math.sqrt(residual / max(1, len(x) - 2) / spread)


def rounded(value: float) -> str:
    """Returns a number with three digits or more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def run(arguments: argparse.Namespace) -> None:
    """Builds, measures and deletes each store; prints the table and the fits."""
    found: list[dict[str, float]] = []
    print(f"| {' | '.join(COLUMNS.values())} |\n{'|---' * len(COLUMNS)}|")
    for megabytes in arguments.megabytes:
        path = arguments.scratch / f"store_{megabytes}"
        options = ["--path", path, "--seconds", arguments.seconds]
        try:
            built = in_a_process("build", *options, "--megabytes", megabytes)
            read = in_a_process("measure", *options)
        finally:
            shutil.rmtree(path, ignore_errors=True)
        found.append({"megabytes": megabytes, **built, **read})
        cells = [rounded(found[-1][name]) for name in COLUMNS]
        print(f"| {' | '.join(cells)} |", flush=True)
    print("\n| of | slope | standard error |\n|---|---|---|")
    sizes = [one["megabytes"] for one in found]
    for name in list(COLUMNS)[1:]:
        value, error = slope(sizes, [one[name] for one in found])
        print(f"| {COLUMNS[name]} | {value:+.3f} | {error:.3f} |")
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "grain")}
    print(json.dumps({"python": sys.version.split()[0], **versions}))


def main() -> None:
    """Parses the flags; `--role` is for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument(
        "--megabytes", type=int, nargs="+", default=[1, 10, 100, 1_000, 10_000]
    )
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "build":
        print(json.dumps(build(arguments.path, arguments.megabytes[0])))
    elif arguments.role == "measure":
        print(json.dumps(measure(arguments.path, arguments.seconds)))
    elif arguments.scratch is None:
        parser.error("--scratch is missing")
    else:
        run(arguments)


if __name__ == "__main__":
    main()
