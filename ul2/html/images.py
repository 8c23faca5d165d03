"""Small images inside a page, as PNG: what is seen in one colour, the rest clear."""

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PALETTE: Final = 3


def png_url(rows: Sequence[bytes], colours: Sequence[str]) -> str:
    """Returns an image as a `data:` URL.

    Args:
        rows: a byte per pixel; 0 is clear, n is `colours[n - 1]`.
        colours: as "#0072b2".

    W3C, Portable Network Graphics, colour type 3 with a tRNS chunk.
    """
    height, width = len(rows), len(rows[0])
    header = struct.pack(">IIBBBBB", width, height, 8, _PALETTE, 0, 0, 0)
    palette = bytes(3) + b"".join(bytes.fromhex(c.removeprefix("#")) for c in colours)
    # Every line is stored as it is: filter 0.
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    content = _SIGNATURE + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", header),
            (b"PLTE", palette),
            (b"tRNS", b"\0"),
            (b"IDAT", pixels),
            (b"IEND", b""),
        )
    )
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum
