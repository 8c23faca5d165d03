r"""Pre-training updates against Hugging Face's T5: time, memory, useful tokens.

    python benchmarks/training.py --case step
    python benchmarks/training.py --case mixture

Needs torch and transformers (the `peers` extra). The model has 77M parameters (d 512, 6
heads of 64, feed-forward 1024 gated SiLU, 8 + 8 layers, vocabulary 32128), float32, no
dropout, Adafactor with parameter scale; both sides on all cores.

    step      8 rows of 512 and 128 random tokens, nothing padded
    mixture   14 examples of UL2's seven denoisers at 512/512. Theirs: one example per
              row, padded, as the paper's procedure leaves it. Ours: the same, packed.
              A useful token is one that is not padding, on either side.

Each side is a process of its own. They take turns, so that whatever else the machine
does falls on both, and ratios are taken turn by turn. Peak memory is that of the whole
process, from its start (VmHWM): imports, compilation, parameters, an update.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from denoising import our_store, our_stream

VOCAB_SIZE, DENOISERS = 32128, 7
SIZES = {"d_model": 512, "num_heads": 6, "d_kv": 64, "d_ff": 1024, "num_layers": 8}
ROWS, INPUTS, TARGETS = 8, 512, 128
LENGTH, EXAMPLES = 512, 14  # of the mixture: two rounds of seven denoisers
# A turn: makes some updates, and returns seconds and useful tokens of each.
Turn = Callable[[], list[tuple[float, int]]]


def make_tokens(rows: int, length: int) -> np.ndarray:
    """Returns random tokens."""
    rng = np.random.default_rng(length)
    return rng.integers(3, 32_000, (rows, length), dtype=np.int32)


@contextlib.contextmanager
def open_stream() -> Iterator[Any]:
    """Opens UL2's mixture over random documents of C4-like lengths."""
    with our_store(5_000, VOCAB_SIZE - 32_000) as store:
        yield dataclasses.replace(our_stream(store, LENGTH), batch_size=EXAMPLES)


def fixed_batch() -> Any:
    """Returns the batch of case `step`, as we read it."""
    from ul2.batch import Batch, one_per_row

    targets = make_tokens(ROWS, TARGETS)
    shifted = np.roll(targets, 1, axis=1)
    shifted[:, 0] = 0
    return Batch(
        encoder=one_per_row(make_tokens(ROWS, INPUTS)),  # type: ignore[arg-type]
        decoder=one_per_row(shifted),  # type: ignore[arg-type]
        targets=targets,
        loss_weights=np.ones((ROWS, TARGETS), np.float32),
        denoiser_ids=np.zeros((ROWS, TARGETS), np.int32),
        prefix_lengths=np.zeros((ROWS, 1), np.int32),
    )


def packed_batches() -> Iterator[Any]:
    """Yields the mixture's examples, packed."""
    from ul2.data.loader import Source
    from ul2.data.packing import pack

    with open_stream() as stream:
        source = Source(stream, pack(stream, "encoder_decoder"))
        for number in range(2**40):
            yield source[number]


def padded_batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields one example per row, inputs and targets."""
    with open_stream() as stream:
        for number in range(2**40):
            groups = stream.examples(number)
            yield (
                np.concatenate([padded(group.inputs) for group in groups]),
                np.concatenate([padded(group.targets) for group in groups]),
            )


def padded(rows: np.ndarray) -> np.ndarray:
    """Returns rows of the full length."""
    return np.pad(rows, ((0, 0), (0, LENGTH - rows.shape[1]))).astype(np.int64)


def our_turn(case: str, remat: str) -> Turn:
    """Returns our update."""
    from updates import Training, make_config, make_program

    from ul2.sharding.mesh import make_mesh

    mesh = make_mesh("auto")
    training = Training(make_program(make_config("77M", remat=remat), mesh), mesh)
    batches = packed_batches() if case == "mixture" else None

    def update() -> tuple[float, int]:
        batch = next(batches) if batches else fixed_batch()
        useful = sum(int((side.segment_ids > 0).sum()) for side in batch[:2])
        start = time.perf_counter()
        training.update(batch)
        return time.perf_counter() - start, useful

    return lambda: [update() for _ in range(2)]


def their_turn(case: str) -> Turn:
    """Returns the update of transformers' model."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    config = transformers.T5Config(
        **SIZES, vocab_size=VOCAB_SIZE, feed_forward_proj="gated-silu",
        dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).train()
    optimizer = transformers.Adafactor(
        model.parameters(), lr=1e-3, scale_parameter=True, relative_step=False,
        warmup_init=False,
    )  # fmt: skip
    batches = padded_batches() if case == "mixture" else None
    fixed = make_tokens(ROWS, INPUTS), make_tokens(ROWS, TARGETS)

    def update() -> tuple[float, int]:
        inputs, targets = (
            torch.tensor(side).long() for side in (next(batches) if batches else fixed)
        )
        useful = int((inputs > 0).sum() + (targets > 0).sum())
        start = time.perf_counter()
        loss = model(
            input_ids=inputs,
            attention_mask=(inputs > 0).long(),
            labels=targets.masked_fill(targets == 0, -100),
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start, useful

    return lambda: [update() for _ in range(2)]


def peak_memory() -> int:
    """Returns the most bytes that this process has had in memory."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def work(side: str, case: str, remat: str) -> None:
    """Answers every line of the standard input with the updates of one turn."""
    turn = our_turn(case, remat) if side == "ul2" else their_turn(case)
    turn()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps({"updates": turn(), "peak": peak_memory()}), flush=True)


def start(side: str, arguments: argparse.Namespace) -> "subprocess.Popen[str]":
    """Starts one side and waits until it has made an update."""
    options = [__file__, "--side", side, "--case", arguments.case]
    process = subprocess.Popen(
        [sys.executable, *options, "--remat", arguments.remat],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{side} did not start.")
    return process


def ask(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Lets one side take its turn."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def compare(arguments: argparse.Namespace) -> None:
    """Lets both sides take turns and prints a table and what it is made of."""
    sides = ("transformers", "ul2")
    processes = {side: start(side, arguments) for side in sides}
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side in sides:
            turns[side].append(ask(processes[side]))
    for process in processes.values():
        process.communicate()

    def median(side: str, number: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(number, turns[side]))

    def seconds(turn: dict[str, Any]) -> float:
        return sum(time for time, _ in turn["updates"]) / len(turn["updates"])

    def rate(turn: dict[str, Any]) -> float:
        return sum(n for _, n in turn["updates"]) / sum(t for t, _ in turn["updates"])

    print("| side | s/update | useful tokens/s | speed | peak memory, GB | of theirs |")
    print("|---|---|---|---|---|---|")
    base = turns["transformers"]
    for side in sides:
        peak = turns[side][-1]["peak"]
        speed = statistics.median(
            rate(own) / rate(other)
            for own, other in zip(turns[side], base, strict=True)
        )
        print(
            f"| {side} | {median(side, seconds):.2f} | {median(side, rate):,.0f} | "
            f"{speed:.2f} | {peak / 1e9:.2f} | {peak / base[-1]['peak']:.2f} |"
        )
    packages = ("jax", "torch", "transformers")
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({"case": arguments.case, **versions, "turns": turns}))


def main() -> None:
    """Parses the flags; `--side` is for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=("step", "mixture"), default="step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--remat", default="dots", help="REMAT of ours")
    parser.add_argument("--side", choices=("ul2", "transformers"))
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments.side, arguments.case, arguments.remat)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
