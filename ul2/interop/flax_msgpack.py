"""Finds the arrays in a file of `flax.serialization` without loading them.

T5X writes its `checkpoint` file so: a msgpack map of maps whose leaves are numbers,
texts, lists and arrays. An array is an extension of type 1 (or 3, a NumPy scalar)
that holds `[shape, dtype, bytes]`; one beyond a gigabyte is a map of flat chunks.
`flax.serialization` itself reads the whole file, and believes every length in it.

    index("checkpoint")["optimizer"]["state"]["step"]      Tensor(shape=(), int32)
"""

import math
import os
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from ul2.interop.tensors import Tensor, contiguous, dtype_of, file_reader

_NDARRAY, _NUMPY_SCALAR = 1, 3
_MAX_DEPTH: Final = 64
_MAX_DIMS: Final = 16
# Of everything but the elements of arrays, which are stepped over. A byte of the file
# may become sixty in memory; T5X's largest models have some thousand values.
_MAX_VALUES: Final = 2**21
_MAX_TEXT_BYTES: Final = 2**20
# First byte to (bytes of the number that follows, what that number is the length of).
_LENGTHS: Final = {
    **{0xC4 + i: (2**i, "bin") for i in range(3)},
    **{0xC7 + i: (2**i, "ext") for i in range(3)},
    **{0xD9 + i: (2**i, "str") for i in range(3)},
    **{0xDC + i: (2 ** (i + 1), "array") for i in range(2)},
    **{0xDE + i: (2 ** (i + 1), "map") for i in range(2)},
}
_SHORT: Final = ((0x80, "map", 4), (0x90, "array", 4), (0xA0, "str", 5))
_FIXED_EXTENSIONS: Final = {0xD4 + i: 2**i for i in range(5)}
_NUMBERS: Final = {
    0xCA: ">f4",
    0xCB: ">f8",
    **{0xCC + i: f">u{2**i}" for i in range(4)},
    **{0xD0 + i: f">i{2**i}" for i in range(4)},
}
_CONSTANTS: Final = {0xC0: None, 0xC2: False, 0xC3: True}


