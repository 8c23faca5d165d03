"""Many inputs for many readers, each a number that can be made again.

Input i of a reader under a seed is a valid folder and `random.Random(seed, reader, i)`.
A process of its own reads them, under a limit of memory; when it dies or stands still,
the input that it was at is a finding, and another process goes on behind it.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import random
import shutil
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzzing.mutations import mutate
from fuzzing.readers import READERS, Reader
from fuzzing.watching import Finding, Watch, attempt, limit_memory, scratch

# Of one input that Python cannot interrupt, and of making the valid one.
_STANDSTILL_SECONDS, _START_SECONDS = 60.0, 600.0


@dataclasses.dataclass
class Report:
    """What came of the inputs of a reader."""

    reader: str
    seconds: float = 0.0
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    findings: dict[tuple[str, str], tuple[int, Finding]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def inputs(self) -> int:
        """How many were read."""
        return self.counts.total()

    def note(self, index: int, outcome: Finding | str) -> None:
        """Counts an outcome; of like findings the first is kept."""
        if isinstance(outcome, Finding):
            self.counts["finding"] += 1
            self.findings.setdefault((outcome.kind, outcome.where), (index, outcome))
        else:
            self.counts[outcome] += 1


class Bench:
    """A folder in which the inputs of one reader are made, one after another."""

    def __init__(self, reader: Reader, folder: Path, seed: int) -> None:
        self._reader = reader
        self._folder = folder
        self._seed = seed
        valid = folder.with_name(f"{folder.name}-valid")
        valid.mkdir()
        reader.make(valid)
        self.valid = {
            str(path.relative_to(valid)): path.read_bytes()
            for path in sorted(valid.rglob("*"))
            if path.is_file()
        }
        shutil.rmtree(valid)

    def lay_out(self) -> Path:
        """Makes the folder hold the valid input and nothing else."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for name, content in self.valid.items():
            file = self._folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return self._folder

    def make(self, index: int) -> Path:
        """Makes input `index`."""
        folder = self.lay_out()
        rng = random.Random(f"{self._seed} {self._reader.name} {index}")
        mutate(folder, rng)
        if self._reader.repair is not None and rng.random() < 0.8:
            # Some are beyond it.
            with contextlib.suppress(Exception):
                self._reader.repair(folder)
        return folder


def read_inputs(
    reader: Reader, folder: Path, seed: int, watch: Watch, indices: Iterator[int]
) -> Iterator[tuple[int, Finding | str]]:
    """Yields what came of each input; the valid one must be read first of all."""
    bench = Bench(reader, folder, seed)
    # Twice: what is imported on the way is imported now.
    for _ in range(2):
        reader.read(bench.lay_out())
    for index in indices:
        yield index, attempt(watch, reader.read, bench.make(index))


def _work(name: str, folder: str, seed: int, first: int, place: Any, out: Any) -> None:
    """Reads inputs in a process of their own, until it is ended."""
    warnings.simplefilter("ignore")
    # What C++ says of damaged files.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    watch = Watch()

    def indices() -> Iterator[int]:
        limit_memory()
        index = first
        while True:
            place.value = index
            yield index
            index += 1

    try:
        for made in read_inputs(READERS[name], Path(folder), seed, watch, indices()):
            out.put(made)
    except Exception:  # of the campaign itself: no reader's
        out.put((-1, traceback.format_exc()))


def fuzz(name: str, seed: int, inputs: int, seconds: float) -> Report:
    """Reads so many inputs of a reader, or for so long."""
    report = Report(name)
    context = multiprocessing.get_context("spawn")
    started = time.monotonic()
    with scratch() as folder:
        while report.inputs < inputs and time.monotonic() - started < seconds:
            place, out = context.Value("q", -1), context.Queue(1000)
            arguments = (name, f"{folder}/in", seed, report.inputs, place, out)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            died = _gather(report, worker, place, out, inputs, started + seconds)
            worker.kill()
            worker.join()
            shutil.rmtree(f"{folder}/in-valid", ignore_errors=True)
            if died is not None:
                if place.value < 0:
                    raise RuntimeError(f"{name}: the valid input could not be read")
                report.note(place.value, Finding("death", died, f"input {place.value}"))
    report.seconds = time.monotonic() - started
    return report


def _gather(
    report: Report, worker: Any, place: Any, out: Any, inputs: int, deadline: float
) -> str | None:
    """Takes what a worker made; returns how it died, if it did."""
    moved = time.monotonic()
    while report.inputs < inputs and time.monotonic() < deadline:
        try:
            index, outcome = out.get(timeout=1)
        except queue.Empty:
            if not worker.is_alive() and out.empty():
                return f"exit code {worker.exitcode}"
            limit = _START_SECONDS if place.value < 0 else _STANDSTILL_SECONDS
            if time.monotonic() - moved > limit:
                return "stands still"
            continue
        if index < 0:
            raise RuntimeError(f"the campaign on {report.reader} failed:\n{outcome}")
        moved = time.monotonic()
        report.note(index, outcome)
    return None


def keep(name: str, seed: int, index: int, place: Path) -> list[str]:
    """Writes the files of an input that differ from the valid one; returns them."""
    with scratch() as folder:
        bench = Bench(READERS[name], Path(folder) / "in", seed)
        made = bench.make(index)
        changed = []
        for path in sorted(made.rglob("*")):
            file = str(path.relative_to(made))
            if not path.is_file() or path.stat().st_size > 2**20:
                continue
            content = path.read_bytes()
            if bench.valid.get(file) != content:
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).write_bytes(content)
                changed.append(file)
        gone = [file for file in bench.valid if not (made / file).is_file()]
        return changed + [f"{file} (gone)" for file in gone]
