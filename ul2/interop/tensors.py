"""Arrays that are read piece by piece, and views of them in another layout.

A checkpoint may be larger than memory, so nobody here holds one. A `Tensor` knows its
shape and dtype, and reads any region of itself when asked; a view (`transposed`,
`stacked`, `merged`, ...) translates a region into regions of what it views. Converting
is then: make the views that the other format wants, and write each in its own pieces.

    kernel = transposed(weight)            shape (8, 6) of a (6, 8) file entry
    kernel.read((slice(0, 8), slice(2, 4)))    reads rows 2 and 3 of the file alone
"""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

Region = tuple[slice, ...]
BFLOAT16: Final[np.dtype[Any]] = np.dtype(ml_dtypes.bfloat16)
# The dtypes that parameters of others may have.
FLOATS: Final = ("float32", "bfloat16", "float16", "float64")
# What one piece may take; a handful of them exist at once.
PIECE_BYTES: Final = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that is somewhere else.

    Attributes:
        name: what its file calls it; errors name it.
        shape: of the whole.
        dtype: of what `read` returns.
        piece: shape of the blocks in which it is best read, at most `shape`.
        read_region: returns a region; every slice has a start and a stop.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    piece: tuple[int, ...]
    read_region: Callable[[Region], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * self.dtype.itemsize

    def read(self, region: Region | None = None) -> np.ndarray:
        """Returns a region of the array, or all of it."""
        if region is None:
            region = tuple(slice(0, size) for size in self.shape)
        bounds = [s.indices(n)[:2] for s, n in zip(region, self.shape, strict=True)]
        return self.read_region(tuple(slice(*bound) for bound in bounds))

    def regions(self) -> Iterator[Region]:
        """Yields the regions of all pieces, in order; together they are the array."""
        starts = (range(0, n, p) for n, p in zip(self.shape, self.piece, strict=True))
        for start in itertools.product(*starts):
            yield tuple(
                slice(a, min(a + p, n))
                for a, p, n in zip(start, self.piece, self.shape, strict=True)
            )


def from_array(name: str, array: np.ndarray) -> Tensor:
    """Returns a tensor of an array in memory."""
    piece = tuple(max(1, size) for size in array.shape)
    return Tensor(name, array.shape, array.dtype, piece, array.__getitem__)


def contiguous(
    name: str,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    read_bytes: Callable[[int, int], bytes],
) -> Tensor:
    """Returns a tensor whose elements lie one after another, in C order.

    Args:
        name: for errors.
        shape: of the array.
        dtype: of the array, in the byte order of the bytes.
        read_bytes: returns the bytes from a start to a stop, counted from the array's
            first.
    """
    shape = tuple(shape)
    row_shape = shape[1:]
    row_bytes = math.prod(row_shape) * dtype.itemsize
    piece = by_rows(shape, dtype)

    def rows(start: int, stop: int) -> np.ndarray:
        content = read_bytes(start * row_bytes, stop * row_bytes)
        return np.frombuffer(content, dtype).reshape(stop - start, *row_shape)

    def read(region: Region) -> np.ndarray:
        if not shape:
            return np.frombuffer(read_bytes(0, dtype.itemsize), dtype).reshape(())
        first, *rest = region
        # Whole rows are read; not more of them at once than a piece may hold.
        step = max(1, PIECE_BYTES // max(row_bytes, 1))
        starts = range(first.start, first.stop, step)
        blocks = [rows(a, min(a + step, first.stop))[:, *rest] for a in starts]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [rows(0, 0)])

    return Tensor(name, shape, dtype, piece, read)


def filled(
    name: str, shape: Sequence[int], value: float, dtype: DTypeLike = np.float32
) -> Tensor:
    """Returns a tensor that holds `value` everywhere."""
    dtype = np.dtype(dtype)

    def read(region: Region) -> np.ndarray:
        return np.full([s.stop - s.start for s in region], value, dtype)

    shape = tuple(shape)
    return Tensor(name, shape, dtype, by_rows(shape, dtype), read)


def file_reader(path: Path, name: str, offset: int) -> Callable[[int, int], bytes]:
    """Returns the `read_bytes` of an array that begins at a byte of a file."""

    def read_bytes(start: int, stop: int) -> bytes:
        try:
            with path.open("rb") as file:
                content = os.pread(file.fileno(), stop - start, offset + start)
        except OSError as error:
            raise ValueError(
                f"cannot read {name} of {path}: {error.strerror}."
            ) from None
        if len(content) < stop - start:
            raise ValueError(f"{path} was cut off within {name}.")
        return content

    return read_bytes


def finite_pieces(tensor: Tensor) -> Iterator[tuple[Region, np.ndarray]]:
    """Yields all pieces of a tensor with their regions.

    Raises:
        ValueError: a piece holds a NaN or an infinity: training or a disk broke it.
    """
    for region in tensor.regions():
        block = tensor.read(region)
        # bfloat16 is no floating type to numpy, but converts to one.
        if block.dtype.kind not in "iub" and not np.isfinite(block).all():
            raise ValueError(
                f"{tensor.name} holds NaN or infinity; the checkpoint is damaged."
            )
        yield region, block


def by_rows(shape: Sequence[int], dtype: DTypeLike) -> tuple[int, ...]:
    """Returns the shape of pieces that are contiguous in memory or a file.

        by_rows((4096, 16384), float32) == (256, 16384)        16 MiB

    As many rows of the leading dim as fit; where even one does not, parts of it.
    """
    room = PIECE_BYTES // np.dtype(dtype).itemsize
    piece = list(shape)
    for axis, size in enumerate(shape):
        row = math.prod(piece[axis + 1 :])
        if row <= room:
            piece[axis] = min(size, max(1, room // max(row, 1)))
            break
        piece[axis] = 1
    return tuple(max(1, size) for size in piece)


def transposed(tensor: Tensor, order: Sequence[int] | None = None) -> Tensor:
    """Returns the tensor with its dims in another order; reversed by default."""
    order = tuple(order or reversed(range(len(tensor.shape))))
    back = np.argsort(order)

    def read(region: Region) -> np.ndarray:
        return tensor.read(tuple(region[axis] for axis in back)).transpose(order)

    return dataclasses.replace(
        tensor,
        shape=tuple(tensor.shape[axis] for axis in order),
        piece=tuple(tensor.piece[axis] for axis in order),
        read_region=read,
    )


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Returns tensors of one shape and dtype as one with a new leading dim.

    Raises:
        ValueError: they differ.
    """
    first = tensors[0]
    for other in tensors:
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"{other.name} is {other.dtype}{list(other.shape)}, but {first.name} "
                f"is {first.dtype}{list(first.shape)}."
            )

    def read(region: Region) -> np.ndarray:
        layers, *rest = region
        parts = [t.read(tuple(rest)) for t in tensors[layers]]
        return np.stack(parts)

    return Tensor(
        first.name,
        (len(tensors), *first.shape),
        first.dtype,
        (1, *first.piece),
        read,
    )


def layer(tensor: Tensor, index: int) -> Tensor:
    """Returns one entry of the leading dim."""

    def read(region: Region) -> np.ndarray:
        return tensor.read((slice(index, index + 1), *region)).squeeze(axis=0)

    return dataclasses.replace(
        tensor, shape=tensor.shape[1:], piece=tensor.piece[1:], read_region=read
    )


def merged(tensor: Tensor, axis: int) -> Tensor:
    """Returns the tensor with dims `axis` and `axis + 1` as one."""
    *before, outer, inner = tensor.shape[: axis + 2]
    after = tensor.shape[axis + 2 :]

    def read(region: Region) -> np.ndarray:
        wanted = region[axis]
        first, last = wanted.start // inner, -(-wanted.stop // inner)
        cover = slice(first, last), slice(0, inner)
        block = tensor.read((*region[:axis], *cover, *region[axis + 1 :]))
        flat = block.reshape(*block.shape[:axis], -1, *block.shape[axis + 2 :])
        at = slice(wanted.start - first * inner, wanted.stop - first * inner)
        part: np.ndarray = flat[(slice(None),) * axis + (at,)]
        return part

    piece = tensor.piece
    return dataclasses.replace(
        tensor,
        shape=(*before, outer * inner, *after),
        piece=(*piece[:axis], piece[axis] * inner, *piece[axis + 2 :]),
        read_region=read,
    )


def split(tensor: Tensor, axis: int, inner: int) -> Tensor:
    """Returns the tensor with one dim as two, the second of size `inner`."""
    size, piece = tensor.shape[axis], tensor.piece

    def read(region: Region) -> np.ndarray:
        outer, within = region[axis : axis + 2]
        cover = slice(outer.start * inner, outer.stop * inner)
        block = tensor.read((*region[:axis], cover, *region[axis + 2 :]))
        shape = (*block.shape[:axis], -1, inner, *block.shape[axis + 1 :])
        at = (slice(None),) * (axis + 1) + (within,)
        part: np.ndarray = block.reshape(shape)[at]
        return part

    rest = axis + 1
    return dataclasses.replace(
        tensor,
        shape=(*tensor.shape[:axis], size // inner, inner, *tensor.shape[rest:]),
        piece=(*piece[:axis], max(1, piece[axis] // inner), inner, *piece[rest:]),
        read_region=read,
    )


def cast(tensor: Tensor, dtype: DTypeLike) -> Tensor:
    """Returns the tensor in another dtype; float32 to bfloat16 rounds to nearest."""
    dtype = np.dtype(dtype)
    if tensor.dtype == dtype:
        return tensor
    return dataclasses.replace(
        tensor,
        dtype=dtype,
        read_region=lambda region: tensor.read(region).astype(dtype),
    )


def bit_cast(tensor: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """Returns the tensor with its bits read as another dtype of the same size."""
    return dataclasses.replace(
        tensor,
        dtype=dtype,
        read_region=lambda region: tensor.read(region).view(dtype),
    )


def dtype_of(name: str) -> np.dtype[Any]:
    """Returns the dtype of that name; knows bfloat16, which numpy does not.

    Raises:
        ValueError: there is none of numbers.
    """
    if name == "bfloat16":
        return BFLOAT16
    # Others, `i4,i4` or `(2,3)f4`, are of arrays and records.
    if not isinstance(name, str) or not re.fullmatch(r"[<>=|]?\w{1,16}", name):
        raise ValueError(f"{str(name)[:40]!r} is no dtype of numbers.")
    try:
        dtype = np.dtype(name)
    except TypeError:
        raise ValueError(f"{name!r} is no dtype of numbers.") from None
    if dtype.kind not in "biuf":
        raise ValueError(f"{name!r} is no dtype of numbers.")
    return dtype
