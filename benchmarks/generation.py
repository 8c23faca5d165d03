"""Batch inference against `transformers` generate: the same weights, tokens, machine.

    python benchmarks/generation.py [--rounds 5] [--prompts 16] [--tokens 64]

Needs torch and transformers (the `peers` extra). A T5 v1.1 of 77M parameters (d 512, 6
heads of 64, feed-forward 1024 gated SiLU, 8 + 8 layers, vocabulary 32128), random
weights, float32; prompts of 256 tokens; every output has exactly as many tokens, since
neither side may write EOS. Both sides take turns, so that whatever else the machine
does falls on both; ratios of medians are what counts. The outputs are compared first.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

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
PROMPT = 256


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


def measure(run: Callable[[], object]) -> float:
    """Returns seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()

    torch.set_num_threads(os.cpu_count() or 1)
    peer = make_peer()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model, vocab = interop.load(folder)
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 32000, (options.prompts, PROMPT))
    prompts[:, -1] = 1
    ids = torch.tensor(prompts)
    rows = prompts.tolist()
    generator = Generator(model, vocab, batch_size=options.prompts)

    print(f"{options.prompts} prompts of {PROMPT}, {options.tokens} new tokens each")
    print("| decoding | transformers, s | ul2, s | tokens/s | ratio | equal outputs |")
    print("|---|---|---|---|---|---|")
    for beams in (0, 4):
        settings = DecodingSettings(
            max_tokens=options.tokens,
            num_beams=beams,
            length_rule="huggingface",
            length_penalty=1.0,
        )

        def theirs(beams: int = beams) -> torch.Tensor:
            with torch.inference_mode():
                return peer.generate(
                    ids,
                    max_new_tokens=options.tokens,
                    min_new_tokens=options.tokens,
                    num_beams=max(1, beams),
                    do_sample=False,
                    length_penalty=1.0,
                    suppress_tokens=[0, *range(32100, 32128)],
                )

        def ours(settings: DecodingSettings = settings) -> list[list[int]]:
            decoded = generator.generate(rows, settings, forbidden=[vocab.eos_id])
            return [outputs[0].ids for outputs in decoded]

        equal = [
            row[1:].tolist() == found
            for row, found in zip(theirs(), ours(), strict=True)
        ]
        times = [(measure(theirs), measure(ours)) for _ in range(options.rounds)]
        their_time, our_time = map(statistics.median, zip(*times, strict=True))
        print(
            f"| {f'beam {beams}' if beams else 'greedy'} | {their_time:.2f} | "
            f"{our_time:.2f} | {options.prompts * options.tokens / our_time:.0f} | "
            f"{their_time / our_time:.2f} | {sum(equal)} of {len(equal)} |"
        )
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
