"""Rows to answer: from a file of the user's, or from a task.

    in.txt          a row is a line: its text
    in.jsonl        an object a line: {"inputs": ..., and whatever else}
    in.parquet      the same as columns
    a task          {"inputs", "targets", "choices"} of each example

A row that cannot be read is still a row: it says what is wrong with it. Only a file
that cannot be read to its end is refused as a whole.
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from ul2.tasks.packed_files import (
    OF_TABLES,
    damages_of,
    import_extra,
    open_table,
    open_unpacked,
    read_lines,
)
from ul2.tasks.sources import too_long

_SUFFIX: Final = re.compile(r"\.(?:(txt|jsonl|json)(?:\.gz|\.zst)?|(parquet))$")
_ALLOWED: Final = ".txt or .jsonl (also .gz or .zst) or .parquet"
_TABLE_ROWS_AT_ONCE: Final = 1024


class Row(NamedTuple):
    """What is asked for one answer.

    Attributes:
        number: of the row; the first is 0.
        fields: `inputs` and whatever else there is.
        error: why it cannot be answered, or None.
    """

    number: int
    fields: dict[str, Any]
    error: str | None = None


class RowSource(Protocol):
    """Rows that can be read again, and are the same each time."""

    @property
    def name(self) -> str:
        """What a person calls it."""

    def __iter__(self) -> Iterator[Row]:
        """Reads the rows."""


class Survey(NamedTuple):
    """What there is to know of some rows before they are answered."""

    num_rows: int
    sha256: str


def survey(source: RowSource) -> Survey:
    """Reads all rows once, to count them and to tell them from others.

    Raises:
        ValueError: there are none, or they cannot be read to their end.
    """
    digest = hashlib.sha256()
    num_rows = 0
    for row in source:
        num_rows += 1
        text = json.dumps([row.fields, row.error], sort_keys=True)
        digest.update(text.encode() + b"\n")
    if not num_rows:
        raise ValueError(f"{source.name} is empty.")
    return Survey(num_rows, digest.hexdigest())


class FileRows:
    """The rows of a file."""

    def __init__(self, path: str | Path) -> None:
        """Opens it once, to see that it is there.

        Raises:
            ValueError: it is not, or its name says that it is another kind of file.
        """
        self.name = str(path)
        matched = _SUFFIX.search(self.name)
        if not matched:
            raise ValueError(
                f"--input {path}: cannot read this kind of file, only {_ALLOWED}."
            )
        with _one_line_errors(self.name):
            Path(path).open("rb").close()
        kinds = {"txt": _text_row, "jsonl": _json_row, "json": _json_row}
        self._read_line = kinds.get(matched[1])

    def __iter__(self) -> Iterator[Row]:
        with _one_line_errors(self.name):
            if self._read_line is None:
                yield from _read_parquet(self.name)
            else:
                yield from _read_lines(self.name, self._read_line)


class TaskRows:
    """The examples of a registered task."""

    def __init__(self, name: str, split: str, data_dir: str | None = None) -> None:
        """Looks the task up.

        Raises:
            ValueError: there is no such task.
        """
        from ul2.tasks import registry

        registry.find(name)
        self.name = f"{name}/{split}"
        self._arguments = (name, split)
        self._data_dir = data_dir

    def __iter__(self) -> Iterator[Row]:
        from ul2.tasks.examples import read_examples

        examples = read_examples(*self._arguments, data_dir=self._data_dir)
        for number, example in enumerate(examples):
            fields: dict[str, Any] = {
                "inputs": example.inputs,
                "targets": example.targets,
            }
            if example.choices:
                fields["choices"] = list(example.choices)
            yield Row(number, fields)


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Puts what libraries say of a damaged file into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"cannot read --input {name}: {error.strerror}.") from None
    except _damages(name) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read --input {name} to its end: {reason}.") from None


def _damages(name: str) -> tuple[type[Exception], ...]:
    damages = damages_of(name)
    if name.endswith(".parquet"):
        return (*damages, *OF_TABLES, import_extra("pyarrow", name).ArrowException)
    return damages


def _read_lines(
    name: str, read_line: Callable[[str], tuple[dict[str, Any], str | None]]
) -> Iterator[Row]:
    """Yields a row per line, also for an empty one."""
    with contextlib.closing(open_unpacked(name)) as lines:
        for number, line in enumerate(read_lines(lines)):
            if line is None:
                reason = str(too_long("this line"))
                yield Row(number, {"inputs": None}, reason)
                continue
            try:
                text = line.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                reason = f"not UTF-8 (byte 0x{byte:02x}, {error.reason})"
                yield Row(number, {"inputs": None}, reason)
                continue
            yield Row(number, *read_line(text.rstrip("\r\n")))


def _text_row(line: str) -> tuple[dict[str, Any], str | None]:
    return {"inputs": line}, None if line.strip() else "empty line"


def _json_row(line: str) -> tuple[dict[str, Any], str | None]:
    if not line.strip():
        return {"inputs": None}, "empty line"
    try:
        fields = json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return {"inputs": None}, f"broken JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        return {"inputs": None}, f"broken JSON ({error})"
    if not isinstance(fields, dict):
        return {"inputs": None}, "not a JSON object"
    return fields, None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _read_parquet(name: str) -> Iterator[Row]:
    """Yields the rows of a table, each a value per column."""
    number = 0
    with open_table(name) as table:
        for batch in table.iter_batches(_TABLE_ROWS_AT_ONCE):
            names = batch.schema.names
            for values in zip(*batch.columns, strict=True):
                fields = zip(names, values, strict=True)
                yield Row(number, {key: _to_json(one.as_py()) for key, one in fields})
                number += 1


def _to_json(value: Any) -> Any:
    """Returns the nearest JSON value: tables also hold times, bytes and NaN."""
    if isinstance(value, dict):
        return {str(key): _to_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_to_json(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
