"""`RunRecord`: what the files of a run say, whatever state they are in.

A run may still be at work, have been killed, or gone on; its last line may be half a
one, its numbers may be none. What cannot be read is left out and counted.
"""

import bisect
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ul2 import json_files, run_files

# Of a measurement; what else there is has no chart.
_SHOWN: Final = frozenset(
    {
        *("loss", "accuracy", "z_loss", "learning_rate", "grad_norm", "param_norm"),
        *("padding_fraction", "tokens_per_second", "examples_per_second"),
        *("steps_per_second", "data_wait_fraction", "mfu", "device_memory_bytes"),
        *("target_tokens", "unigram_entropy", "sequence_accuracy"),
    }
)
# Below these everything has a name of its own.
_GROUPS: Final = ("denoisers", "modes", "sources")
_MOST_EVENTS: Final = 20_000
_MOST_SAMPLED: Final = 400
_LONGEST_NAME: Final = 120
# Of steps, and of what is shown as a whole number.
_LARGEST: Final = 2**53
_NUMBER_NAMES: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

Name = tuple[str, ...]


class Column:
    """One quantity over steps: rising steps, and a value of each."""

    __slots__ = ("steps", "values")

    def __init__(self) -> None:
        self.steps, self.values = array("d"), array("d")

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, value: float) -> None:
        """Adds a value; it takes the place of what there was from its step on."""
        if self.steps and self.steps[-1] >= step:
            keep = bisect.bisect_left(self.steps, step)
            del self.steps[keep:], self.values[keep:]
        self.steps.append(step)
        self.values.append(value)

    def scaled(self, factor: float) -> "Column":
        """Returns the same in another unit."""
        found = Column()
        found.steps.extend(self.steps)
        found.values.extend(value * factor for value in self.values)
        return found

    def less(self, other: "Column") -> "Column":
        """Returns by how much it is more than another, where both were measured."""
        found, others = Column(), dict(zip(other.steps, other.values, strict=True))
        for step, value in zip(self.steps, self.values, strict=True):
            if step in others:
                found.steps.append(step)
                found.values.append(value - others[step])
        return found

    @property
    def last(self) -> float:
        """The newest finite value; NaN where there is none."""
        return next((v for v in reversed(self.values) if math.isfinite(v)), math.nan)

    def lowest(self) -> tuple[float, float] | None:
        """Returns the lowest finite value and its step."""
        pairs = zip(self.values, self.steps, strict=True)
        return min((p for p in pairs if math.isfinite(p[0])), default=None)


class Columns(dict[Name, Column]):
    """The numbers of a file of measurements, by their names.

    {"step": 2, "loss": 3.5, "denoisers": {"r": {"loss": 3.1}}}

    is a value of ("loss",) and one of ("denoisers", "r", "loss").
    """

    def __init__(self) -> None:
        super().__init__()
        self.last_step, self.num_lines = -1, 0

    def add(self, step: int, line: dict[str, Any]) -> None:
        """Adds a line; a step that comes again is one that was made again."""
        if step <= self.last_step:
            self._forget(step)
        self.last_step = step
        self.num_lines += 1
        self._take(step, line, ())

    def _take(self, step: int, line: dict[str, Any], place: Name) -> None:
        """Takes the numbers of a line that are shown; JSON has no other types."""
        for name, value in line.items():
            kind = type(value)
            if kind is dict:
                if _is_known(name, place):
                    self._take(step, value, (*place, name[:_LONGEST_NAME]))
            elif name not in _SHOWN:
                continue
            elif kind is float:
                self._put(step, (*place, name), value)
            elif kind is int or (kind is str and value in _NUMBER_NAMES):
                self._put(step, (*place, name), as_number(value))
            elif value is None and name == "loss":
                # All updates of the line were left out.
                self._put(step, (*place, name), math.nan)

    def _put(self, step: int, name: Name, value: float) -> None:
        column = self.get(name)
        if column is None:
            column = self[name] = Column()
        column.steps.append(step)
        column.values.append(value)

    def _forget(self, step: int) -> None:
        """Drops what was measured at a step or after it."""
        for column in self.values():
            keep = bisect.bisect_left(column.steps, step)
            del column.steps[keep:], column.values[keep:]

    def of(self, *name: str) -> Column:
        """Returns a quantity; an empty one where it was never measured."""
        return self.get(name) or Column()

    def groups(self, group: str, quantity: str = "loss") -> list[str]:
        """Returns the names below a group that have a quantity, in their order."""
        return [
            name[1]
            for name, column in self.items()
            if len(name) == 3 and name[0] == group and name[2] == quantity and column
        ]


