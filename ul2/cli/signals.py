"""What a command does when it is asked to end (SIGTERM).

A scheduler that takes a machine back sends SIGTERM, and SIGKILL some seconds later. The
loop of training listens for it itself, saves, and leaves (`ul2.training.preemption`).
Everything else has nothing to save that is not saved, so it ends at once, with the exit
code that says so: a command before its first update, one that tokenizes, converts or
answers. Those write under other names until they are done.

Python runs a signal's handler between two of its own instructions, and a compiler may
take minutes for one. So a thread waits for the signals, too; it is told at once.
"""

import os
import signal
import threading
from types import FrameType
from typing import Final

from ul2.exit_codes import RESTART

_LINE: Final = (
    f"stopped by SIGTERM; start the same command again (exit code {RESTART}).\n"
)


def listen() -> None:
    """Ends this process at once on SIGTERM, until something else listens for it."""
    signal.signal(signal.SIGTERM, _end)


def listen_while_compiling() -> None:
    """Does the same whatever the main thread is doing; it must not fork any more.

    Does nothing in a process that is not the command's alone.
    """
    if signal.getsignal(signal.SIGTERM) is not _end:
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(readable,), daemon=True).start()


def ignore() -> None:
    """Makes SIGTERM harmless: what was to be done is done."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, _LINE.encode())
    os._exit(RESTART)


def _watch(readable: int) -> None:
    """Ends this process on a signal that nobody else listens for by now."""
    while numbers := os.read(readable, 1):
        if numbers[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is _end:
            _end(signal.SIGTERM, None)
