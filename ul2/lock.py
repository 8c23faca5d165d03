"""`Lock`: one writer at a time, on one machine or on several that share storage.

    RUN/.lock     {"host": "a", "pid": 17, "since": "2026-11-22 10:00:00 UTC", ...}

On one machine the kernel keeps the lock (`flock`): it is free the moment its process is
gone, however that ended, so a start right after a kill finds it free. Between machines
that is not enough: some shared storage (object stores behind FUSE, some NFS) keeps such
locks on each machine alone. So the file also says who holds it, and the holder counts
up in it every two seconds. Who finds the record of another machine watches it:

    the count moves           the holder lives: refused, naming it
    it stands still for 90 s  the holder is dead: the lock is taken over

Clocks are not compared. A holder that finds another's record in its file (it was
suspended for longer than that) ends at once, before it can write anything more.

Limits: storage must show to one machine within 90 seconds what another wrote. Where it
keeps no locks between machines, two that begin in the same moment both get in; the one
that wrote its record first finds it replaced two seconds later, and ends.
"""

import calendar
import contextlib
import dataclasses
import enum
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ul2.exit_codes import USAGE

HEARTBEAT_SECONDS: Final = 2.0
# Longer than file systems trust what they remember of a file (NFS, gcsfuse: 60).
STALE_SECONDS: Final = 90.0
# A process that is killed frees its memory before its locks.
DYING_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.1
_READS: Final = 5
_SINCE: Final = "%Y-%m-%d %H:%M:%S UTC"


class _Kernel(enum.Enum):
    """What the kernel says of a lock; some file systems have none."""

    OURS, TAKEN, UNKNOWN = range(3)


