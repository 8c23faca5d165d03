r"""How fast text becomes a token store, against SentencePiece's own encoder.

    python benchmarks/tokenizing.py                 # trains a vocabulary on the spot
    python benchmarks/tokenizing.py --vocab T5.model

The text is the documentation inside Python, repeated to a .jsonl file. The other side
is `SentencePieceProcessor.encode` on the same texts in memory, one process per core,
all at once; nothing is read, gathered or written there. Ours is what `ul2 tokenize
--text` calls: reading, splitting, encoding in one process per core, gathering in
order, checksums and writing. Both take turns. Ours reads a short file and a long one:
the difference is its lasting rate, what is left over is its start.
"""

import argparse
import concurrent.futures
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import sentencepiece

from ul2.tasks.embedded_corpus import read_embedded_corpus
from ul2.tasks.sources import TextSource
from ul2.tasks.tokenization import tokenize_corpus
from ul2.tasks.tokenizer import Tokenizer, open_tokenizer, train_tokenizer

# Characters that the peer encodes in one call: as many as ours.
CALL_CHARACTERS = 2**19
SENTINELS = 200


class Turn(NamedTuple):
    """One measurement of both sides: megabytes of UTF-8 per second, all cores."""

    peer: float
    whole: float
    lasting: float
    start: float  # seconds


def texts_of(megabytes: float) -> list[str]:
    """Returns documents of about so many megabytes."""
    texts: list[str] = []
    size = 0
    for passage in itertools.cycle(read_embedded_corpus()):
        texts.append(passage.text)
        size += len(passage.text.encode())
        if size >= megabytes * 1e6:
            return texts
    raise AssertionError("unreachable")


def calls(texts: list[str]) -> Iterator[list[str]]:
    """Cuts the texts into lists for one call each."""
    call: list[str] = []
    size = 0
    for text in texts:
        call.append(text)
        size += len(text)
        if size >= CALL_CHARACTERS:
            yield call
            call, size = [], 0
    yield call


def encode_alone(model: bytes, part: int, parts: int, megabytes: float) -> float:
    """Encodes a part of the texts; returns megabytes per second of this process."""
    encoder = sentencepiece.SentencePieceProcessor(model_proto=model)
    mine = list(calls(texts_of(megabytes)))[part::parts]
    size = sum(len(text.encode()) for call in mine for text in call)
    begin = time.monotonic()
    for call in mine:
        encoder.encode(call, num_threads=1)
    return size / 1e6 / (time.monotonic() - begin)


def peer_rate(model: bytes, cores: int, megabytes: float) -> float:
    """Returns the summed rates of one process per core."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(cores, context) as pool:
        # So that all are there when the clock starts.
        list(pool.map(time.sleep, [0.5] * cores))
        waiting = [
            pool.submit(encode_alone, model, part, cores, megabytes)
            for part in range(cores)
        ]
        return sum(future.result() for future in waiting)


def our_seconds(file: pathlib.Path, tokenizer: Tokenizer) -> tuple[float, float]:
    """Returns megabytes of text in a file, and how long it took."""
    with tempfile.TemporaryDirectory(dir=file.parent) as directory:
        source, out = TextSource(files=str(file)), pathlib.Path(directory) / "store"
        summary = tokenize_corpus(source, out, tokenizer, progress=False)
    return summary.text_bytes / 1e6, summary.seconds


def take_turn(
    short: pathlib.Path, long: pathlib.Path, tokenizer: Tokenizer, megabytes: float
) -> Turn:
    """Measures both sides once."""
    cores = len(os.sched_getaffinity(0))
    peer = peer_rate(tokenizer.model, cores, megabytes)
    short_size, short_seconds = our_seconds(short, tokenizer)
    long_size, long_seconds = our_seconds(long, tokenizer)
    lasting = (long_size - short_size) / (long_seconds - short_seconds)
    start = short_seconds - short_size / lasting
    return Turn(peer, long_size / long_seconds, lasting, start)


def write(file: pathlib.Path, texts: list[str]) -> None:
    """Writes a .jsonl file."""
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def report(turns: list[Turn]) -> None:
    """Prints the table."""
    print(
        "| side | MB/s, all cores, median (range) | of SentencePiece |\n|---|---|---|"
    )
    rows = {
        "SentencePiece alone": [turn.peer for turn in turns],
        "ul2 tokenize, lasting": [turn.lasting for turn in turns],
        "ul2 tokenize, start included": [turn.whole for turn in turns],
    }
    for name, found in rows.items():
        ratio = statistics.median(
            rate / turn.peer for rate, turn in zip(found, turns, strict=True)
        )
        range_text = f"{min(found):.2f}-{max(found):.2f}"
        print(
            f"| {name} | {statistics.median(found):.2f} ({range_text}) | {ratio:.1%} |"
        )
    print(f"start: {statistics.median(turn.start for turn in turns):.1f} s")
    names = ("sentencepiece", "numpy", "ul2")
    versions = {name: importlib.metadata.version(name) for name in names}
    print(json.dumps({"python": sys.version.split()[0], **versions, "turns": turns}))


def main() -> None:
    """Parses the flags, makes vocabulary and files, takes turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", help="a SentencePiece model; else one is trained")
    parser.add_argument("--vocab_size", type=int, default=16_000)
    parser.add_argument("--megabytes", type=float, default=60.0)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = pathlib.Path(directory)
        if arguments.vocab:
            tokenizer = open_tokenizer(arguments.vocab, extra_sentinels=SENTINELS)
        else:
            model = scratch / "tokenizer.model"
            train_tokenizer(texts_of(2.0), arguments.vocab_size, SENTINELS, model)
            tokenizer = open_tokenizer(model)
        short, long = scratch / "short.jsonl", scratch / "long.jsonl"
        write(short, texts_of(arguments.megabytes / 5))
        write(long, texts_of(arguments.megabytes))
        report(
            [
                take_turn(short, long, tokenizer, arguments.megabytes)
                for _ in range(arguments.repetitions)
            ]
        )


if __name__ == "__main__":
    main()
