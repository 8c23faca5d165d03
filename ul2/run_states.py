"""How runs are doing, read off their files alone: quickly, and without touching them.

    running     somebody works in it (`.lock`) and has measured something
    waiting     somebody works in it, but has measured nothing yet: it compiles, reads a
                checkpoint, or waits for other hosts
    finished    all TOTAL_STEPS are done and saved
    preempted   ended in order before that, with all saved, as a signal makes it
    stopped     ended by an error that it could tell: bad numbers, a full disk
    crashed     gone without a word: killed, stood still, a power cut
    new         never got as far as an update

Files say no more than that: a run that was told to end in the very moment of a save
looks the same as one that failed then, unless its `history.jsonl` tells.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ul2 import json_files, run_files
from ul2.lock import Holder, living_holder

RUNNING, WAITING, FINISHED = "running", "waiting", "finished"
PREEMPTED, STOPPED, CRASHED, NEW = "preempted", "stopped", "crashed", "new"
STATES: Final = (RUNNING, WAITING, FINISHED, PREEMPTED, STOPPED, CRASHED, NEW)
# How deep below a folder runs are looked for.
_DEPTH: Final = 4
_TAIL_BYTES: Final = 2**16


@dataclasses.dataclass(frozen=True)
class RunState:
    """How a run is doing.

    Attributes:
        path: its MODEL_DIR.
        state: one of `STATES`.
        step: updates done, as far as they were measured or saved.
        total_steps: of the whole run; None where its config does not say.
        loss: of the last measurement; None where there is none.
        tokens_per_second: then.
        seconds_left: until it is done, at the last measurement's speed; None unless it
            is running.
        measured_seconds_ago: since the last measurement was written.
        saved_step: the newest checkpoint; None where there is none.
        saved_seconds_ago: since that was written.
        holder: who works in it; empty if nobody does.
    """

    path: str
    state: str
    step: int
    total_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    measured_seconds_ago: float | None
    saved_step: int | None
    saved_seconds_ago: float | None
    holder: str

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return dataclasses.asdict(self)


def find_runs(folder: str | Path) -> Iterator[Path]:
    """Yields the runs in a folder, or the folder if it is one, by name.

    Raises:
        ValueError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder; give one that holds runs, or a run.")
    yield from _below(Path(folder), _DEPTH)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    if any(entry.name == run_files.CONFIG for entry in entries):
        yield folder
        return
    for entry in entries if depth else ():
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), depth - 1)


def read_state(model_dir: str | Path, now: float | None = None) -> RunState:
    """Returns how a run is doing.

    Args:
        model_dir: of the run.
        now: seconds since 1970; None asks the clock.
    """
    folder = Path(model_dir)
    now = time.time() if now is None else now
    last = _last_line(folder / run_files.METRICS)
    measured = _written(folder / run_files.METRICS) if last else None
    saved_step, saved = _newest_checkpoint(folder / run_files.CHECKPOINTS)
    holder = living_holder(folder / run_files.LOCK)
    total = _total_steps(folder / run_files.CONFIG)
    step = max(_int(last.get("step")), saved_step or 0)
    found = _Found(folder, holder, measured, step, saved_step, total)
    state = found.state()
    speed = _float(last.get("steps_per_second"))
    left = None
    if state == RUNNING and speed and total is not None:
        left = max(total - step, 0) / speed
    return RunState(
        path=str(folder),
        state=state,
        step=step,
        total_steps=total,
        loss=_float(last.get("loss")),
        tokens_per_second=_float(last.get("tokens_per_second")),
        seconds_left=left,
        measured_seconds_ago=None if measured is None else max(now - measured, 0.0),
        saved_step=saved_step,
        saved_seconds_ago=None if saved is None else max(now - saved, 0.0),
        holder="" if holder is None else str(holder),
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """What the files of a run say; times are seconds since 1970."""

    folder: Path
    holder: Holder | None
    measured: float | None
    step: int
    saved_step: int | None
    total: int | None

    def state(self) -> str:
        if self.holder is not None:
            since = self.holder.seconds_since_epoch
            return RUNNING if (self.measured or 0) >= since else WAITING
        if self.total is not None and (self.saved_step or 0) >= self.total:
            return FINISHED
        # Whoever ends in order takes the lock's file away.
        if (self.folder / run_files.LOCK).exists():
            return CRASHED
        return self._told() or self._guessed()

    def _told(self) -> str | None:
        """Returns what the history says of the end; None where there is none."""
        last = _last_line(self.folder / run_files.HISTORY)
        if last.get("event") != "end":
            return None
        ends = {"done": FINISHED, "stopped": PREEMPTED}
        return ends.get(str(last.get("how")), STOPPED)

    def _guessed(self) -> str:
        """Returns how it ended, by what lies there."""
        event = _last_line(self.folder / run_files.EVENTS)
        if event.get("event") == "stop" and _int(event.get("step")) >= self.step:
            return STOPPED
        if not self.step:
            return NEW
        return PREEMPTED if self.saved_step == self.step else STOPPED


def _last_line(file: Path) -> dict[str, Any]:
    """Returns the last whole line of a file of JSON lines; {} where there is none.

    However long the file, only its end is read.
    """
    try:
        with file.open("rb") as lines:
            lines.seek(0, os.SEEK_END)
            lines.seek(max(lines.tell() - _TAIL_BYTES, 0))
            tail = lines.read(_TAIL_BYTES).split(b"\n")
    except OSError:
        return {}
    # What follows the last line end is half a line; what begins the tail may be.
    for line in reversed(tail[:-1]):
        if found := json_files.parse_line(line):
            return found
    return {}


def _newest_checkpoint(folder: Path) -> tuple[int | None, float | None]:
    """Returns the newest whole checkpoint, and when it was written."""
    with contextlib.suppress(OSError):
        if steps := run_files.saved_steps(folder):
            return steps[-1], _written(folder / str(steps[-1]))
    return None, None


def _total_steps(file: Path) -> int | None:
    """Returns TOTAL_STEPS of a run's config; None where it does not say."""
    try:
        text = run_files.read_config(file, errors="replace")
    except (OSError, ValueError):
        return None
    return run_files.total_steps(run_files.statements(text))


def _written(file: Path) -> float | None:
    """Returns when a file was last written; None where it is gone."""
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _int(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _float(value: Any) -> float | None:
    """Returns a finite number; JSON knows no others."""
    if type(value) not in (int, float) or not math.isfinite(value):
        return None
    return float(value)


def in_order(states: Sequence[RunState]) -> list[RunState]:
    """Returns runs as a person looks for them: by state, the liveliest first."""

    def quiet(run: RunState) -> tuple[int, float, str]:
        ago = run.measured_seconds_ago
        seconds = float("inf") if ago is None else ago
        return STATES.index(run.state), seconds, run.path

    return sorted(states, key=quiet)