class _Verdict(enum.Enum):
    """What to do about a lock."""

    TAKE, REFUSE, REPLACE, WAIT = range(4)


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        machine: its name differs from that of any other running kernel.
        host: what people call it.
        pid: of the process.
        since: when it took the lock.
        token: differs from that of any other holder.
        beats: how often it has said that it lives.
    """

    machine: str
    host: str
    pid: int
    since: str
    token: str
    beats: int = 0

    @property
    def seconds_since_epoch(self) -> float:
        """When it took the lock, by its own clock."""
        return float(calendar.timegm(time.strptime(self.since, _SINCE)))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


class Lock:
    """Keeps others away while it is entered.

    Args:
        path: the file that is the lock, in a directory that is there; the file is
            there only while somebody holds it.
        what: is written to, for messages.
        instead: what a person may do instead of waiting.
        machine: which this is.
        heartbeat: seconds between two signs of life.
        stale: seconds without one after which a holder elsewhere is dead.
        dying: seconds without one that a holder on this machine may take to end.
        end: ends this process, whose lock is another's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        what: str,
        instead: str,
        machine: str | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
        stale: float = STALE_SECONDS,
        dying: float = DYING_SECONDS,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self._path, self._what, self._instead = Path(path), what, instead
        self._heartbeat, self._stale, self._dying = heartbeat, stale, dying
        self._end = end
        self._mine = Holder(
            machine or _this_machine(),
            socket.gethostname(),
            os.getpid(),
            time.strftime(_SINCE, time.gmtime()),
            uuid.uuid4().hex,
        )
        self._file: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Self:
        """Takes the lock.

        Raises:
            ValueError: another process holds it, or it cannot be made.
        """
        try:
            self._acquire()
        except OSError as error:
            raise ValueError(
                f"cannot write {self._path}: {error.strerror}; {self._instead}."
            ) from None
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        # Still locked: whoever has opened it meanwhile will see that it is gone.
        with contextlib.suppress(OSError):
            holder = _read(self._path)
            if holder is not None and holder.token == self._mine.token:
                self._path.unlink()
        self._close()

    def _acquire(self) -> None:
        """Waits until nobody else holds the lock, and takes it; or refuses."""
        seen, since = None, time.monotonic()
        while True:
            kernel = self._open()
            holder = _read(self._path)
            if holder is not None and (seen is None or holder.token != seen.token):
                seen, since = holder, time.monotonic()
                self._tell(holder)
            moved = holder is not None and holder != seen
            match self._judge(kernel, holder, moved, time.monotonic() - since):
                case _Verdict.TAKE:
                    return self._write()
                case _Verdict.REFUSE:
                    self._close()
                    raise ValueError(self._refusal(holder))
                case _Verdict.REPLACE:
                    # The server keeps the lock that a dead machine has on this file.
                    self._path.unlink(missing_ok=True)
            self._close()
            time.sleep(_LOOK_SECONDS)

    def _judge(
        self, kernel: _Kernel, holder: Holder | None, moved: bool, still: float
    ) -> _Verdict:
        """Returns what to do about a lock.

        Args:
            kernel: what it says.
            holder: who says to hold it.
            moved: whether the holder has given a sign of life.
            still: for how many seconds it has given none.
        """
        here = holder is None or holder.machine == self._mine.machine
        if here and kernel is _Kernel.OURS:
            return _Verdict.TAKE
        if holder is None and kernel is _Kernel.UNKNOWN:
            return _Verdict.TAKE
        if moved:
            return _Verdict.REFUSE
        if here and kernel is _Kernel.TAKEN:
            # It lives, though it may be suspended, until this kernel has ended it.
            return _Verdict.REFUSE if still >= self._dying else _Verdict.WAIT
        if still < self._stale:
            return _Verdict.WAIT
        return _Verdict.REPLACE if kernel is _Kernel.TAKEN else _Verdict.TAKE

    def _tell(self, holder: Holder) -> None:
        """Says why nothing happens for a while."""
        if holder.machine != self._mine.machine:
            _say(
                f"{self._what} was left by, or is in use by, {holder}; looking for up "
                f"to {self._stale:g} seconds whether that still lives."
            )

    def _refusal(self, holder: Holder | None) -> str:
        return (
            f"{self._what} is in use by {holder or 'another process'}; wait for it or "
            f"end it, or {self._instead}."
        )

    def _open(self) -> _Kernel:
        """Opens the file, and asks the kernel for its lock."""
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                kernel = _Kernel.OURS
            except BlockingIOError:
                kernel = _Kernel.TAKEN
            except OSError:
                kernel = _Kernel.UNKNOWN
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), self._path.stat()):
                    return kernel
            # Its holder has just given it back.
            self._close()

    def _close(self) -> None:
        assert self._file is not None
        os.close(self._file)
        self._file = None

    def _write(self) -> None:
        """Writes who holds the lock."""
        # Anew by name each time: other machines see what was closed.
        file = os.open(self._path, os.O_WRONLY)
        try:
            content = json.dumps(dataclasses.asdict(self._mine)).encode()
            os.pwrite(file, content + b"\n", 0)
            os.ftruncate(file, len(content) + 1)
        finally:
            os.close(file)

    def _live(self) -> None:
        """Gives signs of life until the lock is given back or lost."""
        while not self._over.wait(self._heartbeat):
            # What is not there for a moment may come back.
            with contextlib.suppress(OSError):
                holder = _read(self._path)
                if holder is not None and holder.token != self._mine.token:
                    _say(
                        f"error: {self._what} was taken over by {holder}, for this "
                        f"process had stood still: it ends (exit code {USAGE}), "
                        "so that one alone writes."
                    )
                    self._end(USAGE)
                    return
                self._mine = dataclasses.replace(self._mine, beats=self._mine.beats + 1)
                self._write()


def living_holder(path: str | os.PathLike[str]) -> Holder | None:
    """Returns who holds a lock, by a look at it that keeps nobody from taking it.

    A holder on another machine lives while its file was written lately, by the clock of
    the storage; `Lock` itself compares no clocks.

    Args:
        path: the file that is the lock.

    Returns:
        The holder; None where nobody does, or whoever did is gone.
    """
    holder = _read(Path(path))
    if holder is None:
        return None
    with contextlib.suppress(OSError):
        if holder.machine == _this_machine():
            return holder if _is_locked(path) else None
        if time.time() - os.stat(path).st_mtime < STALE_SECONDS:
            return holder
    return None


def _is_locked(path: str | os.PathLike[str]) -> bool:
    """Returns whether the kernel keeps a lock on a file.

    Raises:
        OSError: it cannot tell.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _this_machine() -> str:
    """Returns what no other running kernel is called."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else socket.gethostname()


def _read(path: Path) -> Holder | None:
    """Returns who says to hold a lock; None where nobody does."""
    for _ in range(_READS):
        try:
            content = path.read_bytes()
            return Holder(**json.loads(content)) if content else None
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, RecursionError):  # It is just being written.
            time.sleep(_LOOK_SECONDS)
    return None


def _say(text: str) -> None:
    """Writes to standard error, past everything that holds a lock."""
    os.write(2, f"{text}\n".encode())
