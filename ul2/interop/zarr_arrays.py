"""Zarr arrays on disk: each in a directory of its own, or all in an OCDBT database.

T5X and orbax both keep arrays so, and TensorStore reads and writes both. What it would
let pass is checked here: a chunk that is not there reads as zeros.
"""

import itertools
import json
import math
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorstore as ts

from ul2 import json_files
from ul2.interop.tensors import Region, Tensor, by_rows, dtype_of, finite_pieces

_HEAD: Final = ".zarray"
METADATA: Final = "_METADATA"
_MAX_HEAD_BYTES: Final = 2**20
# Chunks may be decoded whole, so a bigger one than this is refused; writers of the
# formats that are read here stay below 64 MiB, or at one array of one layer.
_MAX_CHUNK_BYTES: Final = 4 * 2**30
_MAX_TREE_BYTES: Final = 2**26
# Of chunks that may be absent.
_MAX_ABSENT: Final = 10_000
_CHUNK_OVERHEAD: Final = 2**16
# As TensorStore says INVALID_ARGUMENT, UNIMPLEMENTED and OUT_OF_RANGE, and others.
_DAMAGES: Final = (ValueError, NotImplementedError, IndexError, OverflowError)


class _UnknownZarrError(Exception):
    """The arrays are of another version of zarr."""


def read_directory(root: Path, name: str) -> Tensor:
    """Returns the array in the directory `name` of `root`.

    Raises:
        ValueError: it is not there, damaged, or lacks chunks; names it.
    """
    if name in ("", ".", "..") or set(name) & {"/", "\\"} or not name.isprintable():
        raise ValueError(f"{name!r} cannot be the name of an array in {root}.")
    directory = root / name
    try:
        if os.path.getsize(directory / _HEAD) > _MAX_HEAD_BYTES:
            raise ValueError(f"{name}: {directory / _HEAD} is no head of a zarr array.")
        content = (directory / _HEAD).read_bytes()
        files = set(os.listdir(directory))
    except OSError as error:
        raise ValueError(
            f"{name}: {directory} is no zarr array ({error.strerror})."
        ) from None
    store = {"driver": "file", "path": f"{directory}/"}
    return _open(name, content, store, files, directory)


def read_database(root: Path) -> dict[str, Tensor]:
    """Returns the arrays of an orbax item: a directory with an OCDBT database, or not.

    Keys are the arrays' places in the saved tree, joined by slashes.

    Raises:
        ValueError: the directory is no such item, or damaged; names the array.
    """
    tree = _read_tree(root)
    if not (root / "manifest.ocdbt").is_file():
        return {"/".join(keys): read_directory(root, ".".join(keys)) for keys in tree}
    base = {"driver": "file", "path": f"{root.absolute()}/"}
    store = {"driver": "ocdbt", "base": base}
    try:
        database = ts.KvStore.open(store).result()
        found: dict[str, set[str]] = {}
        for key in database.list().result():
            array, _, chunk = key.decode().partition("/")
            found.setdefault(array, set()).add(chunk)
        heads = {
            # As bytes: a name may hold half of a character.
            name: database.read(f"{name}/{_HEAD}".encode()).result().value
            for name in map(".".join, tree)
        }
    except _DAMAGES as error:
        raise ValueError(f"{root} is damaged: {_first_line(error)}") from None
    arrays = {}
    for keys in tree:
        name = ".".join(keys)
        place = {**store, "path": f"{name}/"}
        there = found.get(name, set())
        arrays["/".join(keys)] = _open(name, heads[name], place, there)
    return arrays


def _read_tree(root: Path) -> list[tuple[str, ...]]:
    """Returns the place of every array that orbax has written."""
    try:
        metadata = json_files.read_object(root / METADATA, most_bytes=_MAX_TREE_BYTES)
        if metadata.get("use_zarr3"):
            raise _UnknownZarrError
        return [
            tuple(str(key["key"]) for key in entry["key_metadata"])
            for entry in metadata["tree_metadata"].values()
            if not entry["value_metadata"]["skip_deserialize"]
        ]
    except OSError as error:
        raise ValueError(
            f"{root} is no item of orbax: {METADATA}: {error.strerror}."
        ) from None
    except _UnknownZarrError:
        raise ValueError(
            f"{root} is of zarr 3; only orbax's default is read."
        ) from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{root / METADATA} is damaged.") from None


