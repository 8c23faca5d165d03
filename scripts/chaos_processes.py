"""Processes that are forked, watched and killed by scripts/chaos.py."""

import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.001


def fork(work: Callable[[], int], log: Path) -> int:
    """Starts a process that has imported everything already; returns its number."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        # No thread and no device is in use before the fork.
        warnings.simplefilter("ignore", RuntimeWarning)
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = work()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what a function returns in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"

        def write() -> int:
            result.write_text(json.dumps(work()))
            return 0

        status = os.waitpid(fork(write, log), 0)[1]
        if status:
            raise SystemExit(f"reading a result failed:\n{log.read_text()}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def finish(child: int, deadline: float) -> int | None:
    """Waits for a command; returns its exit code, None if it took too long."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    return None


def end(child: int) -> bool:
    """Kills a process; returns whether it was still there to be killed.

    Raises:
        SystemExit: something that it had started lives on.
    """
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    deadline = time.monotonic() + 20
    while is_alive(child):
        if time.monotonic() > deadline:
            raise SystemExit(f"what process {child} had started outlives it.")
        time.sleep(0.02)
    return os.WIFSIGNALED(status)


def is_alive(group: int) -> bool:
    """Returns whether a group of processes has one that is not over."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                stat = Path("/proc", name, "stat").read_text()
            except OSError:
                continue
            state, _, of_group = stat.rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                return True
    return False
