"""Tells on stderr how far reading a corpus has come: a bar, or lines in a log."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from rich.console import Console

from ul2.terminal import LiveLine

_SECONDS_BETWEEN_LINES: Final = 10.0


class Progress:
    """A progress report, used as a context manager.

    How far it is comes from the bytes on disk: files that are done count whole, the
    one being read by its text so far.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        show: bool,
        console: Console | None = None,
        label: str = "tokenize",
    ) -> None:
        """Prepares the report.

        Args:
            sizes: bytes of each file to be read; empty if unknown.
            show: whether to report at all.
            console: where to; stderr if None.
            label: what is being done.
        """
        self._label = label
        self._sizes = sizes
        self._total = sum(sizes.values())
        self._show = show
        self._done = self._inside = 0
        self._file = ""
        self._documents = self._tokens = self._text_bytes = 0
        self._started = self._reported = time.monotonic()
        self._line = LiveLine(
            label, self._total or None, console=console, show=show, counts=False
        )

    def __enter__(self) -> Self:
        self._line.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.stop()
        if self._show and kind is None:
            self._print()

    def reach(self, file: str, inside: int) -> None:
        """Notes how far reading has come: which file, and how many bytes of it."""
        if file != self._file:
            self._done += self._sizes.get(self._file, 0)
            self._file = file
        self._inside = inside

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        """Counts what has been encoded and reports it when it is time."""
        self._documents += documents
        self._tokens += tokens
        self._text_bytes += text_bytes
        read = self._done + min(self._inside, self._sizes.get(self._file, 0))
        self._line.update(read, self._counts())
        now = time.monotonic()
        due = now - self._reported >= _SECONDS_BETWEEN_LINES
        if self._show and due and not self._line.is_live:
            self._reported = now
            self._print(f" ({read / self._total:.0%})" if self._total else "")

    def _print(self, suffix: str = "") -> None:
        """Prints one plain line."""
        self._line.console.print(
            f"{self._label}: {self._counts()}{suffix}", soft_wrap=True
        )

    def _counts(self) -> str:
        """Returns the counts as text."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        megabytes = self._text_bytes / 1e6
        return (
            f"{self._documents:,} documents, {megabytes:,.1f} MB, "
            f"{self._tokens:,} tokens, {megabytes / seconds:.1f} MB/s"
        )
