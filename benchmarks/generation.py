"""Batch inference against `transformers` generate: the same weights, tokens, machine.

    python benchmarks/generation.py [--rounds 5] [--prompts 16] [--tokens 64]
    python benchmarks/generation.py --prompts 128 --fewest 4
    python benchmarks/generation.py --prompts 128 --fewest 4 --shortest 16 --longest 512
    python benchmarks/generation.py --streams

Needs torch and transformers (the `peers` extra). A T5 v1.1 of 77M parameters (d 512, 6
heads of 64, feed-forward 1024 gated SiLU, 8 + 8 layers, vocabulary 32128), random
weights, float32; batches of 16; prompts of 256 tokens, or of lengths that differ (log
uniform), as in a file. Neither side may write EOS, so the lengths of the outputs are
ours to choose: all alike, or log uniform from `--fewest` to `--tokens`, by a stopping
criterion of theirs and `max_tokens` of ours. transformers takes the prompts as they
come, pads each batch to its longest and goes on until its last output ends; we do with
the prompts what we do. Both sides take turns, so that whatever else the machine does
falls on both; ratios of medians are what counts. The outputs are compared first.

With `--streams` nothing is compared with theirs: one prompt is answered token by token,
as a person at `ul2 infer --interactive` sees it, and at once.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers

from ul2 import interop
from ul2.decoding.generate import Generator
from ul2.decoding.settings import DecodingSettings

SIZES = {
    "d_model": 512,
    "num_heads": 6,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "vocab_size": 32128,
}
BATCH = 16


def make_peer() -> transformers.T5ForConditionalGeneration:
    """Returns their model, with random weights."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        **SIZES,
        feed_forward_proj="gated-silu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def make_lengths(number: int, shortest: int, longest: int, seed: int) -> list[int]:
    """Returns lengths whose logarithms are uniform."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(np.log(shortest), np.log(longest), number)
    return np.round(np.exp(spread)).astype(int).tolist()


def make_prompts(lengths: list[int]) -> list[list[int]]:
    """Returns random prompts."""
    rng = np.random.default_rng(0)
    return [[*rng.integers(3, 32000, length - 1).tolist(), 1] for length in lengths]


class Enough(transformers.StoppingCriteria):
    """Ends every row at a length of its own."""

    def __init__(self, lengths: list[int]) -> None:
        self._ends = 1 + torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> Any:
        """Returns which rows have ended; the start id is one of theirs."""
        rows, length = input_ids.shape
        return length >= self._ends.repeat_interleave(rows // len(self._ends))


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and mask of a batch, padded to its longest."""
    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, held, row in zip(ids, mask, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
        held[: len(row)] = 1
    return ids, mask


def measure(run: Callable[[], object]) -> float:
    """Returns seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_streams(model: Any, vocab: Any, prompt: list[int], rounds: int) -> None:
    """Prints how long one output takes, told token by token and at the end."""
    print("| batch | told token by token, s | at the end, s |")
    print("|---|---|---|")
    settings = DecodingSettings()
    for size in (1, BATCH):
        generator = Generator(model, vocab, batch_size=size)
        heard: list[int] = []
        answer = functools.partial(
            generator.generate, [prompt], settings, forbidden=[vocab.eos_id]
        )
        stream = functools.partial(
            answer, on_tokens=lambda _, __, ids, heard=heard: heard.extend(ids)
        )
        stream()
        assert len(heard) == settings.max_tokens
        times = [(measure(stream), measure(answer)) for _ in range(rounds)]
        streamed, whole = map(statistics.median, zip(*times, strict=True))
        print(f"| {size} | {streamed:.2f} | {whole:.2f} |")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--fewest", type=int, help="of an output; by default --tokens")
    parser.add_argument("--shortest", type=int, default=256)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--streams", action="store_true")
    options = parser.parse_args()

    torch.set_num_threads(os.cpu_count() or 1)
    peer = make_peer()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model, vocab = interop.load(folder)
    if options.streams:
        measure_streams(model, vocab, *make_prompts([32]), options.rounds)
        return
    rows = make_prompts(
        make_lengths(options.prompts, options.shortest, options.longest, seed=0)
    )
    fewest = options.fewest or options.tokens
    rooms = make_lengths(options.prompts, fewest, options.tokens, seed=1)
    generator = Generator(model, vocab, batch_size=BATCH)

    print(
        f"{options.prompts} prompts of {options.shortest} to {options.longest} tokens, "
        f"{fewest} to {options.tokens} new tokens, {statistics.mean(rooms):.1f} on "
        "average"
    )
    print("| decoding | transformers, s | ul2, s | tokens/s | ratio | equal outputs |")
    print("|---|---|---|---|---|---|")
    for beams in (0, 4):
        settings = DecodingSettings(
            max_tokens=options.tokens,
            num_beams=beams,
            length_rule="huggingface",
            length_penalty=1.0,
        )

        def theirs(beams: int = beams) -> list[list[int]]:
            outputs = []
            for first in range(0, len(rows), BATCH):
                ids, mask = pad(rows[first : first + BATCH])
                ends = rooms[first : first + BATCH]
                with torch.inference_mode():
                    found = peer.generate(
                        ids,
                        attention_mask=mask,
                        max_new_tokens=options.tokens,
                        num_beams=max(1, beams),
                        do_sample=False,
                        length_penalty=1.0,
                        suppress_tokens=[0, 1, *range(32100, 32128)],
                        stopping_criteria=[Enough(ends)],
                    )
                outputs += [
                    row[1 : 1 + end]
                    for row, end in zip(found.tolist(), ends, strict=True)
                ]
            return outputs

        def ours(settings: DecodingSettings = settings) -> list[list[int]]:
            decoded = generator.generate(
                rows, settings, max_tokens=rooms, forbidden=[vocab.eos_id]
            )
            return [outputs[0].ids for outputs in decoded]

        equal = [row == found for row, found in zip(theirs(), ours(), strict=True)]
        times = [(measure(theirs), measure(ours)) for _ in range(options.rounds)]
        their_time, our_time = map(statistics.median, zip(*times, strict=True))
        print(
            f"| {f'beam {beams}' if beams else 'greedy'} | {their_time:.2f} | "
            f"{our_time:.2f} | {sum(rooms) / our_time:.0f} | "
            f"{their_time / our_time:.2f} | {sum(equal)} of {len(equal)} |"
        )
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
