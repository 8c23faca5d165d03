"""Whether the files of a checkpoint are those that were written.

    checkpoints/1000/checksums.json
        {"files": {"params/ocdbt.process_0/d/2fb1": [1048576, 3735928559], ...}}

A list of all files with size and CRC-32, which the checkpoint holds before it gets its
name. It finds what a disk, a copy or a person did to them: a file that is gone, cut
off, changed in a single bit, or somebody else's. It is no seal against those who would
write the list anew.

What is summed is read back from where it was written, and synced to the disk first, so
a disk that refuses late (a quota, a network) refuses while the data is still there.

What it costs: every byte is read once more, by several threads; one sums about a
gigabyte a second. A checkpoint of 20B with Adafactor is 80 GB. Each process sums what
it wrote itself, in the thread that saves, while training goes on: on 64 hosts 1.3 GB
each, some two seconds. When a run starts, the files are dealt out to the processes and
read once by one of them: the same two seconds, or 80 GB by the speed of the storage on
a single host (at 2 GB/s, 40 seconds).
"""

import errno
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Final

CHECKSUMS: Final = "checksums.json"
# {"params/_METADATA": (size, CRC-32)}, by path from the checkpoint's folder.
Sums = Mapping[str, tuple[int, int]]

_THREADS: Final = 8
_PIECE_BYTES: Final = 1 << 22
# A list longer than this is none of ours: 20B on 512 hosts have 2 MB.
_LIST_BYTES: Final = 1 << 28
# What file systems answer that have nothing to sync a folder for.
_NO_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def files_of(folder: Path) -> list[str]:
    """Returns the files of a checkpoint by path, in order, but for the list itself."""
    names = (
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file()
    )
    return sorted(name for name in names if name != CHECKSUMS)


def sum_files(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Returns size and CRC-32 of files, and makes sure that they are on the disk.

    Raises:
        OSError: a file cannot be read, or the disk did not take it.
    """
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda name: _sum(folder / name, sync=True), names)
        return dict(zip(names, sums, strict=True))


def write_list(folder: Path, sums: Sums) -> None:
    """Writes the list of a checkpoint's files, and syncs it and all folders."""
    with (folder / CHECKSUMS).open("w", encoding="utf-8") as file:
        json.dump({"files": {name: list(sums[name]) for name in sorted(sums)}}, file)
        file.flush()
        os.fsync(file.fileno())
    for inner in folder.rglob("*"):
        if inner.is_dir():
            sync_folder(inner)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes sure that the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def has_list(folder: Path) -> bool:
    """Returns whether a checkpoint can be verified; older and imported ones cannot."""
    return (folder / CHECKSUMS).is_file()


def find_damage(
    folder: Path,
    *,
    items: Iterable[str] | None = None,
    part: tuple[int, int] = (0, 1),
    contents: bool = True,
) -> str | None:
    """Returns what is wrong with a checkpoint's files; None where nothing is.

    params/d/2fb1: 4096 bytes, not 1048576
    params/d/2fb1: is not what was written (its checksum differs)

    Args:
        folder: of the checkpoint; one without a list is not judged.
        items: the folders in it that matter; all by default.
        part: reads files k, k + n, k + 2n... alone, for (k, n).
        contents: read them; otherwise only what is there and how long it is.
    """
    if not has_list(folder):
        return None
    try:
        sums = _read_list(folder / CHECKSUMS)
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS}: {_words(error)}"
    wanted = None if items is None else set(items)
    mine = [
        name
        for name in sorted(sums, key=lambda name: (-sums[name][0], name))
        if wanted is None or PurePosixPath(name).parts[0] in wanted
    ][part[0] :: part[1]]

    def judge(name: str) -> str | None:
        return _judge(folder / name, name, sums[name], contents)

    with ThreadPoolExecutor(_THREADS) as pool:
        return next(filter(None, pool.map(judge, mine)), None)


def _judge(
    file: Path, name: str, expected: tuple[int, int], contents: bool
) -> str | None:
    try:
        size = file.stat().st_size
        if size != expected[0]:
            return f"{name}: {size} bytes, not {expected[0]}"
        if contents and _sum(file, sync=False) != expected:
            return f"{name}: is not what was written (its checksum differs)"
    except FileNotFoundError:
        return f"{name}: is missing"
    except OSError as error:
        return f"{name}: {_words(error)}"
    return None


def _sum(file: Path, *, sync: bool) -> tuple[int, int]:
    """Returns size and CRC-32 of a file."""
    size = crc = 0
    with file.open("rb", buffering=0) as opened:
        if sync:
            os.fsync(opened.fileno())
        buffer = memoryview(bytearray(_PIECE_BYTES))
        while count := opened.readinto(buffer):
            size += count
            crc = zlib.crc32(buffer[:count], crc)
    return size, crc


def _read_list(file: Path) -> dict[str, tuple[int, int]]:
    """Reads what `write_list` wrote.

    Raises:
        ValueError: it is nothing of the kind.
    """
    if file.stat().st_size > _LIST_BYTES:
        raise ValueError("is too long for a list of files")
    try:
        fields: Any = json.loads(file.read_bytes())
        return {
            _checked(name): (int(size), int(crc))
            for name, (size, crc) in fields["files"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("is no list of files") from None


def _checked(name: str) -> str:
    """Returns a path that stays inside the checkpoint."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(name)
    return name


def _words(error: Exception) -> str:
    """Returns what an error says, on one line and without its path."""
    text = error.strerror if isinstance(error, OSError) else str(error)
    return " ".join(str(text or error).split())
