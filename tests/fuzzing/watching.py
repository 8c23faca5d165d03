"""One input, one reader, and whether what happened is allowed.

A reader may read the input, or refuse it by a `ValueError` of this package that is one
line. Everything else is a finding: another error, a message of several lines, a file
opened outside of the input, a program started, a pickle opened, too much memory, too
much time.
"""

import dataclasses
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ul2 import is_ours
from ul2.cli.command import explain

SECONDS = 30.0
# Of one input, all files of which are smaller than a megabyte, or sparse.
MEMORY_BYTES = 2**30
_MESSAGE = 2100
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen")
_FORBIDDEN = (*_STARTS, "pickle.find_class", "socket.connect", "ctypes.dlopen")
_MOVES = ("os.rename", "os.link", "os.symlink")
_CHANGES = ("os.remove", "os.mkdir", "os.rmdir", *_MOVES)


class TooSlow(BaseException):
    """An input took too long; no reader may swallow this."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a reader must not do, and did."""

    kind: str
    where: str
    detail: str


class Watch:
    """Notes what is opened and started while an input is read."""

    def __init__(self) -> None:
        self._seen: list[str] = []
        self._folder: str | None = None
        roots = [sys.prefix, sys.base_prefix, *sys.path, Path(__file__).parents[2]]
        self._free = tuple(os.path.realpath(root) for root in roots if root)
        self._free += ("/proc", "/sys", "/dev/null", "/dev/urandom", "/etc/mime.types")
        self._free += ("/usr/share/zoneinfo", "/usr/lib", "/usr/local/lib")
        sys.addaudithook(self._hook)

    @contextmanager
    def of(self, folder: Path) -> Iterator[list[str]]:
        """Yields the list of what was done that may not be."""
        self._seen, self._folder = [], os.path.realpath(folder)
        try:
            yield self._seen
        finally:
            self._folder = None

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self._folder is None:
            return
        if event in _FORBIDDEN:
            self._seen.append(f"{event} {args[:1]}")
        elif event == "open" or event in _CHANGES:
            for name in args[: 2 if event in _MOVES else 1]:
                self._check_path(event, name, self._folder)

    def _check_path(self, event: str, name: Any, folder: str) -> None:
        if isinstance(name, bytes):
            name = os.fsdecode(name)
        if not isinstance(name, str | os.PathLike):
            return  # a descriptor that is open already
        try:
            path = os.path.realpath(name)
        except ValueError:
            return  # of a zero byte: the call will refuse it
        free = self._free if event == "open" else ()
        if path != folder and not path.startswith((f"{folder}/", *free)):
            self._seen.append(f"{event} {path}")


def attempt(watch: Watch, read: Callable[[Path], None], folder: Path) -> Finding | str:
    """Reads an input; returns `read`, `refused`, or the finding."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error: BaseException | None = None
    with watch.of(folder) as seen, _alarm():
        try:
            read(folder)
        except (Exception, TooSlow) as caught:
            error = caught
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown * 1024 > MEMORY_BYTES:
        return Finding("memory", "", f"{grown / 1024:.0f} MiB more")
    if seen:
        return Finding("escape", seen[0].split()[0], "; ".join(seen[:3]))
    return "read" if error is None else _judge(error)


def _judge(error: BaseException) -> Finding | str:
    """Returns whether an error is one that may leave a reader."""
    text = str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.name}"
    shown = f"{type(error).__name__}: {text[:300]}"
    if not isinstance(error, ValueError) or not is_ours(error):
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/ul2/" in f.filename]
        if ours:
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return Finding("error", f"{type(error).__name__} {where}", shown)
    line, _ = explain(error) or ("", 0)
    if not text or len(line) > _MESSAGE or not line.isprintable():
        return Finding("message", where, repr(shown))
    return "refused"


@contextmanager
def _alarm() -> Iterator[None]:
    """Ends what takes too long, where Python can."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlow(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory(more: int = 3 * MEMORY_BYTES) -> None:
    """Lets the process have so many bytes more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Returns a folder in memory, where there is one."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="ul2-fuzz-", dir=place)
