"""Where measurements go: JSON lines, TensorBoard events, one live line for a person.

A measurement is one dict: `step`, numbers, and `denoisers`, a dict of dicts of numbers.
All writers take the same dict. A resumed run appends to the same files: lines of steps
beyond the restored one, which will now be made again, are dropped first.
"""

import itertools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ul2 import json_files

Measurement = Mapping[str, Any]
_MAX_LINE_BYTES: Final = 2**20


class Writer(Protocol):
    """Takes measurements."""

    def write(self, measurement: Measurement) -> None:
        """Takes one."""
        ...

    def close(self) -> None:
        """Makes sure that all of them are where they belong."""
        ...


class JsonLines:
    """One JSON object a line."""

    def __init__(self, path: Path, restored_step: int) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_later_lines(path, restored_step)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"cannot write {path}: {error.strerror}; choose another MODEL_DIR."
            ) from None

    def write(self, measurement: Measurement) -> None:
        """Appends a line and flushes it, so that a kill loses none."""
        self._file.write(json.dumps(measurement) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _drop_later_lines(path: Path, restored_step: int) -> None:
    """Keeps the whole lines of steps up to `restored_step`."""
    if not path.exists():
        return
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for step, line, _ in read_measurements(path):
            if step <= restored_step:
                file.write(line)
    partial.replace(path)


def read_measurements(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Yields step, line and content of every measurement in a file of JSON lines.

    Lines that are none are left out: a kill leaves half a one, a disk worse.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        while line := lines.readline(_MAX_LINE_BYTES):
            measurement = json_files.parse_line(line) if line.endswith(b"}\n") else None
            step = measurement and measurement.get("step")
            if measurement is not None and type(step) is int:
                yield step, line, measurement


# Files of one process, written within one second, differ by these.
_numbers = itertools.count()


class TensorBoard:
    """Scalars in TensorBoard's event format.

    TensorBoard's own record writer and protocol buffers, without its `EventFileWriter`,
    which imports TensorFlow wherever it is installed.
    """

    def __init__(self, directory: Path, prefix: str, restored_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = (
            f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}"
            f".{os.getpid()}.{next(_numbers)}.{prefix}"
        )
        self._prefix = prefix
        self._file = (directory / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        # TensorBoard then forgets what it read of the steps that are made again.
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=restored_step + 1, session_log=start))

    def write(self, measurement: Measurement) -> None:
        """Appends one event that holds every number."""
        values = [
            Summary.Value(tag=f"{self._prefix}/{tag}", simple_value=value)
            for tag, value in flatten(measurement)
            if tag != "step"
        ]
        self._write(Event(step=measurement["step"], summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def flatten(measurement: Measurement, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields `denoisers/R/loss` and its number, for every number there is."""
    for name, value in measurement.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


class ProgressLine:
    """A live bar on a terminal, a plain line per measurement elsewhere."""

    def __init__(
        self,
        total_steps: int,
        restored_step: int,
        stream: TextIO | None = None,
        *,
        label: str = "",
    ) -> None:
        self._label = f"{label}: " if label else ""
        self._console = Console(file=stream, stderr=stream is None, highlight=False)
        self._total_steps = total_steps
        self._progress = Progress(
            TextColumn(label or "train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}"),
            Remaining(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(
            "train", total=total_steps, completed=restored_step, summary=""
        )
        self._progress.start()

    def write(self, measurement: Measurement) -> None:
        """Shows the newest numbers."""
        summary = summarize(measurement)
        step = measurement["step"]
        if self._console.is_terminal:
            self._progress.update(self._task, completed=step, summary=summary)
        else:
            text = f"{self._label}step {step}/{self._total_steps}  {summary}"
            self._console.print(text, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Gives the terminal back."""
        self._progress.stop()


def summarize(measurement: Measurement) -> str:
    """Returns what a person looks at first."""
    parts = [f"loss {measurement['loss']:.4f}"]
    if measurement.get("tokens_per_second"):
        parts.append(f"{measurement['tokens_per_second']:,.0f} tokens/s")
    if measurement.get("mfu"):
        parts.append(f"MFU {measurement['mfu']:.1%}")
    denoisers = measurement.get("denoisers", {})
    parts += [f"{name} {values['loss']:.3f}" for name, values in denoisers.items()]
    return "  ".join(parts)
