"""Documents from a user's own files: text, JSON lines and Parquet, packed or not.

    corpus/a.txt            documents are paragraphs (or lines, or the whole file)
    corpus/b.jsonl.gz       one JSON object per line, its field `text`
    corpus/c.parquet        its column `text`
    embedded                the documentation inside Python: a corpus without a network

Every document knows its file and line, and whatever is wrong with a file is said with
its name and line. TensorFlow is not needed here.
"""

import contextlib
import dataclasses
import glob
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from ul2.tasks.embedded_corpus import read_embedded_corpus
from ul2.tasks.packed_files import (
    MAX_RECORD_BYTES,
    OF_TABLES,
    damages_of,
    import_extra,
    open_table,
    open_unpacked,
    read_lines,
)

EMBEDDED: Final = "embedded"
TEXT_UNITS: Final = ("paragraph", "line", "file")
ON_ERROR: Final = ("refuse", "skip")
_SUFFIX: Final = re.compile(
    r"\.(?:(txt)|(jsonl|json)(?=\.|$)|(parquet)$)(\.gz|\.zst)?$"
)
_LINE_ENDS: Final = ("", "\n", "\r\n")
_JSON: Final = json.JSONDecoder()
_ALLOWED: Final = ".txt or .jsonl (also .gz or .zst) or .parquet"


class Document(NamedTuple):
    """A text and where it came from."""

    text: str
    source: str  # the file
    record: int  # line on which it begins, or row of a table; the first is 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource:
    """Which files to read, and how.

    Attributes:
        files: patterns separated by commas, with `*`, `**` and `{a,b}`; a directory
            stands for every file in it that can be read; `embedded` is the corpus
            inside Python.
        text_unit: what one document of a .txt file is: a `paragraph` (between blank
            lines), a `line`, or the whole `file`.
        text_field: field of a JSON object, or column of a table, that holds the text.
        on_error: `refuse` stops at the first broken record; `skip` leaves it out.
        held_out_share: share of the documents that training never sees.
    """

    files: str
    text_unit: str = "paragraph"
    text_field: str = "text"
    on_error: str = "refuse"
    held_out_share: float = 0.02

    def __post_init__(self) -> None:
        for name, allowed in (("text_unit", TEXT_UNITS), ("on_error", ON_ERROR)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not one of {list(allowed)}."
                )
        if not 0 <= self.held_out_share < 1:
            raise ValueError(
                f"held_out_share={self.held_out_share} must be at least 0 and below 1."
            )


class BrokenTextError(ValueError):
    """A file or record cannot be read; the message names it."""


class CutOffError(BrokenTextError):
    """Nothing of the file can be read from here on."""


def find_files(patterns: str) -> list[str]:
    """Returns the files that patterns stand for, each once, in sorted order.

    The name `embedded` stands for itself.

    Raises:
        ValueError: a pattern matches nothing, or a file cannot be read as text.
    """
    found: set[str] = set()
    for pattern in _split_commas(patterns):
        if pattern == EMBEDDED:
            found.add(EMBEDDED)
            continue
        files = _match(pattern)
        if not files:
            raise ValueError(
                f"no file matches {pattern!r} (looked in {os.getcwd()}); "
                f"give --text files that are {_ALLOWED}, or 'embedded'."
            )
        found |= files
    if not found:
        raise ValueError(f"no file named in {patterns!r}; give --text, or 'embedded'.")
    for file in found - {EMBEDDED}:
        if not _SUFFIX.search(file):
            raise ValueError(f"{file}: cannot read this kind of file, only {_ALLOWED}.")
        if not os.access(file, os.R_OK):
            raise ValueError(f"{file}: no permission to read it.")
    return sorted(found)


def read_documents(
    source: TextSource, on_skip: Callable[[str], None] = lambda reason: None
) -> Iterator[Document]:
    """Yields every document that is not empty, file by file.

    Args:
        source: what to read.
        on_skip: is told the reason for each record left out (with on_error 'skip').

    Raises:
        ValueError: a pattern, file or record is wrong; the first one is named.
    """
    # Eagerly, so that a wrong name is refused before the first document.
    return _read_files(find_files(source.files), source, on_skip)


