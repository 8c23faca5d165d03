"""Who watches over one of several processes: a parent that stays small.

When a process of a job dies, jax ends the others from inside its C++ runtime: with
SIGABRT, a stack trace, and no chance for Python to speak or to choose the exit code. So
`ul2 train` splits in two before anything is imported, where it is one of several:

    the child     trains; jax may abort it
    the parent    hands signals on to the child, and passes its standard error on; when
                  the child is gone it says in one line whom it lost and what to do, and
                  ends with the exit code that a scheduler can act on

The parent holds no device and imports no jax. It is killed -> the child is killed.
"""

import contextlib
import ctypes
import json
import mmap
import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ul2.cli.command import say
from ul2.exit_codes import RESTART
from ul2.run_files import CHECKPOINTS, saved_steps

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_NOTES_BYTES: Final = 1 << 20
_PR_SET_PDEATHSIG: Final = 1
# How a line of jax's runtime begins that tells of a death, and how it goes on.
_DEATH: Final = re.compile(
    rb"[EF]\d{4} .*(coordination_service|client\.h:\d+\] Terminating process)"
)
_LAST_WORDS: Final = re.compile(rb"F\d{4} .*client\.h:\d+\] Terminating process")
_DEATH_GOES_ON: Final = re.compile(
    rb"\s*$|\d+$|The tasks have crashed|RPC: /|\*\*\* Check failure|\s+@ |:UNKNOWN:"
    rb"|Additional GRPC error|/job:"
)


class Notes:
    """What the child has told the parent, in memory that both see."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _NOTES_BYTES)

    def write(self, **fields: Any) -> None:
        """Adds fields to what was told before."""
        text = json.dumps(self.read() | fields).encode()
        assert len(text) < _NOTES_BYTES
        self._memory.seek(0)
        self._memory.write(text + b"\0")

    def read(self) -> dict[str, Any]:
        """Returns all fields."""
        text = self._memory[:].split(b"\0", 1)[0]
        fields: dict[str, Any] = json.loads(text or b"{}")
        return fields


def split() -> Notes:
    """Splits this process; returns in the child, which is to do the work.

    Raises:
        SystemExit: in the parent, once the child has ended, with the exit code.
    """
    assert "jax" not in sys.modules and threading.active_count() == 1
    notes = Notes()
    readable, writable = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(readable)
        os.dup2(writable, sys.stderr.fileno())
        os.close(writable)
        # A Ctrl-C then reaches the parent alone, which hands it on.
        os.setpgid(0, 0)
        _die_with(parent)
        return notes
    os.close(writable)
    for number in _PASSED_ON:
        signal.signal(number, _handing_on_to(child))
    errors = _Errors(readable)
    status = os.waitpid(child, 0)[1]
    raise SystemExit(_end(os.waitstatus_to_exitcode(status), notes, errors))


def _handing_on_to(child: int) -> Any:
    """Returns a handler that sends a signal on."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    return hand_on


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent is gone (Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # It went before it could be asked.
            os.kill(os.getpid(), signal.SIGKILL)


class _Errors:
    """Passes the child's standard error on, but for jax's report of a death."""

    def __init__(self, readable: int) -> None:
        self.death = b""
        # Said after jax's last words: by threads of jax, torn in pieces, if it ended
        # the child; by the child, if that was faster.
        self.after = b""
        self._readable = readable
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits for what is still on its way; a grandchild may keep it open."""
        self._thread.join(timeout=2)

    def _pass_on(self) -> None:
        of_death = ended = False
        with open(self._readable, "rb", buffering=0) as stream:
            rest = b""
            while chunk := stream.read(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    of_death = bool(
                        _DEATH.match(line) or (of_death and _DEATH_GOES_ON.match(line))
                    )
                    ended = ended or bool(_LAST_WORDS.search(line))
                    if of_death:
                        self.death += line + b"\n"
                    elif ended:
                        self.after += line + b"\n"
                    else:
                        os.write(2, line + b"\n")
            if ended:
                self.after += rest
            else:
                os.write(2, rest)


def _end(code: int, notes: Notes, errors: _Errors) -> int:
    """Says what happened to the child, where it could not, and returns the exit code.

    Args:
        code: the child's exit code, or minus the signal that ended it.
        notes: what it said of itself.
        errors: what it wrote.
    """
    errors.wait()
    if code >= 0:
        os.write(2, errors.after)
        return code
    fields = notes.read()
    lost = _lost(errors.death.decode(errors="replace"), fields)
    if lost is None:
        os.write(2, errors.death + errors.after)
        lost = f"was ended by {signal.Signals(-code).name}" + {
            signal.SIGKILL: ", from outside: often the kernel, out of host memory",
            signal.SIGABRT: "; the lines above say why",
        }.get(signal.Signals(-code), "")
    say(f"error: {name(fields)} {lost}; {what_to_do(fields.get('model_dir'))}.")
    return RESTART


def _lost(death: str, fields: dict[str, Any]) -> str | None:
    r"""Returns whom a process lost, from jax's report; None where it tells no death.

    ... unhealthy (stopped sending heartbeats):\n1\n   ->   lost process 1 on b (...)
    """
    if "RegisterTask" in death:
        return (
            "did not meet all the others in time: look whether all run, and reach "
            "UL2_COORDINATOR"
        )
    hosts = dict(enumerate(fields.get("hosts", [])))
    if match := re.search(r"stopped sending heartbeats\):\n((?:.*\d+\n)+)", death):
        numbers = [int(n) for n in re.findall(r"(\d+)$", match[1], re.MULTILINE)]
        gone = ", ".join(f"{n} on {hosts.get(n, 'an unknown host')}" for n in numbers)
        return f"lost process {gone}: no sign of life any more"
    if "Failed to send RPC to coordination service" in death:
        return f"lost process 0 on {hosts.get(0, 'an unknown host')}: it has gone"
    if "JAX distributed service detected fatal errors" in death:
        return "lost another process"
    return None


def name(fields: dict[str, Any]) -> str:
    """Returns what a process is called, as far as it came to say so."""
    host = socket.gethostname()
    if "index" not in fields:
        return f"the process on {host}"
    return f"process {fields['index']} of {fields['count']} on {host}"


def what_to_do(model_dir: str | None) -> str:
    """Returns how a job goes on that has lost a process, for the end of a message."""
    from_where = "from its start"
    with contextlib.suppress(OSError):
        if model_dir and (steps := saved_steps(Path(model_dir, CHECKPOINTS))):
            from_where = f"from step {steps[-1]}"
    return f"start the job again, it goes on {from_where} (exit code {RESTART})"
