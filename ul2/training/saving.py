"""One checkpoint on its way to the disk.

    1000.partial0/    written by all processes, summed by each what it wrote itself
    1000/             the same, renamed by process 0 when it is whole
    1000.deleting/    an old one, renamed before its files go one by one

A checkpoint has its name only while it is whole: before anything of it is there, and
before anything of it is removed, it is called otherwise. So wherever a kill falls,
what is called by a number can be read.

After each stage the processes tell each other how it went, and a failure of one is a
failure of all: the same processes try again, or none.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from ul2.sharding.processes import Exchange
from ul2.training import integrity

PARTIAL, DELETING = ".partial", ".deleting"
# A name that means "not whole", ours or that of orbax's manager, which wrote before.
_LEFTOVER: Final = re.compile(
    rf"\d+({re.escape(PARTIAL)}|{re.escape(DELETING)}|\.orbax-checkpoint-tmp).*"
)
_LONGEST: Final = 300


class Attempt:
    """Tries once to write a checkpoint; a thread writes on when the state is copied.

    Args:
        folder: the checkpoint, which is not there yet.
        number: of the attempts at it.
        trees: arrays by the name of their item.
        are_copies: nobody else writes over the arrays before the thread has ended, so
            that it may read them; else they are copied before this returns.
        texts: JSON values by the name of their item.
        exchange: where all processes tell how it goes.
        thread: writes on; one that runs already, for starting one may take a while.
        then: called by the thread of process 0 when the checkpoint is there.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        trees: Mapping[str, Any],
        texts: Mapping[str, Any],
        exchange: Exchange,
        thread: Executor,
        then: Callable[[], None],
        *,
        are_copies: bool = False,
    ) -> None:
        self._folder = folder
        self._partial = folder.with_name(f"{folder.name}{PARTIAL}{number}")
        self._texts, self._exchange, self._then = texts, exchange, then
        self._is_first = jax.process_index() == 0
        # Weights hardly get smaller: zstd would take four times the work for 8 %.
        self._handlers = {
            name: ocp.PyTreeCheckpointHandler(use_compression=False) for name in trees
        }
        self._futures: list[Any] = []
        # What went wrong, the same in all processes once the thread has ended.
        self.error: str | None = None
        with self._catching():
            if self._is_first:
                self._make_folders()
        self._agree()
        if self.error is None and not are_copies:
            # Another thread, for this one may run an event loop, as notebooks do.
            with self._catching(), ThreadPoolExecutor(1) as pool:
                pool.submit(self._begin, trees).result()
        unbegun = trees if are_copies else None
        self._writing = thread.submit(self._write, unbegun)

    def is_running(self) -> bool:
        """Returns whether this process is still writing."""
        return not self._writing.done()

    def wait(self) -> None:
        """Waits until the checkpoint is there, or `error` says why it is not."""
        self._writing.result()

    def _make_folders(self) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._partial.mkdir()
        for name in (*self._handlers, *self._texts):
            (self._partial / name).mkdir()

    def _begin(self, trees: Mapping[str, Any]) -> None:
        """Copies what an accelerator holds to the host, and begins to write."""

        async def begin() -> None:
            for name, handler in self._handlers.items():
                args = ocp.args.PyTreeSave(trees[name])
                folder = epath.Path(self._partial / name)
                self._futures += await handler.async_save(folder, args=args) or []

        asyncio.run(begin())

    def _write(self, unbegun: Mapping[str, Any] | None) -> None:
        """Writes on until the checkpoint is there, or somebody has failed."""
        try:
            sums: dict[str, Any] = {}
            with self._catching():
                if unbegun is not None and self.error is None:
                    self._begin(unbegun)
                for future in self._futures:
                    future.result()
                sums = integrity.sum_files(self._partial, self._mine())
            for answer in self._agree(sums):
                sums |= answer
            if self._is_first and self.error is None:
                with self._catching():
                    self._commit(sums)
            self._agree()
            if self._is_first and self.error is None:
                self._then()
        except Exception as error:  # Nobody else looks at what a thread raises.
            self.error = one_line(error)
        finally:
            self._close()

    def _mine(self) -> list[str]:
        """Returns the files that this process alone wrote: its part of the arrays."""
        own = f"ocdbt.process_{jax.process_index()}"
        return [
            file.relative_to(self._partial).as_posix()
            for name in self._handlers
            for file in sorted((self._partial / name / own).rglob("*"))
            if file.is_file()
        ]

    def _commit(self, sums: dict[str, Any]) -> None:
        """Joins the parts, writes the rest and the list, and gives it its name."""
        for name, handler in self._handlers.items():
            handler.finalize(epath.Path(self._partial / name))
        for name, value in self._texts.items():
            (self._partial / name / "metadata").write_text(json.dumps(value))
        # So that orbax's own tools can open it.
        types = {name: one.typestr() for name, one in self._handlers.items()}
        types |= {name: ocp.JsonCheckpointHandler.typestr() for name in self._texts}
        metadata = json.dumps({"item_handlers": types})
        (self._partial / "_CHECKPOINT_METADATA").write_text(metadata)
        there = integrity.files_of(self._partial)
        if missing := sorted(set(sums) - set(there)):
            raise OSError(f"{missing[0]} is gone, which another process wrote")
        rest = [name for name in there if name not in sums]
        sums = sums | integrity.sum_files(self._partial, rest)
        integrity.write_list(self._partial, sums)
        self._partial.rename(self._folder)
        with contextlib.suppress(OSError):  # It is there; a sync more is for luck.
            integrity.sync_folder(self._folder.parent)

    @contextlib.contextmanager
    def _catching(self) -> Iterator[None]:
        """Keeps what goes wrong inside, for all to be told."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise of every kind
            several = jax.process_count() > 1
            who = f"process {jax.process_index()}: " if several else ""
            self.error = who + one_line(error)

    def _agree(self, sums: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Tells the others how it went; a failure of one is that of all from here."""
        message = json.dumps({"error": self.error, "sums": sums or {}})
        answers = [json.loads(answer) for answer in self._exchange(message)]
        errors = [answer["error"] for answer in answers if answer["error"]]
        self.error = errors[0] if errors else None
        return [answer["sums"] for answer in answers]

    def _close(self) -> None:
        """Waits for what is still being written, and removes what is not whole."""
        for future in self._futures:
            with contextlib.suppress(Exception):
                future.result()
        self._futures.clear()
        for handler in self._handlers.values():
            handler.close()
        if self._is_first and self.error is not None:
            shutil.rmtree(self._partial, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes a checkpoint, so that it is never there in part.

    Raises:
        OSError: some of it is left, under another name.
    """
    doomed = folder.with_name(folder.name + DELETING)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(checkpoints: Path) -> None:
    """Removes what kills and failures have left of checkpoints that are not whole."""
    if not checkpoints.is_dir():
        return
    for path in checkpoints.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_dir():
            logging.info("removing %s, which is not whole.", path)
            shutil.rmtree(path, ignore_errors=True)


def one_line(error: BaseException) -> str:
    """Returns what an error says, short and on one line.

    RESOURCE_EXHAUSTED: Error opening "zarr" driver: Error writing local file
    "/a/b": Failed to fsync: Disk quota exceeded [tensorstore_spec='{...}']
    ->  Disk quota exceeded: /a/b
    """
    if isinstance(error, OSError) and error.strerror:
        place = f": {os.fsdecode(error.filename)}" if error.filename else ""
        return error.strerror + place
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r" \[(tensorstore_spec|source locations|os_error_code)=.*", "", text)
    if files := re.findall(r'local file "([^"]+)"', text):
        text = f"{text.rpartition(': ')[2]}: {files[-1]}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
