"""A directory that grows beside its destination and takes its place when it is whole.

A conversion that is killed leaves it behind; the same command goes on where it stopped.
Another command, or one that fails, throws it away. The destination is not touched
before everything is there. Two conversions to one place are kept apart by a lock.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ul2.lock import Lock

_PLAN: Final = ".plan.json"
_DONE: Final = ".done"


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keeps other conversions away from a destination.

    Raises:
        ValueError: another one writes to it, or it cannot be written to.
    """
    beside = out.absolute().parent
    try:
        beside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}.") from None
    path = beside / f".{out.name}.lock"
    with Lock(path, what=str(out), instead="choose another --out"):
        yield


class Staging:
    """Where a conversion writes.

    Attributes:
        directory: the directory to write into.
        resumed: whether an earlier attempt had begun it.
    """

    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        """Begins, or goes on.

        Args:
            out: the destination.
            plan: JSON values that say what is converted to what; one that was begun
                under another plan is thrown away.

        Raises:
            ValueError: the destination exists or cannot be made.
        """
        self._out = out
        self.directory = out.absolute().parent / f".{out.name}.partial"
        if os.path.lexists(out):
            raise ValueError(f"{out} exists; choose another --out or remove it.")
        text = json.dumps(plan, sort_keys=True, default=str)
        kept = self.directory / _PLAN
        self.resumed = kept.is_file() and kept.read_bytes() == text.encode()
        try:
            if not self.resumed:
                shutil.rmtree(self.directory, ignore_errors=True)
                self.directory.mkdir(parents=True)
                kept.write_text(text)
        except OSError as error:
            raise ValueError(f"cannot write to {out}: {error.strerror}.") from None
        self._finished = set(_whole_lines(self.directory / _DONE))

    def once(self, name: str, write: Callable[[], None]) -> None:
        """Calls `write` unless it has returned before; then notes that it has."""
        if name in self._finished:
            return
        write()
        with (self.directory / _DONE).open("a") as done:
            done.write(f"{name}\n")
            done.flush()
            os.fsync(done.fileno())
        self._finished.add(name)

    def commit(self) -> None:
        """Puts the directory in its place."""
        (self.directory / _PLAN).unlink()
        (self.directory / _DONE).unlink(missing_ok=True)
        self.directory.rename(self._out)

    def discard(self) -> None:
        """Throws away what was written."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _whole_lines(file: Path) -> list[str]:
    """Returns the lines of a file, and cuts off what a dying machine left of one.

    Half a name can be the whole name of another array.
    """
    if not file.is_file():
        return []
    lines = file.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    os.truncate(file, sum(map(len, whole)))
    return [line.decode(errors="replace").rstrip("\n") for line in whole]