def as_number(value: Any) -> float:
    """Returns a number of a JSON file, that is no number where it is none."""
    if isinstance(value, str):
        return _NUMBER_NAMES.get(value, math.nan)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _read(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields steps and contents of a file's lines, those whose step can be one."""
    for step, _, line in run_files.read_measurements(file):
        if 0 <= step < _LARGEST:
            yield step, line


def _is_known(name: str, place: Name) -> bool:
    """Returns whether what stands below a name is looked at: ("modes", "R", ...)."""
    return len(place) < 4 and (len(place) % 2 == 1 or name in _GROUPS)


class RunRecord:
    """A run as its files tell of it.

    Args:
        path: of the run's directory.
        name: what it is called in the report.

    Raises:
        ValueError: there is no run.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        known = (run_files.CONFIG, run_files.METRICS, run_files.HISTORY)
        if not any((path / file).is_file() for file in known):
            raise ValueError(
                f"{path} holds no run: none of {', '.join(known)} is there; name the "
                "MODEL_DIR of one."
            )
        self.unread: dict[str, str] = {}
        self.metrics = self._read_columns(run_files.METRICS)
        self.samples: list[tuple[int, list[dict[str, Any]]]] = []
        self.evaluations = self._read_columns(run_files.EVALUATIONS)
        self.events = self._read_lines(run_files.EVENTS)
        self.history = self._read_lines(run_files.HISTORY)
        self.best = self._read_best()
        self.config = self._read_config()

    @property
    def step(self) -> int:
        """Updates done, as far as is known."""
        steps = [line["step"] for line in self.history if line["event"] != "start"]
        last = self.metrics.last_step, self.evaluations.last_step
        return max(*last, 0, *map(int, steps))

    @property
    def total_steps(self) -> int | None:
        """Updates that were asked for; None where the config does not say."""
        return run_files.total_steps(self.config)

    @property
    def host_memory(self) -> Column:
        """The most that the first process held, when something happened to it."""
        column = Column()
        for line in self.history:
            value = as_number(line.get("host_memory_bytes"))
            if math.isfinite(value):
                column.add(line["step"], value)
        return column

    def seconds(self) -> float | None:
        """Returns how long the run has been at work; None where nothing says so."""
        total, since, seen = 0.0, None, False
        last = 0.0
        for line in self.history:
            now = as_number(line.get("time"))
            if not math.isfinite(now):
                continue
            if line["event"] == "start":
                # One that was killed worked for as long as it told of itself.
                total += last - since if since is not None else 0.0
                since, seen = now, True
            last = now
            if line["event"] == "end" and since is not None:
                total, since = total + now - since, None
        if since is not None:
            total += last - since
        return total if seen else None

    def _read_columns(self, file: str) -> Columns:
        columns = Columns()
        try:
            for step, line in _read(self.path / file):
                columns.add(step, line)
                self._keep_samples(step, line.get("samples"))
        except OSError as error:
            self.unread[file] = str(error.strerror)
        return columns

    def _keep_samples(self, step: int, samples: Any) -> None:
        """Keeps what was decoded; every other, where there is too much."""
        if not isinstance(samples, list):
            return
        sound = [one for one in samples if isinstance(one, dict)]
        self.samples = [one for one in self.samples if one[0] < step]
        self.samples.append((step, sound))
        if len(self.samples) > _MOST_SAMPLED:
            self.samples = [*self.samples[:-1:2], self.samples[-1]]

    def _read_lines(self, file: str) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        try:
            for _, line in _read(self.path / file):
                if isinstance(line.get("event"), str):
                    lines.append(line)
        except OSError as error:
            self.unread[file] = str(error.strerror)
        if len(lines) > _MOST_EVENTS:
            self.unread[file] = f"the first {len(lines) - _MOST_EVENTS:,} lines"
        return lines[-_MOST_EVENTS:]

    def _read_best(self) -> dict[str, Any]:
        try:
            return json_files.read_object(self.path / run_files.BEST)
        except (OSError, ValueError):
            return {}

    def _read_config(self) -> dict[str, str]:
        """Returns what is set in the config, macros in their place."""
        try:
            text = run_files.read_config(self.path / run_files.CONFIG)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.unread[run_files.CONFIG] = str(error)
            return {}
        return run_files.values(run_files.statements(text))


def read_runs(paths: Sequence[str]) -> list[RunRecord]:
    """Reads runs, each under a name of its own.

    Raises:
        ValueError: one is none, or is named twice.
    """
    folders = [Path(path) for path in paths]
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise ValueError(f"{paths[number]} is named twice.")
    short = [folder.name or str(folder) for folder in resolved]
    names = [
        one if short.count(one) == 1 else str(folder)
        for one, folder in zip(short, folders, strict=True)
    ]
    return [RunRecord(f, n) for f, n in zip(folders, names, strict=True)]
