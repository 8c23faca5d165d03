"""Where measurements go: JSON lines, TensorBoard events, one live line for a person.

A measurement is one dict: `step`, numbers, and `denoisers`, a dict of dicts of numbers.
All writers take the same dict. A resumed run appends to the same files: lines of steps
beyond the restored one, which will now be made again, are dropped first. A disk that is
full stops no run: what belongs into a file waits in memory until it can be written.
"""

import contextlib
import io
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import jax
from absl import logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ul2.run_files import read_measurements

Measurement = Mapping[str, Any]


class Writer(Protocol):
    """Takes measurements."""

    def write(self, measurement: Measurement) -> None:
        """Takes one."""
        ...

    def close(self) -> None:
        """Makes sure that all of them are where they belong."""
        ...


class _Appended:
    """A file that grows by whole records, also on a disk that is full for a while.

    What cannot be written is kept in memory and comes first when something is written
    next; a record of which a part was written is cut off again. So the file ends with
    a whole record, whatever happens, and lacks none in the middle.

    Args:
        path: of the file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._waiting: list[bytes] = []

    def append(self, record: bytes) -> None:
        """Writes a record at once, so that a kill loses none, or keeps it."""
        was_waiting = bool(self._waiting)
        self._waiting.append(record)
        try:
            self._write()
        except OSError as error:
            self._close()
            if not was_waiting:
                logging.warning(
                    "cannot write to %s: %s; what belongs there is kept in memory "
                    "until it can be. Make room on that disk.",
                    self._path,
                    error.strerror,
                )
            return
        if was_waiting:
            logging.warning("%s can be written again; nothing is missing.", self._path)

    def close(self) -> None:
        """Writes what is waiting; says what is lost."""
        with contextlib.suppress(OSError):
            self._write()
        self._close()
        if self._waiting:
            logging.error(
                "%s lacks its last %d records: the disk did not take them.",
                self._path,
                len(self._waiting),
            )

    def _write(self) -> None:
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._descriptor = os.open(self._path, flags, 0o644)
        while self._waiting:
            record = self._waiting[0]
            size = os.fstat(self._descriptor).st_size
            try:
                written = 0
                while written < len(record):
                    written += os.write(self._descriptor, record[written:])
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise
            del self._waiting[0]

    def _close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def open_writers(
    model_dir: str | Path, lines: str, prefix: str, restored_step: int
) -> list[Writer]:
    """Returns where measurements of a run are kept; the first host alone writes.

    Args:
        model_dir: of the run.
        lines: name of the file of JSON lines.
        prefix: of the names in TensorBoard.
        restored_step: measurements of later steps are forgotten.
    """
    if jax.process_index() != 0:
        return []
    model_dir = Path(model_dir)
    return [
        JsonLines(model_dir / lines, restored_step),
        TensorBoard(model_dir / "tensorboard", prefix, restored_step),
    ]


class JsonLines:
    """One JSON object a line."""

    def __init__(self, path: Path, restored_step: int) -> None:
        try:
            _drop_later_lines(path, restored_step)
        except OSError as error:
            raise ValueError(
                f"cannot write to {path}: {error.strerror}; make room on that disk, or "
                "choose another MODEL_DIR."
            ) from None
        self._file = _Appended(path)

    def write(self, measurement: Measurement) -> None:
        """Appends a line."""
        self._file.append((json.dumps(measurement) + "\n").encode())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _drop_later_lines(path: Path, restored_step: int) -> None:
    """Keeps the whole lines of steps up to `restored_step`."""
    if not path.exists():
        return
    kept = b"".join(
        line for step, line, _ in read_measurements(path) if step <= restored_step
    )
    content = path.read_bytes()
    if content == kept:
        return
    if content.startswith(kept):
        # Takes no room on a disk that may be full.
        os.truncate(path, len(kept))
        return
    partial = path.with_suffix(".partial")
    partial.write_bytes(kept)
    partial.replace(path)


# Files of one process, written within one second, differ by these.
_numbers = itertools.count()


class TensorBoard:
    """Scalars in TensorBoard's event format.

    TensorBoard's own record writer and protocol buffers, without its `EventFileWriter`,
    which imports TensorFlow wherever it is installed.
    """

    def __init__(self, directory: Path, prefix: str, restored_step: int) -> None:
        name = (
            f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}"
            f".{os.getpid()}.{next(_numbers)}.{prefix}"
        )
        self._prefix = prefix
        self._file = _Appended(directory / name)
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
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.append(record.getvalue())

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
    loss = measurement["loss"]
    parts = ["update left out" if loss is None else f"loss {loss:.4f}"]
    if measurement.get("tokens_per_second"):
        parts.append(f"{measurement['tokens_per_second']:,.0f} tokens/s")
    if measurement.get("mfu"):
        parts.append(f"MFU {measurement['mfu']:.1%}")
    denoisers = measurement.get("denoisers", {})
    parts += [f"{name} {values['loss']:.3f}" for name, values in denoisers.items()]
    return "  ".join(parts)