def index(path: str | os.PathLike[str]) -> Any:
    """Returns the tree in a file; its arrays are `Tensor`s, named by their place in it.

    Raises:
        ValueError: the file is no such file, or damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            scanner = _Scanner(path, file)
            tree = scanner.value((), 0)
            if file.tell() != scanner.size:
                raise scanner.damaged("bytes follow its end")
            return tree
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from None


class _Scanner:
    """Walks through a file, from header to header."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.values = 0
        self.size = os.fstat(file.fileno()).st_size

    def damaged(self, what: str) -> ValueError:
        """Returns the error that says where the file is wrong."""
        return ValueError(
            f"{self.path} is no checkpoint that flax wrote, or damaged: {what} "
            f"(byte {self.file.tell()} of {self.size})."
        )

    def take(self, count: int) -> bytes:
        """Reads so many bytes, which must be there."""
        if count > self.size - self.file.tell():
            raise self.damaged("it is cut off")
        return self.file.read(count)

    def value(self, place: tuple[str, ...], depth: int) -> Any:
        """Reads the next value; `place` is where in the tree it is."""
        if depth > _MAX_DEPTH:
            raise self.damaged(f"its maps are nested more than {_MAX_DEPTH} deep")
        self.values += 1
        if self.values > _MAX_VALUES:
            raise self.damaged(f"it holds more than {_MAX_VALUES} values")
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            dtype = np.dtype(_NUMBERS[first])
            return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        kind, length = self._header(first)
        if kind == "ext":
            return self._extension(length, place)
        if kind in ("str", "bin") and length > _MAX_TEXT_BYTES:
            raise self.damaged(f"a text has {length} bytes")
        if kind in ("str", "bin"):
            return self._text(length) if kind == "str" else self.take(length)
        return self._collection(kind, length, place, depth)

    def _header(self, first: int) -> tuple[str, int]:
        """Returns what follows, and how much of it."""
        for mask, kind, bits in _SHORT:
            if first >> bits == mask >> bits:
                return kind, first & (2**bits - 1)
        if first in _FIXED_EXTENSIONS:
            return "ext", _FIXED_EXTENSIONS[first]
        if first not in _LENGTHS:
            raise self.damaged(f"{first:#x} begins no value")
        width, kind = _LENGTHS[first]
        return kind, int.from_bytes(self.take(width), "big")

    def _text(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.damaged("a name is not UTF-8") from None

    def _collection(
        self, kind: str, length: int, place: tuple[str, ...], depth: int
    ) -> Any:
        """Reads a list or a map; each entry takes a byte at least."""
        if length > self.size - self.file.tell():
            raise self.damaged("it is cut off")
        if kind == "array":
            return [self.value((*place, str(i)), depth + 1) for i in range(length)]
        tree: dict[str, Any] = {}
        for _ in range(length):
            key = self.value(place, depth + 1)
            if not isinstance(key, str) or key in tree:
                raise self.damaged(f"{key!r} cannot be a name here")
            tree[key] = self.value((*place, key), depth + 1)
        if tree.get("__msgpack_chunked_array__") is True:
            return self._chunked(tree, "/".join(place))
        return tree

    def _extension(self, length: int, place: tuple[str, ...]) -> Tensor:
        """Reads the head of an array and steps over its elements."""
        code = self.take(1)[0]
        end = self.file.tell() + length
        if code not in (_NDARRAY, _NUMPY_SCALAR) or end > self.size:
            raise self.damaged(f"extension {code} of {length} bytes")
        if self.take(1) != b"\x93":
            raise self.damaged("an array without shape, dtype and bytes")
        name = "/".join(place)
        shape, dtype_name = self.value((), _MAX_DEPTH - 1), self.value((), _MAX_DEPTH)
        if not _is_shape(shape) or not isinstance(dtype_name, str):
            raise self.damaged(f"{name} has no shape and dtype")
        try:
            dtype = dtype_of(dtype_name)
        except ValueError:
            raise self.damaged(f"{name} is of {dtype_name!r}") from None
        kind, count = self._header(self.take(1)[0])
        start = self.file.tell()
        if kind != "bin" or start + count != end:
            raise self.damaged(f"{name} does not end where it should")
        if count != math.prod(shape) * dtype.itemsize:
            raise self.damaged(f"{name} is {dtype}{shape} in {count} bytes")
        self.file.seek(end)
        return contiguous(name, shape, dtype, file_reader(self.path, name, start))

    def _chunked(self, tree: dict[str, Any], name: str) -> Tensor:
        """Joins an array that flax has cut into flat chunks."""
        try:
            shape = [tree["shape"][str(i)] for i in range(len(tree["shape"]))]
            chunks = [tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]
            dtype = chunks[0].dtype
            count = sum(chunk.size for chunk in chunks)
            same = all(chunk.dtype == dtype for chunk in chunks)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self.damaged(f"{name} lacks chunks") from None
        if not _is_shape(shape) or count != math.prod(shape) or not same:
            raise self.damaged(f"the chunks of {name} are not {shape}")

        def read_bytes(start: int, stop: int) -> bytes:
            parts, begin = [], 0
            for chunk in chunks:
                first = max(start - begin, 0) // dtype.itemsize
                last = min(stop - begin, chunk.nbytes) // dtype.itemsize
                if first < last:
                    parts.append(chunk.read((slice(first, last),)).tobytes())
                begin += chunk.nbytes
            return b"".join(parts)

        return contiguous(name, shape, dtype, read_bytes)


def _is_shape(shape: Any) -> bool:
    """Returns whether a value is the shape of an array."""
    return (
        isinstance(shape, list)
        and len(shape) <= _MAX_DIMS
        and all(type(size) is int and size >= 0 for size in shape)
    )
