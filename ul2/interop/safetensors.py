"""Files of safetensors, read and written piece by piece.

    8 bytes      length of the header, little endian
    header       {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    the rest     the arrays, in C order, little endian, without gaps

The library of that name cannot write an array before all of it is in memory, and reads
by mapping the file, which counts as memory used. Everything a header says is checked
before anything is believed, and nothing of a directory is read but plain files in it.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from ul2.interop.tensors import (
    Tensor,
    contiguous,
    dtype_of,
    file_reader,
    finite_pieces,
)

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
_METADATA: Final = "__metadata__"
_MAX_JSON_BYTES: Final = 2**24
_MAX_DIMS: Final = 16
_ALIGNMENT: Final = 8
_DTYPES: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
_CODES: Final = {name: code for code, name in _DTYPES.items()}
# Files in which others keep weights. Unpickling runs whatever program is in them.
_OTHER_WEIGHTS: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the arrays of a file, by name.

    Raises:
        ValueError: the file is missing, cut off or damaged; names the array.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _read_header(path, file, size)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from None
    tensors, spans = {}, []
    for name, entry in header.items():
        if name == _METADATA:
            continue
        shape, dtype, begin, end = _check_entry(path, name, entry, size - start)
        read_bytes = file_reader(path, name, start + begin)
        tensors[name] = contiguous(name, shape, dtype, read_bytes)
        spans.append((begin, end, name))
    _check_spans(path, spans, size - start)
    return tensors


def read_index(directory: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the arrays of a model: of its single file, or of all its shards.

    Raises:
        ValueError: there is neither, a shard is missing or damaged, or the weights are
            in files that only a program of their own can open.
    """
    directory = Path(directory)
    if (directory / SINGLE_FILE).is_file():
        return read(directory / SINGLE_FILE)
    index = directory / INDEX_FILE
    if not index.is_file():
        raise ValueError(_no_weights(directory))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map; copy it again.")
    shards: dict[str, dict[str, Tensor]] = {}
    tensors = {}
    for name, file in weight_map.items():
        if not _is_plain_name(file):
            raise ValueError(
                f"{index} says that {name} is in {file!r}; only a .safetensors file of "
                "the same directory is read."
            )
        if file not in shards:
            shards[file] = read(directory / file)
        if name not in shards[file]:
            raise ValueError(f"{directory / file} lacks {name}, which {index} names.")
        tensors[name] = shards[file][name]
    return tensors


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Writes arrays as a file that is there whole, or not at all.

    Pieces go to their places as they come, so a transposed view takes no more memory
    than any other.

    Raises:
        ValueError: an array holds NaN or infinity, or a dtype the format has not.
    """
    path = Path(path)
    header, offsets = _lay_out(tensors, metadata)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb", buffering=0) as file:
            _write_at(file.fileno(), memoryview(header), 0)
            for name, offset in offsets.items():
                start = len(header) + offset
                os.ftruncate(file.fileno(), start + tensors[name].nbytes)
                _write_tensor(file.fileno(), tensors[name], start)
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_shards(
    directory: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    max_bytes: int,
) -> dict[str, dict[str, Tensor]]:
    """Writes arrays, in their order, to as many files as they need.

    A file that is there already, whole, is not written again, so what was interrupted
    goes on where it stopped.

    Args:
        directory: of the files.
        stem: what their names begin with, `model` or `model-00001-of-00003`.
        tensors: all arrays.
        metadata: of every file.
        max_bytes: of the arrays in a file; a larger one has a file alone.

    Returns:
        What each file holds, by its name.

    Raises:
        ValueError: as `write` does.
    """
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > max_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    files = {}
    for number, shard in enumerate(shards, 1):
        of = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"{stem}{of}.safetensors"
        if not is_written(directory / file, shard, metadata):
            write(directory / file, shard, metadata)
        files[file] = shard
    return files


def is_written(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> bool:
    """Returns whether the file that `write` would make is there, by header and size."""
    header, _ = _lay_out(tensors, metadata)
    size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file of a model directory.

    Raises:
        ValueError: there is none, or the file is larger than such files are.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{path} is too large to be what its name says.")
        return _parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from None


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Returns the header and where the arrays begin."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(
            f"{path} is no safetensors file, or cut off: it has {size} bytes and "
            f"says that its header has {length}."
        )
    if length > _MAX_JSON_BYTES:
        raise ValueError(f"{path} has a header of {length} bytes, which is too large.")
    return _parse_json(file.read(length), f"the header of {path}"), 8 + length


def _parse_json(content: bytes, what: str) -> dict[str, Any]:
    """Returns a JSON object in which no name stands twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in found if names.count(name) > 1)
            raise KeyError(twice)
        return found

    try:
        parsed = json.loads(content, object_pairs_hook=unique)
    except KeyError as error:
        raise ValueError(f"{what} has {error.args[0]!r} twice.") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{what} is damaged: it is no JSON.") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{what} is damaged: it is no JSON object.")
    return parsed


