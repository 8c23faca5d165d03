"""Loss and head, forward and back, against a plain log-softmax.

    python benchmarks/loss.py --turns 7

The plain side makes all logits [B, T, V], takes `jax.nn.log_softmax`, and is
differentiated as it stands. Ours is `training.losses.cross_entropy` with LOSS_CHUNK
`auto`. Both give the loss with its z-loss, and gradients of hidden states and kernel,
which are compared first. Memory is what the compiler allots beside the arguments:
temporaries and results.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from ul2.training.losses import AUTO, chunk_columns, cross_entropy

WIDTH, COLUMNS, Z_LOSS = 512, 512, 1e-4
# Vocabulary, tokens of a batch, and tokens of one that is run: of the larger, where the
# plain side takes 17 GB, memory is what the compiler says.
CASES = ((32_128, 32_768, 4_096), (256_000, 4_096, 1_024))


def make_arrays(vocab_size: int, tokens: int) -> tuple[jax.Array, ...]:
    """Returns hidden states, a kernel, and targets."""
    keys = jax.random.split(jax.random.key(0), 3)
    rows = tokens // COLUMNS
    return (
        jax.random.normal(keys[0], (rows, COLUMNS, WIDTH)),
        jax.random.normal(keys[1], (WIDTH, vocab_size)) / WIDTH**0.5,
        jax.random.randint(keys[2], (rows, COLUMNS), 0, vocab_size),
    )


def plain(hidden: Any, kernel: Any, targets: Any) -> Any:
    """Returns the loss from all logits at once."""
    logits = hidden @ kernel
    log_probs = jax.nn.log_softmax(logits)
    label = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)
    z = jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(Z_LOSS * z**2) - jnp.sum(label)


def ours(hidden: Any, kernel: Any, targets: Any) -> Any:
    """Returns it chunk by chunk."""
    rows, columns = targets.shape
    sums, _ = cross_entropy(
        lambda hidden: hidden @ kernel,
        hidden,
        targets,
        jnp.ones(targets.shape),
        jnp.zeros_like(targets),
        num_denoisers=1,
        z_loss_weight=Z_LOSS,
        chunk_length=chunk_columns(
            AUTO, rows=rows, columns=columns, vocab_size=kernel.shape[-1]
        ),
    )
    return sums.objective


def largest_difference(a: Any, b: Any) -> float:
    """Returns how far gradients differ, relative to the largest of each array."""
    return max(
        float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def compiled(function: Any, vocab_size: int, tokens: int) -> Any:
    """Returns the loss and its gradients, compiled for so many tokens."""
    arrays = jax.eval_shape(lambda: make_arrays(vocab_size, tokens))
    gradient = jax.jit(jax.value_and_grad(function, (0, 1)))
    return gradient.lower(*arrays).compile()


def memory(step: Any) -> int:
    """Returns how many bytes it takes beside its arguments."""
    stats = step.memory_analysis()
    size: int = stats.temp_size_in_bytes + stats.output_size_in_bytes
    return size


def compare(vocab_size: int, tokens: int, timed: int, turns: int) -> dict[str, Any]:
    """Returns both sides' times and memory."""
    functions = {"plain": plain, "ul2": ours}
    sizes = {
        name: memory(compiled(function, vocab_size, tokens))
        for name, function in functions.items()
    }
    arrays = make_arrays(vocab_size, timed)
    sides = {
        name: compiled(function, vocab_size, timed)
        for name, function in functions.items()
    }
    results = {name: step(*arrays) for name, step in sides.items()}
    difference = largest_difference(results["ul2"], results["plain"])
    results.clear()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, step in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*arrays))
            times[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(times["plain"], times["ul2"], strict=True)]
    return {
        "vocab": vocab_size,
        "tokens": tokens,
        "gigabytes": {name: size / 1e9 for name, size in sizes.items()},
        "memory": sizes["ul2"] / sizes["plain"],
        "tokens, timed": timed,
        "seconds": {name: statistics.median(all_) for name, all_ in times.items()},
        "time": statistics.median(ratios),
        "difference": difference,
        "times": times,
    }


def main() -> None:
    """Prints a table, and a line of JSON for each of its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    found = [compare(*case, options.turns) for case in CASES]
    print(
        "| vocabulary | tokens | plain, GB | ul2, GB | memory | tokens, timed | "
        "plain, s | ul2, s | time | gradients differ by |"
    )
    print("|---" * 10 + "|")
    for one in found:
        seconds, size = one["seconds"], one["gigabytes"]
        print(
            f"| {one['vocab']:,} | {one['tokens']:,} | {size['plain']:.2f} | "
            f"{size['ul2']:.2f} | {one['memory']:.2f} | {one['tokens, timed']:,} | "
            f"{seconds['plain']:.2f} | {seconds['ul2']:.2f} | {one['time']:.2f} | "
            f"{one['difference']:.1e} |"
        )
    for one in found:
        print(json.dumps(one))


if __name__ == "__main__":
    main()
