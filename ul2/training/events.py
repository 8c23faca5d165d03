"""What happened to a run besides its updates, and which batches it passes over.

    MODEL_DIR/events.jsonl          a line per event: skip, spike, rollback, stop
    MODEL_DIR/passed_batches.json   the batches that roll-backs left out

Lines are added and never changed. A run that is started again makes the updates after
its last checkpoint once more, and meets what it met before: an event that is noted
already is not noted twice.

A roll-back is a fact about the run, like its seed: from where the checkpoint stood in
the data, go on there instead. Whoever starts the run again, from whichever checkpoint,
comes by that place and passes over the same batches.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from jax.experimental import multihost_utils

from ul2 import json_files
from ul2.batch import Batch
from ul2.run_files import EVENTS, read_measurements
from ul2.training import run_directory
from ul2.training.checkpoints import Batches
from ul2.training.writers import JsonLines

PASSED: Final = "passed_batches.json"
SKIPPED, SPIKE, ROLLED_BACK, STOPPED = "skip", "spike", "rollback", "stop"

Position = Mapping[str, Any]


class Events:
    """The events of a run; the first process alone writes them.

    Args:
        model_dir: of the run.
    """

    def __init__(self, model_dir: str | Path) -> None:
        self._known: set[tuple[Any, ...]] = set()
        self._lines: JsonLines | None = None
        if jax.process_index() == 0:
            path = Path(model_dir) / EVENTS
            self._lines = JsonLines(path, restored_step=sys.maxsize)
            self._known |= {_identity(event) for *_, event in read_measurements(path)}

    def add(self, event: Mapping[str, Any]) -> None:
        """Appends an event: `event`, `step`, `batch`, and what else there is to say."""
        if self._lines is not None and _identity(event) not in self._known:
            self._known.add(_identity(event))
            self._lines.write(event)

    def close(self) -> None:
        """Makes sure that all of them are written."""
        if self._lines is not None:
            self._lines.close()


def _identity(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what two events have in common that are one."""
    batch = json.dumps(event.get("batch"), sort_keys=True)
    return str(event.get("event")), event["step"], batch


@dataclasses.dataclass(frozen=True)
class Jump:
    """Batches that are passed over, since a roll-back.

    Attributes:
        step: of the checkpoint that the run went back to.
        start: its position in the data.
        end: where the data go on from there.
        times: that the run went back to it.
    """

    step: int
    start: dict[str, Any]
    end: dict[str, Any]
    times: int

    def to_event(self) -> dict[str, Any]:
        """Returns it as an event of the first update after it."""
        number = batch_number(self.end)
        batch = self.end if number is None else number
        return {"event": ROLLED_BACK, "step": self.step, "batch": batch}


class PassedBatches:
    """A run's batches, without those that its roll-backs left out.

    Args:
        batches: all of them.
        model_dir: of the run.

    Raises:
        ValueError: what is written there is damaged.
    """

    def __init__(self, batches: Batches, model_dir: str | Path) -> None:
        self._batches = batches
        self._model_dir = Path(model_dir)
        self._jumps = _read(self._model_dir / PASSED)
        self.read_from: Position = {}
        self.jumped: list[dict[str, Any]] = []

    def __next__(self) -> Batch:
        """Returns the next batch.

        `read_from` then says where it stands, and `jumped` which roll-backs left out
        the batches before it, as events.
        """
        self.read_from, self.jumped = self._batches.position(), []
        # One may end where another begins, but there are no more than that.
        for _ in self._jumps:
            jump = self._jump_from(self.read_from)
            if jump is None:
                break
            self._batches.seek(jump.end)
            self.read_from = jump.end
            self.jumped.append(jump.to_event())
        return self._batches.__next__()

    def rollbacks(self, step: int) -> int:
        """Returns how often the run had gone back by the time of an update."""
        return sum(jump.times for jump in self._jumps if jump.step < step)

    def position(self) -> dict[str, Any]:
        """Returns where the next batch starts, as JSON values."""
        return self._batches.position()

    def seek(self, position: dict[str, Any]) -> None:
        """Goes to a place that `position` returned."""
        self._batches.seek(position)

    def pass_over(self, step: int, end: dict[str, Any]) -> int:
        """Leaves out the batches from here to `end`, now and whenever it starts again.

        Call it once the checkpoint is restored.

        Args:
            step: of the checkpoint.
            end: where the data go on.

        Returns:
            How many times the run has gone back to this checkpoint.
        """
        start = self._batches.position()
        before = self._jump_from(start)
        jump = Jump(step, start, end, before.times + 1 if before else 1)
        kept = [one for one in self._jumps if one != before]
        self._jumps = [*kept, jump]
        lines = [dataclasses.asdict(one) for one in self._jumps]
        content = json.dumps(lines, indent=1) + "\n"
        run_directory.keep(self._model_dir, PASSED, content.encode())
        return jump.times

    def _jump_from(self, position: Position) -> Jump | None:
        return next((jump for jump in self._jumps if jump.start == position), None)


def _read(path: Path) -> list[Jump]:
    """Reads what is passed over; all hosts what the first one sees.

    Raises:
        ValueError: it is damaged.
    """
    content = np.frombuffer(path.read_bytes() if path.is_file() else b"", np.uint8)
    if jax.process_count() > 1:
        size = multihost_utils.broadcast_one_to_all(np.asarray(content.size))
        same = np.zeros(int(size), np.uint8)
        if jax.process_index() == 0:
            same[:] = content
        content = np.asarray(multihost_utils.broadcast_one_to_all(same))
    if not content.size:
        return []
    try:
        jumps = [Jump(**fields) for fields in json_files.parse(content.tobytes())]
        sound = all(_is_sound(jump) for jump in jumps)
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise ValueError(
            f"{path} is damaged, so which batches the run passes over is not known; "
            "copy it from a backup, or start in a new MODEL_DIR."
        )
    return jumps


def _is_sound(jump: Jump) -> bool:
    counts = (jump.step, jump.times)
    return all(type(n) is int and n >= 0 for n in counts) and all(
        isinstance(place, dict) for place in (jump.start, jump.end)
    )


def batch_number(position: Position) -> int | None:
    """Returns the number of a batch, as `ul2 inspect --step` takes it, or None."""
    number = position.get("batch")
    return number if isinstance(number, int) else None


def shown_rows(rows: Sequence[int]) -> str:
    """Returns rows for a person; none are all."""
    if not rows:
        return ""
    some = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    return f", in row{'s' if len(rows) > 1 else ''} {some}"
