"""When a run started, saved and ended: what its measurements do not say.

    MODEL_DIR/history.jsonl    {"event": "start", "step": 400, "time": 1763800000.1,
                                "host": "gpu003", "processes": 2, "devices": 16, ...}
                               {"event": "save", "step": 600, "time": ..., ...}
                               {"event": "end", "step": 800, "how": "done", ...}

Lines are added and never changed, by the first process. A start that follows no end is
one after a kill. Times are those of the clock on the wall, in seconds since 1970.
"""

import contextlib
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jax

from ul2.run_files import HISTORY
from ul2.training.metrics import device_memory
from ul2.training.writers import JsonLines

START, SAVE, END = "start", "save", "end"
DONE, STOPPED = "done", "stopped"
# macOS counts in bytes what Linux counts in KiB (getrusage(2)).
_RSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024


class History:
    """The history of a run; the first process alone writes it.

    Args:
        model_dir: of the run.
    """

    def __init__(self, model_dir: str | Path) -> None:
        self._lines: JsonLines | None = None
        if jax.process_index() == 0:
            path = Path(model_dir) / HISTORY
            self._lines = JsonLines(path, restored_step=sys.maxsize)

    @contextlib.contextmanager
    def of_run(self, step: Callable[[], int]) -> Iterator["Ending"]:
        """Notes the start, and however it ends, the end.

        Args:
            step: returns how many updates are done.
        """
        self._add(
            START,
            step(),
            host=socket.gethostname(),
            processes=jax.process_count(),
            devices=jax.device_count(),
            device_kind=jax.devices()[0].device_kind,
        )
        ending = Ending()
        try:
            yield ending
        except BaseException as error:
            self._add(END, step(), how=type(error).__name__)
            raise
        else:
            self._add(END, step(), how=STOPPED if ending.stopped else DONE)
        finally:
            if self._lines is not None:
                self._lines.close()

    def saved(self, step: int, error: str | None) -> None:
        """Notes what became of a save."""
        self._add(SAVE, step, **({"error": error} if error else {}))

    def _add(self, event: str, step: int, **more: Any) -> None:
        if self._lines is None:
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
        line = {"event": event, "step": step, "time": time.time(), **more}
        memory = {"host_memory_bytes": peak, "device_memory_bytes": device_memory()}
        self._lines.write(line | memory)


class Ending:
    """How a run ended, where no error did.

    Attributes:
        stopped: whether a signal did, before all updates were done.
    """

    stopped = False
