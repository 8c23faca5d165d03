r"""What it costs to save while training goes on.

    python benchmarks/checkpointing.py --scratch /some/empty/folder

One run of the training loop saves every 2 * N steps. A window of N steps begins with a
save and lasts while it is written; the next N steps save nothing. Both are timed on the
wall, from batch to batch, so a window holds all that a save adds: reading the update
before, copying the state, and what the thread that writes takes from the devices. The
first pair compiles and is left out; the overhead is the median of the others' ratios.
Here the devices are the very cores that write, sum and compress: on an accelerator only
the copy is in its way.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from absl import logging
from guards import OPTIMIZERS, SHAPES, make_batch

from ul2.batch import Batch
from ul2.models.config import ModelConfig
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.sharding.mesh import make_mesh
from ul2.training.loop import TrainSettings, train
from ul2.training.run import Run
from ul2.training.schedules import constant
from ul2.vocab import Vocab

DENOISERS = tuple("abcdefg")


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
    config = ModelConfig(
        **SHAPES[options.shape]["config"], activation="silu", gated=True,
        positions="relative", tied_embeddings=False, dropout_rate=0.0, dtype="float32",
        remat="none",
    )  # fmt: skip
    size = config.vocab_size
    return Run(
        model_dir=folder,
        make_model=lambda rngs: EncoderDecoder(config, rngs=rngs),
        optimizer=OPTIMIZERS[options.optimizer],
        schedule=constant(1e-3),
        mesh=make_mesh("data=1"),
        batches=batches,
        denoiser_names=DENOISERS,
        vocab=Vocab(
            size=size,
            padded_size=size,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            start_id=0,
            sentinel_ids=tuple(range(size - 100, size)),
            mode_ids={},
            mode_convention="paper",
            tokenizer_sha256="0" * 64,
        ),
        config_text="",
        show_progress=False,
    )


def pairs_of(times: list[float], length: int) -> list[tuple[float, float]]:
    """Returns the seconds of every window with a save, and of the one after it.

    What is due after update k happens between requests k - 1 and k for a batch. Length
    2, saves after updates 4, 8...  ->  (t[5] - t[3], t[7] - t[5]), (t[9] - t[7], ...)
    """
    return [
        (
            times[save + length - 1] - times[save - 1],
            times[save + 2 * length - 1] - times[save + length - 1],
        )
        for save in range(2 * length, len(times) - 2 * length + 1, 2 * length)
    ]


def main() -> None:
    """Trains, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="77M")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adafactor")
    parser.add_argument("--rows", type=int, default=8, help="of 64 + 64 tokens")
    parser.add_argument("--every", type=int, default=50, help="steps of a window")
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    batches = SameBatches(
        make_batch(options.rows, shape["length"], shape["config"]["vocab_size"])
    )
    folder = options.scratch / "run"
    settings = TrainSettings(
        total_steps=2 * options.every * (options.pairs + 2),
        seed=0,
        eval_every_steps=0,
        save_every_steps=2 * options.every,
        keep_checkpoints=1,
    )
    logging.set_verbosity(logging.ERROR)
    train(make_run(folder, batches, options), settings)
    pairs = pairs_of(batches.times, options.every)[1:]
    newest = max((folder / "checkpoints").iterdir(), key=lambda one: int(one.name))
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    ratios = [saving / quiet for saving, quiet in pairs]
    result = {
        "shape": options.shape,
        "optimizer": options.optimizer,
        "checkpoint_bytes": size,
        "step_seconds": statistics.median(quiet for _, quiet in pairs) / options.every,
        "overhead": statistics.median(ratios) - 1,
        "overheads": [round(ratio - 1, 4) for ratio in ratios],
        "seconds_per_save": statistics.median(a - b for a, b in pairs),
    }
    print(json.dumps(result))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
