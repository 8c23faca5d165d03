"""From the sums of a step to the numbers of a run, without making the device wait.

The sums of step n - 1 are read once step n has been dispatched (`training.updates`),
so the device always has work queued. Every `log_every_steps` steps, and whenever
`flush` is called (before each checkpoint), one measurement is written that covers all
steps since the last one, but for updates that were left out:

    loss, accuracy       means over the target tokens; `denoisers` holds each one's
    tokens_per_second    tokens that are not padding, both sides, per second
    padding_fraction     columns that are padding
    data_wait_fraction   share of the time spent waiting for the next batch
                         (the clock starts once the first step is compiled)
    device_memory_bytes  most that a device of this host ever held, where it says so
    mfu                  model FLOPs / (time x peak FLOPs of all devices), where known
    skipped_updates      left out so far, of the whole run; and `spikes`, `rollbacks`
    events               what happened to any of these updates, if anything did

Model FLOPs are 6 x N x tokens: 2 forward and 4 backward per parameter and token. N
leaves out embedding rows, which are looked up, not multiplied, unless the table is also
the output projection. Parameters below `encoder` see the encoder's tokens, all others
the decoder's. The attention products are not counted, so the number errs low.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ul2 import axes
from ul2.sharding.chips import PEAK_FLOPS
from ul2.training.state import ModelDef
from ul2.training.step import StepSums
from ul2.training.writers import Writer

Clock = Callable[[], float]


def multiplied_params(model: ModelDef) -> tuple[int, int]:
    """Returns how many parameters each encoder, and each decoder, token multiplies."""
    encoder = decoder = tables = 0
    untied = False
    names = jax.tree.leaves(model.param_axes, is_leaf=lambda n: isinstance(n, tuple))
    leaves = jax.tree.leaves_with_path(model.abstract_params)
    for (path, leaf), leaf_axes in zip(leaves, names, strict=True):
        size = math.prod(leaf.shape)
        untied |= leaf_axes[-1:] == (axes.VOCAB,)
        if leaf_axes[:1] == (axes.VOCAB,):
            tables += size
        elif str(path[0].key).startswith("encoder"):
            encoder += size
        else:
            decoder += size
    return encoder, decoder if untied else decoder + tables


class Metrics:
    """Gathers the sums of steps and hands measurements to the writers."""

    def __init__(
        self,
        *,
        denoiser_names: Sequence[str],
        log_every_steps: int,
        multiplied: tuple[int, int] = (0, 0),
        writers: Sequence[Writer] = (),
        rollbacks: Callable[[int], int] = lambda step: 0,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._names = tuple(denoiser_names)
        self._log_every_steps = log_every_steps
        self._multiplied = multiplied
        self._writers = tuple(writers)
        self._rollbacks = rollbacks
        self._clock = clock
        self._gathered: list[StepSums] = []
        self._data_wait = 0.0
        self._since = clock()
        self._step = 0
        self._is_compiled = False
        self._counts = {"skipped_updates": 0, "spikes": 0}
        self._events: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {}

    def wait_for(self, next_batch: Callable[[], Any]) -> Any:
        """Returns `next_batch()`, counting the time it takes as waiting for data."""
        start = self._clock()
        batch = next_batch()
        self._data_wait += self._clock() - start
        return batch

    def dispatched(self) -> None:
        """Says that an update is on its way."""
        if not self._is_compiled:
            # The first was compiled before it was dispatched: not its speed.
            self._since, self._data_wait = self._clock(), 0.0
            self._is_compiled = True

    def record(self, step: int, sums: StepSums) -> None:
        """Adds up what an update measured.

        Args:
            step: after it.
            sums: on the host.
        """
        self._gathered.append(sums)
        self._count(step, sums, skipped=0)

    def leave_out(self, step: int, sums: StepSums, *, skipped: bool) -> None:
        """Takes an update that was not made; what it measured is no part of means."""
        self._count(step, sums, skipped=int(skipped))

    def note(self, *events: dict[str, Any]) -> None:
        """Adds events to the next measurement."""
        self._events += events

    def flush(self) -> None:
        """Writes everything recorded so far."""
        if self._gathered or self._events:
            self._write()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is done inside out of the speed: evaluating, saving."""
        start = self._clock()
        yield
        self._since += self._clock() - start

    def close(self) -> None:
        """Closes the writers."""
        for writer in self._writers:
            writer.close()

    def _count(self, step: int, sums: StepSums, *, skipped: int) -> None:
        """Takes the counts of an update, and writes a measurement if one is due."""
        self._step = step
        if sums.verdict is not None:
            self._counts = {
                "skipped_updates": int(sums.verdict.skipped) + skipped,
                "spikes": int(sums.verdict.spikes),
            }
        if step % self._log_every_steps == 0:
            self._write()

    def _write(self) -> None:
        """Hands one measurement to the writers and starts the next."""
        now = self._clock()
        measurement = {
            "step": self._step,
            **self._losses(),
            **self._speed(now - self._since),
            **self._counts,
            "rollbacks": self._rollbacks(self._step),
            **({"events": self._events} if self._events else {}),
        }
        self.last = measurement
        for writer in self._writers:
            writer.write(measurement)
        self._gathered, self._events = [], []
        self._data_wait = 0.0
        self._since = now

    def _losses(self) -> dict[str, Any]:
        """Returns means over the targets, and the newest state of the optimizer.

        Where every update was left out, the loss is None, and there is nothing else.
        """
        if not self._gathered:
            return {"loss": None}
        newest = self._gathered[-1]
        loss, correct, tokens = (
            np.asarray([getattr(s, name) for s in self._gathered], np.float64).sum(0)
            for name in ("loss", "correct", "tokens")
        )
        weights = float(np.sum([s.weights for s in self._gathered], dtype=np.float64))
        z_loss = float(np.sum([s.z_loss for s in self._gathered], dtype=np.float64))
        total = max(float(tokens.sum()), 1.0)
        return {
            "loss": float(loss.sum()) / total,
            "z_loss": z_loss / max(weights, 1.0),
            "accuracy": float(correct.sum()) / total,
            "target_tokens": float(tokens.sum()),
            "learning_rate": float(newest.learning_rate),
            "grad_norm": float(newest.grad_norm),
            "param_norm": float(newest.param_norm),
            "denoisers": {
                name: {
                    "loss": float(loss[index] / tokens[index]),
                    "accuracy": float(correct[index] / tokens[index]),
                    "tokens": float(tokens[index]),
                }
                for index, name in enumerate(self._names)
                if tokens[index]
            },
        }

    def _speed(self, seconds: float) -> dict[str, Any]:
        """Returns how fast it went; None where no time passed or no peak is known."""
        if not self._gathered:
            return {}
        encoder, decoder, columns, examples = (
            int(sum(int(getattr(sums, name)) for sums in self._gathered))
            for name in ("encoder_tokens", "decoder_tokens", "columns", "examples")
        )
        flops = 6 * (self._multiplied[0] * encoder + self._multiplied[1] * decoder)
        peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)

        def per_second(amount: float) -> float | None:
            return amount / seconds if seconds > 0 else None

        return {
            "padding_fraction": 1 - (encoder + decoder) / columns,
            "tokens_per_second": per_second(encoder + decoder),
            "examples_per_second": per_second(examples),
            "steps_per_second": per_second(len(self._gathered)),
            "data_wait_fraction": per_second(self._data_wait),
            "device_memory_bytes": device_memory(),
            "mfu": per_second(flops / (peak * jax.device_count())) if peak else None,
        }


def device_memory() -> int | None:
    """Returns the peak of this host's fullest device; None where none is told."""
    stats = (device.memory_stats() for device in jax.local_devices())
    peaks = [one["peak_bytes_in_use"] for one in stats if one]
    return max(peaks, default=None)
