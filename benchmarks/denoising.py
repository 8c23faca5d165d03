r"""How fast the mixture of denoisers is made, per core: the token stream against T5.

The other side is the procedure printed in the UL2 paper's appendix, on T5's own
preprocessors and tf.data: seven denoisers, L/L, `select_random_chunk`,
`reduce_concat_tokens`, one shard of the documents per denoiser, `split_tokens`,
`denoise` or `prefix_lm`, the mode's pieces in front, `sample_from_datasets`, EOS. Both
sides read the same tokenized documents of C4-like lengths, T5 from memory, ours from a
token store. Each measurement ends in padded [112, L] arrays, or in packed batches;
T5's are packed by seqio's feature converters, into rows of L and L, or of 2L for a
decoder alone, or of `WIDE` times as much. All positions that hold a token are counted.

    python -m venv T5
    T5/bin/pip install seqio==0.0.20 babel editdistance nltk pandas rouge-score \
        sacrebleu scikit-learn
    T5/bin/pip install --no-deps t5==0.9.4
    python benchmarks/denoising.py --t5_python T5/bin/python --length 512

Every side is a process of its own, pinned to its cores and started once. They take
turns and are stopped in between, so that no buffer fills meanwhile. Rates are per
second of processor time, all threads together, so that other work on the machine
counts little.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

BATCH_SIZE = 112
# Rows of T5's packing that examples fit into at all are this many times as wide.
WIDE = 4
# Examples whose filled positions are counted, at the least.
LOOKED_AT = 2048
EOS = 1
# The released model's modes as T5's vocabulary writes them.
MODES = {"R": (784, 567, 9138, 908), "S": (784, 134, 357, 134, 908)}
MODES["X"] = (784, 18207, 517, 908)
# (mode, mean span length, noise density); the paper's table, S apart.
SPANS = [
    ("R", 3, 0.15),
    ("R", 8, 0.15),
    ("X", 3, 0.5),
    ("X", 8, 0.5),
    ("X", 64, 0.15),
    ("X", 64, 0.5),
]


class Side(NamedTuple):
    """One of those that take turns."""

    kind: str
    cores: int
    peer: str  # the side that it is compared with


PADDED = "T5, one core"
PACKED = "T5 packed, {}"
SIDES = {
    PADDED: Side("t5", 1, PADDED),
    "T5, both cores": Side("t5", 2, PADDED),
    "T5 unsharded, one core": Side("t5_unsharded", 1, PADDED),
    "ul2 examples": Side("examples", 1, PADDED),
}
for _architecture in ("encoder-decoder", "decoder-only"):
    _kind, _peer = _architecture.replace("-", "_"), PACKED.format(_architecture)
    SIDES |= {
        _peer: Side(f"t5_{_kind}", 1, _peer),
        f"{_peer}, wide rows": Side(f"t5_wide_{_kind}", 1, _peer),
        f"ul2 packed, {_architecture}": Side(_kind, 1, _peer),
    }


class Made(NamedTuple):
    """A batch."""

    examples: int
    rows: tuple[Any, ...]  # arrays of ids, or of segments: 0 on padding


class Seen(NamedTuple):
    """What was in the batches of the warm-up."""

    examples: int
    positions: int
    filled: int


def make_documents(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and the documents' lengths: log-normal, 470 tokens on average."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.6, 1.05, count), 20, 65_536).astype(np.int64)
    return rng.integers(3, 32_000, lengths.sum(), dtype=np.uint16), lengths


def burst(kind: str, length: int) -> int:
    """Returns how many examples a side makes before any comes out.

    `trim_and_pack_dataset` packs as many at a time as its longest row has columns.
    """
    if not kind.startswith("t5") or kind in ("t5", "t5_unsharded"):
        return 0
    wide = WIDE if "wide" in kind else 1
    return length * wide * (2 if kind.endswith("decoder_only") else 1)


def measure_rate(batches: Iterator[Made], seconds: float, least: int) -> float:
    """Returns examples per second of a core, of `least` examples or more."""
    begin, examples = time.process_time(), 0
    while time.process_time() - begin < seconds or examples < least:
        examples += next(batches).examples
    return examples / (time.process_time() - begin)


def look(batches: Iterator[Made], seconds: float, least: int) -> Seen:
    """Counts the filled positions of some batches."""
    begin, seen = time.process_time(), Seen(0, 0, 0)
    while time.process_time() - begin < seconds or seen.examples < least:
        made = next(batches)
        seen = Seen(
            seen.examples + made.examples,
            seen.positions + sum(rows.size for rows in made.rows),
            seen.filled + sum(int(np.count_nonzero(rows)) for rows in made.rows),
        )
    return seen


def our_vocab(model: bytes, sentinels: int) -> Any:
    """Returns the contract of a vocabulary of 32,000 ids and the sentinels."""
    from ul2.vocab import MODE_CONVENTIONS, Vocab

    texts = MODE_CONVENTIONS["released"]
    return Vocab(
        size=32_000 + sentinels,
        padded_size=-(-(32_000 + sentinels) // 256) * 256,
        pad_id=0,
        eos_id=EOS,
        unk_id=2,
        start_id=0,
        sentinel_ids=tuple(range(32_000, 32_000 + sentinels)),
        mode_ids={text: MODES[mode] for mode, text in texts.items()},
        mode_convention="released",
        tokenizer_sha256=hashlib.sha256(model).hexdigest(),
    )


@contextlib.contextmanager
def our_store(documents: int, sentinels: int) -> Iterator[Any]:
    """Yields an opened token store of the documents."""
    from ul2.data.token_store import TokenStore
    from ul2.data.token_store_writer import TokenStoreWriter

    model = b"benchmark"
    vocab = our_vocab(model, sentinels)
    tokens, lengths = make_documents(documents)
    tokens[np.cumsum(lengths) - 1] = EOS
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "store"
        with TokenStoreWriter(path, tokenizer=model, vocab=vocab) as writer:
            origins = [("documents", index) for index in range(documents)]
            writer.add("train", tokens, lengths, origins)
        yield TokenStore.open(path)


def our_stream(store: Any, length: int) -> Any:
    """Returns the seven denoisers over a store."""
    from ul2.data.stream import Stream
    from ul2.denoising.mixture import named

    return Stream(
        split=store.split("train"),
        mixture=named("ul2"),
        vocab=store.vocab,
        inputs_length=length,
        targets_length=length,
        batch_size=BATCH_SIZE,
        seed=0,
    )


def sentinels_for(length: int) -> int:
    """Returns enough of them: spans of three tokens in half of the text."""
    return max(200, 2 * length // 5)


def our_batches(kind: str, documents: int, length: int) -> Iterator[Made]:
    """Makes batches from a token store, for ever."""
    from ul2.data.loader import Source
    from ul2.data.packing import pack

    with our_store(documents, sentinels_for(length)) as store:
        stream = our_stream(store, length)
        if kind == "examples":
            for batch in range(2**40):
                made = stream.examples(batch)
                yield Made(BATCH_SIZE, tuple(one.targets for one in made))
        source = Source(stream, pack(stream, kind))
        for batch in range(2**40):
            row = source[batch]
            sides = [side for side in (row.encoder, row.decoder) if side is not None]
            yield Made(BATCH_SIZE, tuple(side.segment_ids for side in sides))


def t5_batches(kind: str, documents: int, cores: int, length: int) -> Iterator[Made]:
    """Makes batches by the appendix procedure, for ever."""
    import seqio
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(cores)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    mixed = t5_examples(kind, documents, length)
    names = ["inputs", "targets"]
    if kind in ("t5", "t5_unsharded"):
        shapes = {name: [length] for name in names}
        mixed = mixed.padded_batch(BATCH_SIZE, padded_shapes=shapes)
    else:
        wide = length * WIDE if "wide" in kind else length
        converter = seqio.PrefixLMFeatureConverter(pack=True)
        names = ["decoder_segment_ids"]
        if kind.endswith("encoder_decoder"):
            converter = seqio.EncDecFeatureConverter(pack=True)
            names = ["encoder_segment_ids", "decoder_segment_ids"]
        mixed = converter(mixed, {"inputs": wide, "targets": wide})
        mixed = mixed.batch(BATCH_SIZE * length // wide, drop_remainder=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    for batch in mixed.with_options(options).as_numpy_iterator():
        rows = tuple(batch[name] for name in names)
        packed = len(names) == 1 or names[0] != "inputs"
        examples = int(rows[-1].max(axis=1).sum()) if packed else len(rows[0])
        yield Made(examples, rows)


def t5_examples(kind: str, documents: int, length: int) -> Any:
    """Returns the appendix procedure's examples, for ever."""
    import seqio
    import tensorflow as tf
    from t5.data import preprocessors as t5

    array, lengths = make_documents(documents)
    tokens = tf.constant(array, tf.int32)
    ends = tf.constant(np.cumsum(lengths))
    starts = ends - tf.constant(lengths)
    vocabulary = seqio.PassThroughVocabulary(32_100, eos_id=EOS)
    features = {
        name: seqio.Feature(vocabulary, add_eos=True) for name in ("inputs", "targets")
    }
    sequence_length = {"inputs": length, "targets": length}

    dataset = tf.data.Dataset.range(documents).repeat()
    dataset = dataset.map(lambda i: {"targets": tokens[starts[i] : ends[i]]})
    dataset = t5.select_random_chunk(
        dataset, output_features=features, feature_key="targets", max_length=65_536
    )
    dataset = t5.reduce_concat_tokens(dataset, feature_key="targets", batch_size=128)

    def shard(index: int) -> Any:
        # The default: each denoiser reads a seventh of the documents, and all seven
        # run the steps above. `shard_ds=False` reads every document seven times.
        return dataset if kind == "t5_unsharded" else dataset.shard(7, index)

    def announce(mode: str, part: Any) -> Any:
        ids = tf.constant(MODES[mode], tf.int32)
        return part.map(
            lambda x: {**x, "inputs": tf.concat([ids, x["inputs"]], 0)},
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    parts = []
    for index, (mode, mean, density) in enumerate(SPANS):
        chunk, _ = t5.random_spans_helper(
            inputs_length=length,
            noise_density=density,
            mean_noise_span_length=mean,
            extra_tokens_per_span_inputs=1,
            extra_tokens_per_span_targets=1,
        )
        part = t5.split_tokens(
            shard(index), feature_key="targets", max_tokens_per_segment=chunk
        )
        part = t5.denoise(
            part,
            features,
            inputs_fn=t5.noise_span_to_unique_sentinel,
            targets_fn=t5.nonnoise_span_to_unique_sentinel,
            noise_density=density,
            noise_mask_fn=functools.partial(
                t5.random_spans_noise_mask, mean_noise_span_length=mean
            ),
        )
        parts.append(announce(mode, part))
    suffix = t5.prefix_lm(shard(6), sequence_length, features, noise_density=0.25)
    parts.append(announce("S", suffix))
    mixed = tf.data.Dataset.sample_from_datasets(parts, [1 / 7] * 7, seed=7)
    mixed = seqio.preprocessors.append_eos_after_trim(
        mixed, sequence_length=sequence_length, output_features=features
    )
    return mixed.map(lambda x: {name: x[name] for name in features})


def work(side: Side, arguments: argparse.Namespace) -> None:
    """Answers every line of the standard input with one measured rate."""
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[-side.cores :])
    kind, documents, length = side.kind, arguments.documents, arguments.length
    batches = (
        t5_batches(kind, documents, side.cores, length)
        if kind.startswith("t5")
        else our_batches(kind, documents, length)
    )
    # While starting, compiling, filling buffers.
    least = burst(kind, length)
    enough = max(least, LOOKED_AT)
    print(json.dumps(look(batches, 2 * arguments.seconds, enough)), flush=True)
    for _ in sys.stdin:
        print(measure_rate(batches, arguments.seconds, least), flush=True)


