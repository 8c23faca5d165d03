r"""What it costs that every update is judged before it is made.

    python benchmarks/guards.py

The same compiled update, once of a state with a guard and once of one without; the two
take turns, and which goes first changes from turn to turn. A measurement is of some
updates as training makes them: dispatched ahead, the sums of each read once the next is
on its way. Times are processor time of the whole process, all threads together, so that
other work on the machine counts little; with `--wall`, as on an accelerator, wall time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ul2.batch import Batch, Packed
from ul2.models.config import ModelConfig
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.sharding.mesh import make_mesh
from ul2.sharding.placement import place
from ul2.training.guard import Guard
from ul2.training.optimizers import adafactor, adamw
from ul2.training.schedules import constant
from ul2.training.state import (
    abstract_state,
    define_model,
    guarded,
    init_state,
    with_shardings,
)
from ul2.training.step import StepSettings, TrainStep, make_train_step

VOCAB_SIZE, DENOISERS = 32128, 7
OPTIMIZERS = {"adafactor": adafactor, "adamw": adamw}
# Layers on each side, widths, and what a batch holds.
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "config": {"embed_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 128,
                   "num_encoder_layers": 2, "num_decoder_layers": 2,
                   "vocab_size": 1024},
        "rows": 4, "length": 128, "updates": 8,
    },
    "77M": {
        "config": {"embed_dim": 512, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024,
                   "num_encoder_layers": 8, "num_decoder_layers": 8,
                   "vocab_size": VOCAB_SIZE},
        "rows": 2, "length": 64, "updates": 2,
    },
}  # fmt: skip


def make_batch(rows: int, length: int, vocab_size: int) -> Batch:
    """Returns rows of one example each."""
    rng = np.random.default_rng(0)
    places = np.tile(np.arange(length, dtype=np.int32), (rows, 1))

    def packed() -> Packed:
        tokens = rng.integers(3, vocab_size, (rows, length), np.int32)
        return Packed(tokens, np.ones_like(places), places, places[:, None])

    return Batch(
        encoder=packed(),
        decoder=packed(),
        targets=rng.integers(3, vocab_size, (rows, length), np.int32),
        loss_weights=np.ones((rows, length), np.float32),
        denoiser_ids=np.tile(np.arange(rows, dtype=np.int32)[:, None], (1, length))
        % DENOISERS,
        prefix_lengths=np.zeros((rows, 1), np.int32),
    )


class Side:
    """One of the two: a state, and the update that it goes through."""

    def __init__(self, shape: dict[str, Any], optimizer: str, is_guarded: bool) -> None:
        config = ModelConfig(
            **shape["config"], activation="silu", gated=True, positions="relative",
            tied_embeddings=False, dropout_rate=0.0, dtype="float32", remat="none",
        )  # fmt: skip

        def make_model(*, rngs: Any) -> EncoderDecoder:
            return EncoderDecoder(config, rngs=rngs)

        mesh = make_mesh("auto", jax.devices()[:1])
        model = define_model(make_model)
        rule = OPTIMIZERS[optimizer](constant(1e-3), model.param_axes)
        both = abstract_state(make_model, rule, mesh)
        self.state = init_state(make_model, rule, mesh, seed=0)
        if is_guarded:
            both = guarded(*both, DENOISERS, mesh)
            guard = Guard.fresh(DENOISERS).placed(both[1].guard.held)
            self.state = self.state._replace(guard=guard)
        self.abstract_state = with_shardings(*both)
        self._step: TrainStep = make_train_step(
            model, rule, constant(1e-3), mesh,
            state_shardings=both[1],
            settings=StepSettings(
                0, DENOISERS, 1, "target_tokens", 1e-4, "auto", 10.0, True
            ),
        )  # fmt: skip
        vocab_size = shape["config"]["vocab_size"]
        self._batch = place(
            make_batch(shape["rows"], shape["length"], vocab_size), mesh
        )
        self._updates = shape["updates"]

    def measure(self) -> dict[str, int]:
        """Returns what the compiler says of memory and of bytes moved."""
        compiled = self._step.lower(self.state, self._batch).compile()
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
        return {
            "temporaries": memory.temp_size_in_bytes,
            "arguments": memory.argument_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "flops": int(cost["flops"]),
            "bytes": int(cost["bytes accessed"]),
        }

    def update(self) -> None:
        """Makes one update, and waits until it is done."""
        self.state, sums = self._step(self.state, self._batch)
        jax.block_until_ready((self.state, sums))

    def run(self, clock: Callable[[], float]) -> float:
        """Returns the seconds that an update takes."""
        start, sums = clock(), None
        for _ in range(self._updates):
            before = sums
            self.state, sums = self._step(self.state, self._batch)
            if before is not None:
                jax.device_get(before)
        jax.device_get(sums)
        jnp.asarray(self.state.step).block_until_ready()
        return (clock() - start) / self._updates


def compare(shape: str, optimizer: str, turns: int, clock: Any) -> dict[str, Any]:
    """Returns both sides' times and memory, and how they compare."""
    sides = {name: Side(SHAPES[shape], optimizer, name == "guarded")
             for name in ("plain", "guarded")}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.run(clock)
    for turn in range(turns):
        for name in sorted(sides, reverse=bool(turn % 2)):
            times[name].append(sides[name].run(clock))
    ratios = [b / a for a, b in zip(times["plain"], times["guarded"], strict=True)]
    return {
        "shape": shape,
        "optimizer": optimizer,
        "seconds": {name: statistics.median(all_) for name, all_ in times.items()},
        "fastest": {name: min(all_) for name, all_ in times.items()},
        "overhead": statistics.median(ratios) - 1,
        "quartiles": [q - 1 for q in statistics.quantiles(ratios, n=4)[::2]],
        "memory": {name: side.measure() for name, side in sides.items()},
    }


def main() -> None:
    """Prints one JSON object per shape and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, action="append")
    parser.add_argument("--wall", action="store_true")
    options = parser.parse_args()
    clock = time.perf_counter if options.wall else time.process_time
    for shape in options.shape or SHAPES:
        for optimizer in options.optimizer or OPTIMIZERS:
            result = compare(shape, optimizer, options.turns, clock)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
