r"""How long a save holds training up, and what restoring takes.

    python benchmarks/stalls.py --scratch /some/empty/folder

The compiled update of the 77M model, and two ways to save its state, which take turns:
ours (`run_checkpoints`: whole or not there, summed, synced) and orbax's own manager as
it comes, which saves asynchronously, too. Every update is waited for. Of a save:

    held up     the call itself: nothing else happens meanwhile
    next        what the update after takes longer than undisturbed ones
    all         what all updates until it is on the disk take longer, together

On two cores the writing threads take from the updates what they need; on an
accelerator they would not, so that the first two are the stall.

Restoring is from files that are in memory already (warm) and from files that are not
(cold: the kernel was told to forget them, without rights of any kind). Beside it, one
thread that reads the same files from end to end and does nothing with them.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from checkpointing import SameBatches
from updates import (
    SIZES,
    VOCAB_SIZE,
    Training,
    make_batch,
    make_config,
    make_program,
    make_vocab,
    one_device,
)

from ul2.batch import Batch
from ul2.training.checkpoints import Contract
from ul2.training.run_checkpoints import Checkpoints
from ul2.training.state import TrainState

ROWS, LENGTH = 2, 64
UPDATES = 6  # undisturbed, before a save
PIECE_BYTES = 1 << 22


class Ours:
    """Saves and restores as `ul2 train` does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saver = self._make()

    def _make(self) -> Checkpoints:
        contract = Contract(0, {}, make_vocab(VOCAB_SIZE), config_text="", mixture=None)
        return Checkpoints(self._folder, keep=1, contract=contract)

    def save(self, step: int, state: TrainState) -> None:
        """Returns as soon as training may go on."""
        self._saver.save(step, state, {"index": step}, prior_steps=0)

    def wait(self) -> None:
        """Waits until it is on the disk."""
        assert self._saver.wait()

    def restore(self, abstract: TrainState, batch: Batch) -> TrainState:
        """Returns the newest state, as a run that starts again would."""
        return self._make().restore_latest(abstract, SameBatches(batch))[0]

    def files(self) -> Path:
        """Returns the folder of the newest checkpoint."""
        return max(
            (self._folder / "checkpoints").iterdir(), key=lambda at: int(at.name)
        )


class Orbax:
    """Saves and restores by orbax's manager, as it comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        self._manager = ocp.CheckpointManager(folder, options=options)

    def save(self, step: int, state: TrainState) -> None:
        """Returns as soon as training may go on."""
        args = ocp.args.StandardSave(state._replace(guard=None))
        self._manager.save(step, args=args)

    def wait(self) -> None:
        """Waits until it is on the disk."""
        self._manager.wait_until_finished()

    def restore(self, abstract: TrainState, batch: Batch) -> TrainState:
        """Returns the newest state."""
        del batch
        args = ocp.args.StandardRestore(abstract)
        state: TrainState = self._manager.restore(
            self._manager.latest_step(), args=args
        )
        return state

    def files(self) -> Path:
        """Returns the folder of the newest checkpoint."""
        return self._folder / str(self._manager.latest_step())


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def stall(
    saver: Ours | Orbax, training: Training, batch: Batch, step: int
) -> dict[str, float]:
    """Returns what one save costs, in seconds."""
    quiet = statistics.median(
        _timed(lambda: training.update(batch)) for _ in range(UPDATES)
    )
    held_up = _timed(lambda: saver.save(step, training.state))
    after = [_timed(lambda: training.update(batch)) - quiet for _ in range(UPDATES)]
    saver.wait()
    return {
        "update": quiet,
        "held up": held_up,
        "next": after[0],
        "all": held_up + sum(after),
    }


def read(folder: Path) -> int:
    """Reads all files from end to end, and returns how many bytes they have."""
    size, buffer = 0, memoryview(bytearray(PIECE_BYTES))
    for file in _files(folder):
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                size += count
    return size


def forget(folder: Path) -> None:
    """Tells the kernel that nobody needs the files in memory."""
    os.sync()
    for file in _files(folder):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def restoring(
    savers: dict[str, Ours | Orbax], abstract: TrainState, batch: Batch, turns: int
) -> dict[str, dict[str, float]]:
    """Returns medians in seconds, warm and cold, with ratios to reading the bytes."""
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(2 * turns):
        is_cold = bool(turn % 2)
        for name, saver in savers.items():
            found = times[f"{name}, {'cold' if is_cold else 'warm'}"]
            folder = saver.files()
            for what, work in (
                ("read", lambda at=folder: read(at)),
                ("restore", lambda it=saver: it.restore(abstract, batch)),
            ):
                if is_cold:
                    forget(folder)
                found[what].append(_timed(work))
    return {
        name: {
            **{what: statistics.median(all_) for what, all_ in found.items()},
            "ratio": statistics.median(
                restore / once
                for restore, once in zip(found["restore"], found["read"], strict=True)
            ),
        }
        for name, found in times.items()
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--shape", choices=SIZES, default="77M")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    config, mesh = make_config(options.shape), one_device()
    training = Training(make_program(config, mesh), mesh)
    batch = make_batch(ROWS, LENGTH, LENGTH, config.vocab_size)
    savers = {
        "ours": Ours(options.scratch / "ours"),
        "orbax": Orbax(options.scratch.resolve() / "orbax"),
    }
    stalls: dict[str, list[dict[str, float]]] = defaultdict(list)
    for turn in range(1 + options.turns):
        for name in sorted(savers, reverse=bool(turn % 2)):
            stalls[name].append(stall(savers[name], training, batch, turn))
    # The first of each imports, compiles and gets memory.
    medians = {
        name: {
            what: statistics.median(one[what] for one in all_[1:]) for what in all_[0]
        }
        for name, all_ in stalls.items()
    }
    abstract = training.program.abstract._replace(guard=None)
    restored = restoring(savers, abstract, batch, options.turns)
    result = {
        "first save, held up": {
            name: all_[0]["held up"] for name, all_ in stalls.items()
        },
        "save": medians,
        "restore": restored,
        "bytes": {name: read(saver.files()) for name, saver in savers.items()},
    }
    print(json.dumps(result, indent=1))
    shutil.rmtree(options.scratch)


if __name__ == "__main__":
    main()
