r"""Cuts files into parts that any process can read, in any order.

    a.txt      one . . \n\n two . . \n\n thr | ee . . \n\n four . .
    parts      bytes 0-12, line 1 | bytes 12-21, line 5 | ..

A part of a plain file is a range of bytes that begins with a document. Whoever cuts
only looks for line ends and counts them, so that whoever reads can say on which line
of the file something is broken. A part of a table is a few row groups. What cannot be
cut (a packed file, a table of large row groups, a pipe) is read by the process that
cuts, and its parts carry the documents themselves. The documents of all parts, one
behind the other, are those of the file, however large the parts are.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ul2.tasks.packed_files import OF_TABLES, import_extra
from ul2.tasks.sources import (
    EMBEDDED,
    BrokenTextError,
    Document,
    Reading,
    TextSource,
    cut_off,
    is_packed,
    is_table,
    read_file,
    read_opened,
    read_rows,
    unit_of,
)

# Of text: small enough that all processes end at about the same time.
_PART_BYTES: Final = 2**19
_PART_DOCUMENTS: Final = 2**14
# Of a column, before it was packed. Each part opens the table anew.
_TABLE_PART_BYTES: Final = 2**22
# A larger row group is read a few rows at a time, by the process that cuts.
_MAX_GROUP_BYTES: Final = 2**24
_READ_AT_ONCE: Final = 2**16
# What ends a document, by its unit; blank is what `bytes.strip` takes away.
_ENDS: Final = {
    "line": re.compile(rb"\n"),
    "paragraph": re.compile(rb"\n[ \t\r\v\f]*\n"),
}


class ByteRange(NamedTuple):
    """Whole documents of a plain file.

    Attributes:
        begin: first byte.
        end: the byte behind the last.
        line: number of the first line; that of the file is 1.
    """

    begin: int
    end: int
    line: int


class RowGroups(NamedTuple):
    """Consecutive row groups of a table.

    Attributes:
        groups: their numbers.
        row: rows of the table before them.
    """

    groups: tuple[int, ...]
    row: int


class Part(NamedTuple):
    """Documents that lie together in one file.

    Attributes:
        file: its name.
        content: where they are, or the documents themselves.
        reached: bytes of the file up to their end.
        is_last: whether the file ends with them.
        splits: of each document, where it is not its hash that decides.
    """

    file: str
    content: ByteRange | RowGroups | Sequence[Document | BrokenTextError]
    reached: int
    is_last: bool
    splits: tuple[str, ...] | None = None


def cut_files(files: Iterable[str], source: TextSource) -> Iterator[Part]:
    """Yields the parts of files, each at least one, in reading order.

    Raises:
        ValueError: reading such a file needs a library that is not there.
    """
    for file in files:
        if file == EMBEDDED or is_packed(file) or not _has_size(file):
            yield from _read_here(file, source)
        elif is_table(file):
            yield from _cut_table(file, source)
        else:
            yield from _cut_lines(file, unit_of(file, source))


def read_part(part: Part, source: TextSource) -> Reading:
    """Yields the documents of a part, and an error in place of a broken one."""
    content = part.content
    if isinstance(content, ByteRange):
        begin, end, line = content

        def open_range() -> io.BufferedIOBase:
            return io.BufferedReader(_FileRange(part.file, begin, end), _READ_AT_ONCE)

        yield from read_opened(part.file, open_range, source, line)
    elif isinstance(content, RowGroups):
        yield from read_rows(part.file, source.text_field, *content)
    else:
        yield from content


def part_documents(
    file: str, reading: Iterable[tuple[str | None, Document | BrokenTextError]]
) -> Iterator[Part]:
    """Yields parts that carry documents, so many at a time that they are worth it.

    Args:
        file: what they belong to.
        reading: the split of each, None where its hash decides, and the document.
    """
    content: list[Document | BrokenTextError] = []
    splits: list[str] = []
    size = reached = 0
    for split, document in reading:
        content.append(document)
        splits += [split] if split else []
        size += 0 if isinstance(document, BrokenTextError) else len(document.text)
        if size >= _PART_BYTES or len(content) == _PART_DOCUMENTS:
            reached += size
            yield Part(file, content, reached, False, tuple(splits) or None)
            content, splits, size = [], [], 0
    yield Part(file, content, reached + size, True, tuple(splits) or None)


def _read_here(file: str, source: TextSource) -> Iterator[Part]:
    """Reads a file that only one process can read."""
    return part_documents(file, ((None, one) for one in read_file(file, source)))


def _has_size(file: str) -> bool:
    """Returns whether a file can be read from anywhere; a pipe cannot."""
    return os.path.isfile(file) and os.path.getsize(file) > 0


def _cut_lines(file: str, unit: str) -> Iterator[Part]:
    """Cuts each block of a file behind the first document to end in its second half."""
    begin, line = 0, 1
    try:
        size = os.path.getsize(file)
        blocks = _read_blocks(file, size) if unit in _ENDS else iter(())
        position = number = 0  # line ends before
        for block in blocks:
            found = _ENDS[unit].search(block, len(block) // 2)
            cut = found.end() if found else 0
            number += block.count(b"\n", 0, cut)
            if found:
                end = position + cut
                yield Part(file, ByteRange(begin, end, line), end, False)
                begin, line = end, number + 1
            number += block.count(b"\n", cut)
            position += len(block)
    except OSError as error:
        yield Part(file, [cut_off(file, error)], begin, True)
    else:
        yield Part(file, ByteRange(begin, size, line), size, True)


def _read_blocks(file: str, size: int) -> Iterator[bytes]:
    """Yields so many bytes of a file, or less if it has become shorter."""
    with Path(file).open("rb", buffering=0) as opened:
        while block := opened.read(min(_PART_BYTES, size)):
            size -= len(block)
            yield block


def _cut_table(file: str, source: TextSource) -> Iterator[Part]:
    """Puts row groups together; a table that cannot be cut is read here."""
    groups = _row_groups(file, source.text_field)
    if not groups or max(size for _, size in groups) > _MAX_GROUP_BYTES:
        yield from _read_here(file, source)
        return
    total = os.path.getsize(file)
    chosen: list[int] = []
    row = rows = size = 0
    for number, (group_rows, group_size) in enumerate(groups):
        chosen.append(number)
        rows, size = rows + group_rows, size + group_size
        is_last = number == len(groups) - 1
        if size >= _TABLE_PART_BYTES or is_last:
            reached = total * (number + 1) // len(groups)
            yield Part(file, RowGroups(tuple(chosen), row), reached, is_last)
            row, chosen, size, rows = row + rows, [], 0, 0


def _row_groups(file: str, column: str) -> list[tuple[int, int]]:
    """Returns the rows of each row group, and how many bytes of text it has.

    Empty where that is not known: whoever reads the table says what is wrong with it.
    """
    pyarrow = import_extra("pyarrow", file)
    parquet = import_extra("pyarrow.parquet", file)
    try:
        table: Any = parquet.read_metadata(file)
        names = [table.schema.column(i).path for i in range(table.num_columns)]
        if column not in names:
            return []
        index = names.index(column)
        groups = map(table.row_group, range(table.num_row_groups))
        return [
            (group.num_rows, group.column(index).total_uncompressed_size)
            for group in groups
        ]
    except (*OF_TABLES, pyarrow.ArrowException):
        return []


class _FileRange(io.RawIOBase):
    """The bytes of a range of a file."""

    def __init__(self, file: str, begin: int, end: int) -> None:
        self._opened = Path(file).open("rb", buffering=0)  # noqa: SIM115 - see `close`
        self._opened.seek(begin)
        self._left = end - begin

    def readable(self) -> bool:
        """Returns that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer with what comes next; returns how much that is."""
        count = self._opened.readinto(memoryview(buffer)[: self._left])
        if self._left and not count:
            raise EOFError("the file has become shorter")
        self._left -= count
        return count

    def close(self) -> None:
        """Closes the file."""
        self._opened.close()
        super().close()
