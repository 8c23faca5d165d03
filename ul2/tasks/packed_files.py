"""Files of lines, packed or not, and tables, read with an end to the memory it takes.

Packed, a gigabyte of one letter has a few kilobytes. So lines have a longest length,
texts that a table names often are held once, and packed bytes are unpacked a few at a
time. A packed file that was cut off says so, and does not merely end early.
"""

import importlib
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

# Of a document, or of a row; beyond this a file is damaged, or hostile.
MAX_RECORD_BYTES: Final = 2**28
_AT_ONCE: Final = 2**20
# Of packed bytes: one block of four bytes may stand for 128 KiB.
_PACKED_AT_ONCE: Final = 2**12
# To zlib: gzip's header and checksum.
_GZIP: Final = 16 + zlib.MAX_WBITS


def open_unpacked(file: str) -> io.BufferedIOBase:
    """Opens a file for reading, unpacking it on the way."""
    if file.endswith(".gz"):
        # What is padded to whole blocks ends with zeros.
        raw = _PackedFile(file, lambda: zlib.decompressobj(_GZIP), padding=b"\0")
    elif file.endswith(".zst"):
        new = import_extra("zstandard", file).ZstdDecompressor
        raw = _PackedFile(file, lambda: new().decompressobj())
    else:
        return Path(file).open("rb")
    return io.BufferedReader(raw, _AT_ONCE)


def damages_of(file: str) -> tuple[type[Exception], ...]:
    """Returns what reading a damaged file raises."""
    damages = (OSError, EOFError, zlib.error)
    if file.endswith(".zst"):
        return *damages, import_extra("zstandard", file).ZstdError
    return damages


def import_extra(name: str, file: str) -> Any:
    """Imports a reader that only some files need."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(
            f"{file}: reading it needs {name.partition('.')[0]}; "
            "pip install 'ul2[files]'."
        ) from None


class _PackedFile(io.RawIOBase):
    """The unpacked bytes of a file of any number of frames.

    The reader of zstandard takes a frame that was cut off for one that has ended; that
    of gzip looks at padding byte by byte.

    Args:
        file: to read.
        new: makes what unpacks a frame.
        padding: the byte that may stand behind a frame; none by default.
    """

    def __init__(
        self, file: str, new: Callable[[], Any], *, padding: bytes = b""
    ) -> None:
        self._new, self._padding = new, padding
        self._packed = Path(file).open("rb")  # noqa: SIM115 - closed by `close`
        self._frame: Any = None
        self._is_padded = False
        self._rest = b""
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        """Returns that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer with what comes next; returns how much that is."""
        while not self._unpacked:
            packed = self._rest or self._packed.read(_PACKED_AT_ONCE)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file is cut off")
                return 0
            self._unpacked = memoryview(self._unpack(packed))
        count = min(len(buffer), len(self._unpacked))
        buffer[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count

    def _unpack(self, packed: bytes) -> bytes:
        """Returns what some bytes stand for; `_rest` is then what is left of them."""
        if self._frame is None:
            packed = packed.lstrip(self._padding) if self._is_padded else packed
            self._rest = b""
            if not packed:
                return b""
            self._frame = self._new()
        unpacked: bytes = self._frame.decompress(packed)
        self._rest = self._frame.unused_data
        if self._frame.eof:
            self._frame, self._is_padded = None, bool(self._padding)
        return unpacked

    def close(self) -> None:
        """Closes the file."""
        self._packed.close()
        super().close()


def read_lines(
    opened: io.BufferedIOBase, most_bytes: int = MAX_RECORD_BYTES
) -> Iterator[bytes | None]:
    """Yields the lines of a file, and None in place of one that is too long.

    A packed file of a megabyte may hold a line of a gigabyte.
    """
    while line := opened.readline(most_bytes + 1):
        if len(line) <= most_bytes:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = opened.readline(_AT_ONCE)
        yield None


# What pyarrow raises beside its own errors: a text that is no UTF-8, a time beyond the
# calendar or in a zone that does not exist.
OF_TABLES: Final = (OSError, ValueError, OverflowError, LookupError)


def open_table(file: str) -> Any:
    """Opens a Parquet file so that what is written once is held once.

    A column may name one long text a thousand times. Values have to be taken out of
    its batches one by one.
    """
    parquet = import_extra("pyarrow.parquet", file)
    with parquet.ParquetFile(file) as table:
        columns = map(table.schema.column, range(len(table.schema.names)))
        texts = {one.path for one in columns if one.physical_type == "BYTE_ARRAY"}
    return parquet.ParquetFile(file, read_dictionary=sorted(texts))