def _check_entry(
    path: Path, name: str, entry: Any, size: int
) -> tuple[tuple[int, ...], np.dtype[Any], int, int]:
    """Returns shape, dtype, begin and end of an array, all of them possible."""
    if not isinstance(entry, dict):
        entry = {}
    code, shape = entry.get("dtype"), entry.get("shape")
    offsets = entry.get("data_offsets")
    if not _are_counts(shape, _MAX_DIMS) or not _are_counts(offsets, 2):
        raise ValueError(f"{path}: {name} has no shape and offsets; the file is bad.")
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(
            f"{path}: {name} has dtype {code!r}; known are {sorted(_DTYPES)}."
        )
    dtype = dtype_of(_DTYPES[code])
    begin, end = offsets if len(offsets) == 2 else (0, -1)
    needed = math.prod(shape) * dtype.itemsize
    if not begin <= end <= size or end - begin != needed:
        raise ValueError(
            f"{path}: {name} is {code}{shape}, {needed} bytes, but lies at {offsets} "
            f"of {size} bytes; the file is cut off or damaged."
        )
    return tuple(shape), dtype, begin, end


def _are_counts(value: Any, most: int) -> bool:
    """Returns whether a JSON value is a list of natural numbers."""
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(number) is int and number >= 0 for number in value)
    )


def _check_spans(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """Refuses arrays that overlap, and bytes that belong to none."""
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            how = "overlaps the array before it" if begin < at else "follows a gap"
            raise ValueError(f"{path}: {name} {how}; the file is damaged.")
        at = end
    if at != size:
        raise ValueError(
            f"{path}: {size - at} bytes follow the last array; the file is damaged."
        )


def _is_plain_name(file: Any) -> bool:
    """Returns whether a name that a file gives stays within its directory."""
    return (
        isinstance(file, str)
        and file.endswith(".safetensors")
        and file.isprintable()
        and not set(file) & {"/", "\\", ":"}
        and not file.startswith(".")
    )


def _no_weights(directory: Path) -> str:
    """Returns why a directory cannot be read."""
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            if path.suffix in _OTHER_WEIGHTS:
                return (
                    f"{directory} holds {path.name} but no {SINGLE_FILE}; such files "
                    "are not read, because opening one can run any program: save the "
                    "model as safetensors first."
                )
    return f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}."


def _lay_out(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Returns the header, its length included, and where each array goes after it."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offsets, at = {}, 0
    # The widest first, so that every array is aligned.
    for name in sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n)):
        tensor = tensors[name]
        if tensor.dtype.name not in _CODES:
            raise ValueError(f"{name}: safetensors has no dtype {tensor.dtype}.")
        header[name] = {
            "dtype": _CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        offsets[name] = at
        at += tensor.nbytes
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % _ALIGNMENT)
    return len(content).to_bytes(8, "little") + content, offsets


def _write_tensor(file: int, tensor: Tensor, start: int) -> None:
    """Writes all pieces of an array, which begins at byte `start` of the file."""
    if not tensor.size:
        return
    dtype = dtype_of(tensor.dtype.name)
    row_bytes = [
        math.prod(tensor.shape[axis + 1 :]) * dtype.itemsize
        for axis in range(len(tensor.shape))
    ]
    for region, block in finite_pieces(tensor):
        block = np.asarray(block, dtype, order="C")
        first = sum(s.start * n for s, n in zip(region, row_bytes, strict=True))
        for place, run in _runs(block, tensor.shape):
            at = sum(i * n for i, n in zip(place, row_bytes, strict=False))
            _write_at(file, run, start + first + at)


def _runs(
    block: np.ndarray, shape: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], memoryview]]:
    """Cuts a block into parts that lie together in an array of that shape.

    Yields the place of each within the block, and its bytes.
    """
    # All dims behind the last one that the block does not span join into one run.
    axis = max((i for i, n in enumerate(shape) if block.shape[i] < n), default=0)
    run_bytes = math.prod(block.shape[axis:]) * block.itemsize
    content = block.reshape(-1).view(np.uint8).data
    for number, place in enumerate(np.ndindex(*block.shape[:axis])):
        yield place, content[number * run_bytes : (number + 1) * run_bytes]


def _write_at(file: int, content: memoryview, offset: int) -> None:
    """Writes all of `content` at a place of the file."""
    while content:
        done = os.pwrite(file, content, offset)
        content, offset = content[done:], offset + done