def start(
    name: str, arguments: argparse.Namespace
) -> tuple["subprocess.Popen[str]", Seen]:
    """Starts one side and waits until it is warm."""
    t5 = SIDES[name].kind.startswith("t5")
    python = arguments.t5_python if t5 else sys.executable
    options = [__file__, "--side", name, "--length", str(arguments.length)]
    options += ["--documents", str(arguments.documents)]
    options += ["--seconds", str(arguments.seconds)]
    process = subprocess.Popen(
        [python, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    if not ready:
        raise SystemExit(f"{name} did not start; run: {python} {' '.join(options)}")
    process.send_signal(signal.SIGSTOP)
    return process, Seen(*json.loads(ready))


def ask(process: "subprocess.Popen[str]") -> float:
    """Returns the rate of one turn."""
    assert process.stdin is not None and process.stdout is not None
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    rate = float(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    return rate


def finish(process: "subprocess.Popen[str]") -> None:
    """Lets a side end and clear up."""
    assert process.stdin is not None
    process.send_signal(signal.SIGCONT)
    process.stdin.close()
    process.wait()


def compare(arguments: argparse.Namespace) -> None:
    """Lets the sides take turns and prints a table and the raw rates."""
    names = [
        name
        for name in SIDES
        if (arguments.t5_python or "T5" not in name)
        and re.search(arguments.sides, name)
    ]
    started = {name: start(name, arguments) for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.repetitions):
        for name in names:
            rates[name].append(ask(started[name][0]))
    for process, _ in started.values():
        finish(process)
    print(
        "| side | examples/s per core, median (range) | of its peer | filled positions "
        "| tokens an example |\n|---|---|---|---|---|"
    )
    for name in names:
        print_line(name, rates, started[name][1])
    versions = {
        name: importlib.metadata.version(name) for name in ("numpy", "grain", "ul2")
    }
    print(json.dumps({"python": sys.version.split()[0], **versions, "rates": rates}))


def print_line(name: str, rates: dict[str, list[float]], seen: Seen) -> None:
    """Prints the line of one side."""
    found, peer = rates[name], rates.get(SIDES[name].peer)
    ratio = "-"
    if peer:
        # Turn by turn, so that a slow minute counts on both sides.
        each = [a / b for a, b in zip(found, peer, strict=True)]
        ratio = f"{statistics.median(each):.2f}"
    range_text = f"{min(found):,.0f}-{max(found):,.0f}"
    filled, tokens = "-", "-"
    if SIDES[name].kind != "examples":
        filled = f"{seen.filled / seen.positions:.2%}"
        tokens = f"{seen.filled / seen.examples:,.0f}"
    print(
        f"| {name} | {statistics.median(found):,.0f} ({range_text}) | {ratio} "
        f"| {filled} | {tokens} |"
    )


def main() -> None:
    """Parses the flags; `--side` is for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--t5_python", help="interpreter that has t5; else ours alone")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=512, help="of both sides")
    parser.add_argument("--sides", default="", help="a regular expression")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        work(SIDES[arguments.side], arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
