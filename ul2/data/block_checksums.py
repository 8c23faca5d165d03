"""Checksums of the blocks of a large file, compared when a block is first touched.

Reading all of a corpus to find one bad bit takes hours, and batches read it in no
order. So a file of tokens has a CRC-32 for each of its blocks; whoever reads a window
compares the blocks that it lies in, each once. What is never read is never compared.

    tokens      |  block 0  |  block 1  |  block 2  | ..
    checksums      4 bytes     4 bytes     4 bytes
    window               |-------|                      compares blocks 0 and 1
"""

import array
import dataclasses
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Small, since a window of 1 kB makes one be read; four bytes for each are 0.02 %.
BLOCK_BYTES: Final = 2**14
CHECKSUM: Final[np.dtype[Any]] = np.dtype("<u4")


def num_blocks(size: int) -> int:
    """Returns how many blocks a file of so many bytes has."""
    return -(-size // BLOCK_BYTES)


class BlockWriter:
    """The checksums of a file that is written piece by piece."""

    def __init__(self) -> None:
        # Four bytes for each; as a list of integers it would be 36.
        self._done = array.array("I")
        self._crc = 0
        self._filled = 0

    def add(self, data: bytes) -> None:
        """Takes what was appended to the file."""
        rest = memoryview(data)
        while rest:
            part = rest[: BLOCK_BYTES - self._filled]
            self._crc = zlib.crc32(part, self._crc)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._close_block()

    def finish(self) -> bytes:
        """Returns the content of the file of checksums."""
        if self._filled:
            self._close_block()
        return np.array(self._done, CHECKSUM).tobytes()

    def _close_block(self) -> None:
        self._done.append(self._crc)
        self._crc = self._filled = 0


@dataclasses.dataclass(frozen=True, eq=False)
class BlockChecksums:
    """A file, its checksums, and which of its blocks were found sound.

    Attributes:
        file: its name, for errors.
        content: its bytes.
        checksums: of its blocks.
    """

    file: Path
    content: NDArray[np.uint8]
    checksums: NDArray[np.uint32]
    _sound: bytearray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sound", bytearray(len(self.checksums)))

    def check(self, begin: int, length: int) -> None:
        """Compares the blocks of a window that were not compared before.

        Args:
            begin: first byte of the window.
            length: bytes of it.

        Raises:
            ValueError: a block is not what was written.
        """
        end = num_blocks(begin + length)
        block = self._sound.find(0, begin // BLOCK_BYTES, end)
        while block >= 0:
            self._compare(block)
            self._sound[block] = 1
            block = self._sound.find(0, block + 1, end)

    def _compare(self, block: int) -> None:
        """Refuses a block that is not what was written."""
        begin, end = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
        if zlib.crc32(self.content[begin:end].data) != self.checksums[block]:
            raise ValueError(
                f"{self.file} is damaged between bytes {begin:,} and {end:,}: "
                "their checksum is not the one that was written; copy the store or "
                "tokenize the text again."
            )