def _read_files(
    files: Sequence[str], source: TextSource, on_skip: Callable[[str], None]
) -> Iterator[Document]:
    """Reads file after file; a file without any text counts as broken."""
    for file in files:
        empty = True
        for document in read_file(file, source):
            if isinstance(document, BrokenTextError):
                if source.on_error == "refuse":
                    raise refusal_of_broken(str(document))
                on_skip(str(document))
            elif document.text.strip():
                yield document
            else:
                continue
            empty = False
        if empty and source.on_error == "refuse":
            raise refusal_of_empty(file)
        if empty:
            on_skip(reason_of_empty(file))


def refusal_of_broken(reason: str) -> ValueError:
    """Returns the error of a corpus with a broken record."""
    return ValueError(f"{reason}; repair it or set --on_error=skip to leave it out.")


def refusal_of_empty(file: str) -> ValueError:
    """Returns the error of a corpus with a file that is empty, as if cut off."""
    return ValueError(f"{file}: holds no text; remove it or set --on_error=skip.")


def reason_of_empty(file: str) -> str:
    """Returns why such a file is left out instead."""
    return f"{file}: holds no text"


def _split_commas(patterns: str) -> list[str]:
    """Splits at the commas outside of braces."""
    parts, depth = [""], 0
    for sign in patterns:
        depth += (sign == "{") - (sign == "}")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _expand_braces(pattern: str) -> list[str]:
    """Replaces each innermost `{a,b}` by its alternatives."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not found:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [
        expanded
        for choice in found[1].split(",")
        for expanded in _expand_braces(head + choice + tail)
    ]


def _match(pattern: str) -> set[str]:
    """Returns the files of one pattern; a name that exists is taken as it is."""
    pattern = os.path.expanduser(pattern)
    names = (
        {pattern}
        if os.path.exists(pattern)
        else {
            name
            for one in _expand_braces(pattern)
            for name in glob.glob(one, recursive=True)
        }
    )
    files = {name for name in names if not os.path.isdir(name)}
    if names == {pattern} and os.path.isdir(pattern):
        inside = glob.glob(os.path.join(glob.escape(pattern), "**"), recursive=True)
        files = {name for name in inside if _SUFFIX.search(name)}
    return {os.path.normpath(name) for name in files}


# The documents of a file in order, and an error in place of a broken one.
Reading = Iterator[Document | BrokenTextError]


def read_file(file: str, source: TextSource) -> Reading:
    """Yields the documents of one file, the empty ones too."""
    if file == EMBEDDED:
        for text, name, line in read_embedded_corpus():
            yield Document(text, f"{EMBEDDED}/{name}", line)
    elif is_table(file):
        yield from read_rows(file, source.text_field)
    else:
        yield from read_opened(file, lambda: open_unpacked(file), source)


def is_table(file: str) -> bool:
    """Returns whether a file has rows and not lines."""
    return file.endswith(".parquet")


def is_packed(file: str) -> bool:
    """Returns whether a file has to be unpacked from its beginning."""
    return file.endswith((".gz", ".zst"))


def unit_of(file: str, source: TextSource) -> str:
    """Returns what one document of a file of lines is: one of `TEXT_UNITS`."""
    matched = _SUFFIX.search(file)
    assert matched
    return source.text_unit if matched[1] else "line"


def read_opened(
    file: str,
    open_it: Callable[[], io.BufferedIOBase],
    source: TextSource,
    line: int = 1,
) -> Reading:
    """Yields the documents of lines, a whole file or a part of it.

    Args:
        file: its name.
        open_it: opens what is to be read; it begins with a document.
        source: how to read it.
        line: number of its first line in the file.
    """
    matched = _SUFFIX.search(file)
    assert matched
    damages = damages_of(file)
    try:
        with open_it() as opened:
            if matched[1]:
                yield from _read_text(file, opened, source.text_unit, line)
            else:
                yield from _read_json(file, opened, source.text_field, line)
    except damages as error:
        yield cut_off(file, error)


def cut_off(file: str, error: Exception) -> CutOffError:
    """Describes what ended the reading of a file."""
    return CutOffError(f"{file}: cannot be read to its end ({error})")


def _read_text(
    file: str, opened: io.BufferedIOBase, text_unit: str, first_line: int
) -> Reading:
    """Yields the paragraphs, the lines or the whole of a text file."""
    for begin, data in _blocks(read_lines(opened), text_unit, first_line):
        if data is None:
            yield too_long(f"{file}:{begin}")
            continue
        try:
            text = data.decode("utf-8-sig" if begin == 1 else "utf-8")
        except UnicodeDecodeError as error:
            line = begin + data.count(b"\n", 0, error.start)
            yield _not_utf8(f"{file}:{line}", error)
        else:
            yield Document(text.rstrip("\r\n"), file, begin)


def _blocks(
    lines: Iterable[bytes | None], text_unit: str, first_line: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yields the line on which each unit begins, and its bytes; None of too many."""
    block: list[bytes] = []
    begin, size = first_line, 0
    for number, line in enumerate(lines, first_line):
        blank = line is not None and not line.strip()
        if size and (text_unit == "line" or (text_unit == "paragraph" and blank)):
            yield begin, _joined(block, size)
            block, size = [], 0
        if size or not blank:
            begin = begin if size else number
            size += MAX_RECORD_BYTES + 1 if line is None else len(line)
            if line and size <= MAX_RECORD_BYTES:
                block.append(line)
            else:  # nothing is kept of a unit that is too long already
                block = []
    if size:
        yield begin, _joined(block, size)


