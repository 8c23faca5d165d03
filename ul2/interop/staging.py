"""A directory that grows beside its destination and takes its place when it is whole.

A conversion that is killed leaves it behind; the same command goes on where it stopped.
Another command, or one that fails, throws it away. The destination is not touched
before everything is there.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_PLAN: Final = ".plan.json"
_DONE: Final = ".done"


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
        done = self.directory / _DONE
        self._finished = set()
        if done.is_file():
            self._finished = set(done.read_text(errors="replace").splitlines())

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
