r"""How fast the mixture of denoisers is made, per core: the token stream against T5.

The other side is the procedure printed in the UL2 paper's appendix, on T5's own
preprocessors and tf.data: seven denoisers, 512/512, `select_random_chunk`,
`reduce_concat_tokens`, one shard of the documents per denoiser, `split_tokens`,
`denoise` or `prefix_lm`, the mode's pieces in front, `sample_from_datasets`, EOS. Both
sides read the same tokenized documents of C4-like lengths, T5 from memory, ours from a
token store. Each measurement ends in padded [112, 512] arrays, or in packed batches.

    python -m venv T5
    T5/bin/pip install seqio==0.0.20 babel editdistance nltk pandas rouge-score \
        sacrebleu scikit-learn
    T5/bin/pip install --no-deps t5==0.9.4
    python benchmarks/denoising.py --t5_python T5/bin/python

Every side is a process of its own, pinned to its cores and started once. They take
turns and are stopped in between, so that no buffer fills meanwhile. Rates are per
second of processor time, all threads together, so that other work on the machine
counts little.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

LENGTH = 512
BATCH_SIZE = 112
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
SIDES = {
    "T5, one core": ("t5", 1),
    "T5, both cores": ("t5", 2),
    "T5 unsharded, one core": ("t5_unsharded", 1),
    "ul2 examples": ("examples", 1),
    "ul2 packed, encoder-decoder": ("encoder_decoder", 1),
    "ul2 packed, decoder-only": ("decoder_only", 1),
}


def make_documents(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and the documents' lengths: log-normal, 470 tokens on average."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.6, 1.05, count), 20, 65_536).astype(np.int64)
    return rng.integers(3, 32_000, lengths.sum(), dtype=np.uint16), lengths


def measure_rate(batches: Iterator[int], seconds: float) -> float:
    """Returns examples per second of a core; each batch yields how many it holds."""
    begin, examples = time.process_time(), 0
    while time.process_time() - begin < seconds:
        examples += next(batches)
    return examples / (time.process_time() - begin)


def our_batches(side: str, documents: int) -> Iterator[int]:
    """Makes batches from a token store, for ever."""
    from ul2.data.loader import Source
    from ul2.data.packing import pack
    from ul2.data.stream import Stream
    from ul2.data.token_store import TokenStore
    from ul2.data.token_store_writer import TokenStoreWriter
    from ul2.denoising.mixture import named
    from ul2.vocab import MODE_CONVENTIONS, Vocab

    model = b"benchmark"
    texts = MODE_CONVENTIONS["released"]
    vocab = Vocab(
        size=32_200,
        padded_size=32_256,
        pad_id=0,
        eos_id=EOS,
        unk_id=2,
        start_id=0,
        sentinel_ids=tuple(range(32_000, 32_200)),
        mode_ids={text: MODES[mode] for mode, text in texts.items()},
        mode_convention="released",
        tokenizer_sha256=hashlib.sha256(model).hexdigest(),
    )
    tokens, lengths = make_documents(documents)
    tokens[np.cumsum(lengths) - 1] = EOS
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "store"
        with TokenStoreWriter(path, tokenizer=model, vocab=vocab) as writer:
            origins = [("documents", index) for index in range(documents)]
            writer.add("train", tokens, lengths, origins)
        split = TokenStore.open(path).split("train")
        stream = Stream(
            split=split,
            mixture=named("ul2"),
            vocab=vocab,
            inputs_length=LENGTH,
            targets_length=LENGTH,
            batch_size=BATCH_SIZE,
            seed=0,
        )
        make: Callable[[int], Any] = stream.examples
        if side != "examples":
            make = Source(stream, pack(stream, side)).__getitem__
        for batch in range(2**40):
            make(batch)
            yield BATCH_SIZE


def t5_batches(side: str, documents: int, cores: int) -> Iterator[int]:
    """Makes batches by the appendix procedure, for ever."""
    import seqio
    import tensorflow as tf
    from t5.data import preprocessors as t5

    tf.config.threading.set_inter_op_parallelism_threads(cores)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    array, lengths = make_documents(documents)
    tokens = tf.constant(array, tf.int32)
    ends = tf.constant(np.cumsum(lengths))
    starts = ends - tf.constant(lengths)
    vocabulary = seqio.PassThroughVocabulary(32_100, eos_id=EOS)
    features = {
        name: seqio.Feature(vocabulary, add_eos=True) for name in ("inputs", "targets")
    }
    sequence_length = {"inputs": LENGTH, "targets": LENGTH}

    dataset = tf.data.Dataset.range(documents).repeat()
    dataset = dataset.map(lambda i: {"targets": tokens[starts[i] : ends[i]]})
    dataset = t5.select_random_chunk(
        dataset, output_features=features, feature_key="targets", max_length=65_536
    )
    dataset = t5.reduce_concat_tokens(dataset, feature_key="targets", batch_size=128)

    def shard(index: int) -> Any:
        # The default: each denoiser reads a seventh of the documents, and all seven
        # run the steps above. `shard_ds=False` reads every document seven times.
        return dataset if side == "t5_unsharded" else dataset.shard(7, index)

    def announce(mode: str, part: Any) -> Any:
        ids = tf.constant(MODES[mode], tf.int32)
        return part.map(
            lambda x: {**x, "inputs": tf.concat([ids, x["inputs"]], 0)},
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    parts = []
    for index, (mode, mean, density) in enumerate(SPANS):
        chunk, _ = t5.random_spans_helper(
            inputs_length=LENGTH,
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
    mixed = mixed.map(lambda x: {name: x[name] for name in features})
    mixed = mixed.padded_batch(
        BATCH_SIZE, padded_shapes={name: [LENGTH] for name in features}
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    for batch in mixed.with_options(options).as_numpy_iterator():
        yield len(batch["inputs"])


def work(side: str, cores: int, documents: int, seconds: float) -> None:
    """Answers every line of the standard input with one measured rate."""
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[-cores:])
    batches = (
        t5_batches(side, documents, cores)
        if side.startswith("t5")
        else our_batches(side, documents)
    )
    measure_rate(batches, 2 * seconds)  # starting, compiling, filling buffers
    print("ready", flush=True)
    for _ in sys.stdin:
        print(measure_rate(batches, seconds), flush=True)


def start(name: str, arguments: argparse.Namespace) -> "subprocess.Popen[str]":
    """Starts one side and waits until it is warm."""
    side, cores = SIDES[name]
    python = arguments.t5_python if side.startswith("t5") else sys.executable
    options = [__file__, "--side", side, "--cores", str(cores)]
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
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{name} did not start; run: {python} {' '.join(options)}")
    process.send_signal(signal.SIGSTOP)
    return process


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
    names = [name for name in SIDES if arguments.t5_python or "T5" not in name]
    processes = {name: start(name, arguments) for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.repetitions):
        for name in names:
            rates[name].append(ask(processes[name]))
    for process in processes.values():
        finish(process)
    print("| side | examples/s per core, median (range) | of T5, one core |")
    print("|---|---|---|")
    base = rates.get("T5, one core")
    for name, found in rates.items():
        # Turn by turn, so that a slow minute counts on both sides.
        ratio = (
            f"{statistics.median(a / b for a, b in zip(found, base, strict=True)):.2f}"
            if base
            else "-"
        )
        median = statistics.median(found)
        print(
            f"| {name} | {median:,.0f} ({min(found):,.0f}-{max(found):,.0f}) ", end=""
        )
        print(f"| {ratio} |")
    versions = {
        name: importlib.metadata.version(name) for name in ("numpy", "grain", "ul2")
    }
    print(json.dumps({"python": sys.version.split()[0], **versions, "rates": rates}))


def main() -> None:
    """Parses the flags; `--side` is for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--t5_python", help="interpreter that has t5; else ours alone")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments.side, arguments.cores, arguments.documents, arguments.seconds)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