def _joined(block: list[bytes], size: int) -> bytes | None:
    return b"".join(block) if size <= MAX_RECORD_BYTES else None


def too_long(place: str) -> BrokenTextError:
    """Describes a record that no machine should hold in memory."""
    return BrokenTextError(
        f"{place}: longer than {MAX_RECORD_BYTES:,} bytes; split it into documents"
    )


def _read_json(
    file: str, opened: io.BufferedIOBase, field: str, first_line: int
) -> Reading:
    """Yields the texts of a file with one JSON object per line."""
    for number, line in enumerate(read_lines(opened), first_line):
        place = f"{file}:{number}"
        if line is None:
            yield too_long(place)
            continue
        if line.isspace():
            continue
        try:
            record = _parse(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield _not_utf8(place, error)
        except (ValueError, RecursionError) as error:
            yield BrokenTextError(
                f"{place}: broken JSON ({error}); one object per line is expected"
            )
        else:
            yield _text_of(record, field, file, number)


def _parse(line: str) -> object:
    """Returns what `json.loads` does, sooner where a line is nothing but a value."""
    with contextlib.suppress(json.JSONDecodeError):
        record, end = _JSON.raw_decode(line)
        if line[end:] in _LINE_ENDS:
            return record
    return json.loads(line)


def _text_of(
    record: object, field: str, file: str, number: int
) -> Document | BrokenTextError:
    """Returns the text of one JSON value, or what is wrong with it."""
    place = f"{file}:{number}"
    if not isinstance(record, dict):
        return BrokenTextError(f"{place}: not a JSON object but {_show(record)}")
    if field not in record:
        return BrokenTextError(
            f"{place}: no field {field!r}, only {list(record)[:9]} (--text_field)"
        )
    text = record[field]
    if not isinstance(text, str):
        return BrokenTextError(f"{place}: field {field!r} is no text but {_show(text)}")
    if not _is_utf8(text):
        return BrokenTextError(f"{place}: field {field!r} holds half of a character")
    return Document(text, file, number)


def _is_utf8(text: str) -> bool:
    """Returns whether a text can be written as UTF-8."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def read_rows(
    file: str, column: str, row_groups: Sequence[int] | None = None, row: int = 0
) -> Reading:
    """Yields the texts of one column of a table.

    Args:
        file: its name.
        column: that of the texts.
        row_groups: which to read; all if None.
        row: how many rows stand before these.
    """
    pyarrow = import_extra("pyarrow", file)
    try:
        with open_table(file) as table:
            names = table.schema_arrow.names
            if column not in names:
                yield BrokenTextError(
                    f"{file}: no column {column!r}, only {names[:9]} (--text_field)"
                )
                return
            batches = table.iter_batches(1024, row_groups=row_groups, columns=[column])
            for batch in batches:
                for value in batch.column(0):
                    text = value.as_py()
                    row += 1
                    if isinstance(text, str):
                        yield Document(text, file, row)
                    else:
                        yield BrokenTextError(
                            f"{file}: row {row}: column {column!r} is no text but "
                            f"{_show(text)}"
                        )
    except (*OF_TABLES, pyarrow.ArrowException) as error:
        yield cut_off(file, error)


def _not_utf8(place: str, error: UnicodeDecodeError) -> BrokenTextError:
    """Describes a byte that is no UTF-8."""
    byte = error.object[error.start]
    return BrokenTextError(f"{place}: not UTF-8 (byte 0x{byte:02x}, {error.reason})")


def _show(value: object) -> str:
    """Returns the beginning of a value, for a message."""
    return repr(value)[:40]
