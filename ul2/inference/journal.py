"""`Journal`: what has been answered, on disk, so that a kill loses what was under way.

    out.jsonl.partial        number of a row, tab, its answer as JSON; in the order in
                             which rows were answered, on disk as they are
    out.jsonl.partial.json   what the answers depend on; other settings are refused
    out.jsonl.partial.lock   while somebody answers
    out.jsonl                all answers in the order of the rows: appears when complete

Every line is written whole or is the last one; a torn last line is dropped.
"""

import array
import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from ul2 import json_files
from ul2.lock import Lock

_NOT_ANSWERED: Final = -1
_MAX_DIGITS: Final = 18
_MAX_LINE_BYTES: Final = 2**28
# JSON allows them inside a text; some readers of lines end a line there.
_LINE_ENDS: Final = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}


class Journal:
    """The answers to some rows; use as a context manager."""

    def __init__(
        self, output: Path, num_rows: int, identity: Mapping[str, Any]
    ) -> None:
        """Opens nothing yet.

        Args:
            output: the file that shall hold all answers.
            num_rows: how many there will be.
            identity: what the answers depend on, as JSON values.
        """
        self._output = output
        self._partial = output.with_name(f"{output.name}.partial")
        self._sidecar = output.with_name(f"{output.name}.partial.json")
        self._identity = json.loads(json.dumps(identity))
        # Two processes would mix their lines.
        self._lock = Lock(
            output.with_name(f"{output.name}.partial.lock"),
            what=str(output),
            instead="choose another --output",
        )
        self._places = array.array("q", [_NOT_ANSWERED]) * num_rows

    def __enter__(self) -> "Journal":
        with _one_line_errors(self._partial):
            if self._output.is_dir():
                raise ValueError(f"--output {self._output} is a directory.")
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._lock)
                self._file: BinaryIO = stack.enter_context(self._partial.open("a+b"))
                self._go_on()
                self._held = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    @property
    def num_answered(self) -> int:
        """Rows that have an answer."""
        return len(self._places) - self._places.count(_NOT_ANSWERED)

    def has(self, numbers: Iterable[int]) -> bool:
        """Returns whether all of some rows have an answer."""
        return all(self._places[number] != _NOT_ANSWERED for number in numbers)

    def add(self, answers: Mapping[int, Mapping[str, Any]]) -> None:
        """Writes the answers to some rows, and returns when they are on disk."""
        with _one_line_errors(self._partial):
            place = self._file.seek(0, os.SEEK_END)
            lines = []
            for number, answer in answers.items():
                self._places[number] = place
                lines.append(b"%d\t%s\n" % (number, _to_bytes(answer)))
                place += len(lines[-1])
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Puts the answers to all rows in order, under the name of the output."""
        assert self.num_answered == len(self._places)
        assembled = self._output.with_name(f"{self._output.name}.partial.sorted")
        with _one_line_errors(self._output):
            with assembled.open("wb") as file:
                file.writelines(self._lines())
                file.flush()
                os.fsync(file.fileno())
            assembled.replace(self._output)
            self._partial.unlink()
            self._sidecar.unlink()

    def answers(self) -> Iterator[dict[str, Any]]:
        """Reads all answers, in the order of the rows."""
        return map(json.loads, self._lines())

    def _lines(self) -> Iterator[bytes]:
        for place in self._places:
            self._file.seek(place)
            yield self._file.readline().partition(b"\t")[2]

    def _go_on(self) -> None:
        """Reads what another run of the same command left, or begins anew."""
        if self._sidecar.is_file() and self._partial.stat().st_size:
            self._check_identity()
            self._file.seek(0)
            end = 0
            while line := self._file.readline(_MAX_LINE_BYTES):
                number = _number_of(line)
                if number is None or number >= len(self._places):
                    break
                self._places[number] = end
                end += len(line)
            self._file.truncate(end)
            return
        self._file.truncate(0)
        new = self._sidecar.with_name(f"{self._sidecar.name}.new")
        new.write_text(json.dumps(self._identity, indent=1))
        new.replace(self._sidecar)

    def _check_identity(self) -> None:
        """Refuses to go on with the answers of another command."""
        try:
            before = json_files.read_object(self._sidecar)
        except ValueError:
            before = {}
        changes = [
            f"{name}: {before.get(name)!r} -> {self._identity.get(name)!r}"
            for name in {**before, **self._identity}
            if before.get(name) != self._identity.get(name)
        ]
        if changes:
            raise ValueError(
                f"{self._partial} was left by another command ({'; '.join(changes)}); "
                "set these back to go on with it, remove it to begin anew, or choose "
                "another --output."
            )


def _number_of(line: bytes) -> int | None:
    """Returns the row that a line answers; None if it is no whole line."""
    number, _, answer = line.partition(b"\t")
    is_whole = answer.startswith(b"{") and answer.endswith(b"}\n")
    if not (is_whole and number.isdigit() and len(number) <= _MAX_DIGITS):
        return None
    return None if json_files.parse_line(answer) is None else int(number)


def _to_bytes(answer: Mapping[str, Any]) -> bytes:
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False)
    try:
        return text.translate(_LINE_ENDS).encode()
    except UnicodeEncodeError:  # half of a character
        return json.dumps(answer, allow_nan=False).encode()


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Says in one line that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}.") from None
