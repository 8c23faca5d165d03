r"""What it costs to save while training goes on.

    python benchmarks/checkpointing.py --scratch /some/empty/folder

One run of the training loop saves every N steps. The first steps after a save hold all
that it adds: reading the update before, copying the state, and what the threads that
write take from the devices. They are timed on the wall, from batch to batch, and
compared with the median of the steps after them, until the next save; what is more is
the overhead, as a share of all N. The first save is left out: it imports and compiles.
Here the devices are the very cores that write, sum and compress: on an accelerator only
the copy is in its way.
"""

import argparse
import itertools
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from updates import OPTIMIZERS, SIZES, make_batch, make_config, make_vocab

from ul2.batch import Batch
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.sharding.mesh import make_mesh
from ul2.training.loop import TrainSettings, train
from ul2.training.run import Run
from ul2.training.schedules import constant

DENOISERS = tuple("abcdefg")
LENGTH = 64  # tokens that a row reads, and that it predicts


class SameBatches:
    """The same batch again and again, and when each was asked for."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self._index = batch, 0
        self.times: list[float] = []

    def __next__(self) -> Batch:
        """Returns the batch."""
        self.times.append(time.perf_counter())
        self._index += 1
        return self._batch

    def position(self) -> dict[str, Any]:
        """Returns how often it was asked for."""
        return {"index": self._index}

    def seek(self, position: dict[str, Any]) -> None:
        """Goes to a place that `position` returned."""
        self._index = position["index"]


def make_run(folder: Path, batches: SameBatches, options: argparse.Namespace) -> Run:
    """Returns a run of the model that was asked for."""
    config = make_config(options.shape)
    return Run(
        model_dir=folder,
        make_model=lambda rngs: EncoderDecoder(config, rngs=rngs),
        optimizer=OPTIMIZERS[options.optimizer],
        schedule=constant(1e-6),
        mesh=make_mesh("data=1"),
        batches=batches,
        denoiser_names=DENOISERS,
        vocab=make_vocab(config.vocab_size),
        config_text="",
        show_progress=False,
    )


class Save(NamedTuple):
    """What a save was measured by."""

    step_seconds: float  # of those that nothing disturbs
    seconds: float  # that it adds to those that it disturbs


def saves_of(times: list[float], every: int, disturbed: int) -> list[Save]:
    """Returns what every save added, but for the last: nothing follows it.

    What is due after update k happens between requests k - 1 and k for a batch. Every 4
    with 2 disturbed  ->  t[5] - t[3] against t[6] - t[5] and t[7] - t[6], ...
    """
    seconds = [after - before for before, after in itertools.pairwise(times)]
    windows = [
        seconds[save - 1 : save - 1 + every]
        for save in range(every, len(seconds) - every + 2, every)
    ]
    quiet = [statistics.median(window[disturbed:]) for window in windows]
    return [
        Save(step, sum(window[:disturbed]) - disturbed * step)
        for step, window in zip(quiet, windows, strict=True)
    ]


def main() -> None:
    """Trains, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--shape", choices=SIZES, default="77M")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adafactor")
    parser.add_argument("--rows", type=int, default=8, help="of 64 + 64 tokens")
    parser.add_argument("--every", type=int, default=50, help="steps")
    parser.add_argument("--disturbed", type=int, default=10, help="steps")
    parser.add_argument("--saves", type=int, default=7)
    options = parser.parse_args()
    vocab_size = SIZES[options.shape]["vocab_size"]
    batches = SameBatches(make_batch(options.rows, LENGTH, LENGTH, vocab_size))
    folder = options.scratch / "run"
    settings = TrainSettings(
        total_steps=options.every * (options.saves + 2),
        seed=0,
        eval_every_steps=0,
        save_every_steps=options.every,
        keep_checkpoints=1,
    )
    logging.set_verbosity(logging.ERROR)
    train(make_run(folder, batches, options), settings)
    _, *saves = saves_of(batches.times, options.every, options.disturbed)
    newest = max((folder / "checkpoints").iterdir(), key=lambda one: int(one.name))
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    overheads = [save.seconds / save.step_seconds / options.every for save in saves]
    result = {
        "shape": options.shape,
        "optimizer": options.optimizer,
        "rows": options.rows,
        "checkpoint_bytes": size,
        "step_seconds": statistics.median(save.step_seconds for save in saves),
        "seconds_per_save": statistics.median(save.seconds for save in saves),
        "overhead": statistics.median(overheads),
        "overheads": [round(overhead, 4) for overhead in overheads],
    }
    print(json.dumps(result))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