def _open(
    name: str,
    head: bytes,
    store: dict[str, Any],
    there: Set[str],
    directory: Path | None = None,
) -> Tensor:
    """Checks an array's head and chunks, and returns the array.

    Args:
        name: of the array.
        head: content of its head.
        store: where TensorStore finds it.
        there: names of all that lies there, chunks among them.
        directory: where chunks are files; TensorStore reads a file of any size.
    """
    shape, chunks, dtype, sep, may_lack = _read_head(name, head)
    grid = [math.ceil(size / chunk) for size, chunk in zip(shape, chunks, strict=True)]
    count = math.prod(grid)
    if count > len(there) + (_MAX_ABSENT if may_lack else 0):
        # A head may ask for more chunks than could ever be counted.
        raise ValueError(
            f"{name}: most of its {count} chunks are missing; copy the checkpoint "
            "again."
        )
    if not may_lack:
        for place in np.ndindex(*grid):
            chunk = sep.join(map(str, place)) or "0"
            if chunk not in there:
                raise ValueError(
                    f"{name}: chunk {chunk} of {count} is missing; copy the checkpoint "
                    "again."
                )

    def read(region: Region) -> np.ndarray:
        if directory is not None:
            _check_chunks(name, directory, region, chunks, dtype, sep)
        spec = {"driver": "zarr", "kvstore": store}
        try:
            array = ts.open(spec, open=True, read=True).result()
            return np.asarray(array[region].read().result())
        except _DAMAGES as error:
            raise ValueError(
                f"{name} cannot be read, its file is damaged: {_first_line(error)}"
            ) from None

    return Tensor(name, shape, dtype, _piece(shape, chunks, dtype), read)


def _check_chunks(
    name: str,
    directory: Path,
    region: Region,
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    sep: str,
) -> None:
    """Refuses chunks of a region whose files are larger than what they could hold."""
    most = 2 * math.prod(chunks) * dtype.itemsize + _CHUNK_OVERHEAD
    ranges = [
        range(one.start // size, -(-one.stop // size))
        for one, size in zip(region, chunks, strict=True)
    ]
    for place in itertools.product(*ranges):
        chunk = sep.join(map(str, place)) or "0"
        try:
            size = os.path.getsize(directory / chunk)
        except OSError:
            continue  # the fill value stands for it, or TensorStore will say so
        if size > most:
            raise ValueError(
                f"{name}: chunk {chunk} has {size:,} bytes, more than it could hold; "
                "copy the checkpoint again."
            )


def _read_head(
    name: str, content: bytes
) -> tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any], str, bool]:
    """Returns shape, chunk shape, dtype, separator, and whether chunks may be absent.

    They may where a fill value is given; T5X and orbax give none and write them all.
    """
    try:
        head = json_files.parse(content)
        shape, chunks = tuple(head["shape"]), tuple(head["chunks"])
        dtype = dtype_of(head["dtype"])
        separator = head.get("dimension_separator", ".")
        sound = (
            head["zarr_format"] == 2
            and len(shape) == len(chunks) <= 16
            and all(type(n) is int and n >= 0 for n in shape)
            and all(type(n) is int and n > 0 for n in chunks)
            and separator in (".", "/")
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(f"{name}: its {_HEAD} is damaged.")
    if math.prod(chunks) * dtype.itemsize > _MAX_CHUNK_BYTES:
        raise ValueError(f"{name}: chunks of {list(chunks)} {dtype} are too large.")
    return shape, chunks, dtype, separator, head.get("fill_value") is not None


def _piece(
    shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[int, ...]:
    """Returns blocks of whole chunks, of rows as long as there is room for them."""
    rows = by_rows(shape, dtype)
    return tuple(
        max(1, min(max(row // chunk, 1) * chunk, size))
        for row, chunk, size in zip(rows, chunks, shape, strict=True)
    )


def write_directory(
    root: Path, name: str, tensor: Tensor, compressor: dict[str, Any] | None
) -> None:
    """Writes an array, a piece of it per chunk.

    Raises:
        ValueError: it holds a NaN or an infinity, or could not be read.
    """
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{root.absolute() / name}/"},
        "metadata": {
            **chunking(tensor, compressor),
            "dtype": _zarr_dtype(tensor.dtype),
            "order": "C",
            "fill_value": None,
        },
    }
    array = ts.open(spec, create=True, delete_existing=True).result()
    for region, block in finite_pieces(tensor):
        try:
            array[region].write(block).result()
        except ValueError as error:
            raise ValueError(
                f"{name} cannot be written: {_first_line(error)}"
            ) from None


def chunking(tensor: Tensor, compressor: dict[str, Any] | None) -> dict[str, Any]:
    """Returns what a head says of an array that is written a piece per chunk."""
    return {
        "shape": list(tensor.shape),
        "chunks": list(tensor.piece),
        "compressor": compressor,
    }


def write_metadata(root: Path, tensors: Mapping[tuple[str, ...], Tensor]) -> None:
    """Writes what makes arrays in directories an item that orbax restores."""
    tree = {
        str(keys): {
            "key_metadata": [
                # orbax's key types: 1 counts entries of a sequence, 2 names them.
                {"key": key, "key_type": 1 if key.isdigit() else 2}
                for key in keys
            ],
            "value_metadata": {
                "value_type": "jax.Array",
                "skip_deserialize": False,
                "write_shape": list(tensor.shape),
            },
        }
        for keys, tensor in tensors.items()
    }
    metadata = {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    (root / METADATA).write_text(json.dumps(metadata))


def _zarr_dtype(dtype: np.dtype[Any]) -> str:
    """Returns how a zarr head names a dtype."""
    return dtype.name if dtype.name == "bfloat16" else dtype.newbyteorder("<").str


def _first_line(error: Exception) -> str:
    """Returns what TensorStore says, without the dump of what it was given."""
    return str(error).split(" [", 1)[0].splitlines()[0][:300]
