"""`ExampleStore`: one split of a supervised task as tokens, written once, mapped often.

A store is a directory. Neither mode nor EOS is in it: both are added when batches are
made, so one store serves every mode and every length.

    STORE/manifest.json       task, split, tokenizer, sizes, checksums
    STORE/inputs.tokens       11 12 13 | 21 22 | ...       int32, examples back to back
    STORE/inputs.offsets      0 3 5 ...                    uint64, one more than rows
    STORE/targets.tokens      14 | 23 24 | ...
    STORE/targets.offsets     0 1 3 ...

Example i of a store is example i of the task's split, as it is read.
"""

import array
import dataclasses
import glob
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from jaxtyping import Int32, Int64, Integer

from ul2 import json_files

FORMAT_VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"
SIDES: Final = ("inputs", "targets")
_TOKEN: Final = np.dtype("<i4")
_OFFSET: Final = np.dtype("<u8")
_CURE: Final = "delete {} and it is made again"
# Of all hashes, those below this share are held out; 64 bits of BLAKE2.
_HASH_RANGE: Final = 2**64
_FLUSH_TOKENS: Final = 2**20


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows of tokens of different lengths."""

    tokens: Int32[np.ndarray, " T"]
    offsets: Integer[np.ndarray, " N+1"]

    def __getitem__(self, row: int) -> Int32[np.ndarray, " L"]:
        return self.tokens[int(self.offsets[row]) : int(self.offsets[row + 1])]

    @property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Tokens of every row."""
        return np.diff(self.offsets.astype(np.int64))


@dataclasses.dataclass(frozen=True)
class ExampleSplit:
    """Some examples of a store.

    Attributes:
        task: name of the task.
        split: name of the split.
        inputs: of every example of the store.
        targets: of every example of the store.
        rows: which of them these are.
        fingerprint: hash of what the store holds, and of `rows`.
    """

    task: str
    split: str
    inputs: Ragged
    targets: Ragged
    rows: Int64[np.ndarray, " N"]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, side: str) -> Int64[np.ndarray, " N"]:
        """Returns the tokens of one side of every example."""
        ragged: Ragged = getattr(self, side)
        lengths: Int64[np.ndarray, " N"] = ragged.lengths[self.rows]
        return lengths

    def hold_out(self, share: float) -> tuple["ExampleSplit", "ExampleSplit"]:
        """Returns (the rest, a share of the examples), told apart by their inputs.

        Examples of the same inputs go to the same side.
        """
        assert 0 < share < 1
        limit = int(share * _HASH_RANGE)
        held = np.array([self._hash(row) < limit for row in self.rows.tolist()], bool)
        return self._only(~held, "rest", share), self._only(held, "held_out", share)

    def _hash(self, row: int) -> int:
        digest = hashlib.blake2b(self.inputs[row].tobytes(), digest_size=8)
        return int.from_bytes(digest.digest(), "little")

    def _only(self, mask: np.ndarray, name: str, share: float) -> "ExampleSplit":
        return dataclasses.replace(
            self,
            rows=self.rows[mask],
            fingerprint=f"{self.fingerprint} {name} {share}",
        )


def open_store(path: str | os.PathLike[str], *, tokenizer_sha256: str) -> ExampleSplit:
    """Opens a store, and compares every file with its checksum.

    Args:
        path: the directory.
        tokenizer_sha256: hash of the tokenizer that its ids must be of.

    Raises:
        ValueError: there is no store, it is damaged, of another version or of another
            tokenizer.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest["tokenizer_sha256"] != tokenizer_sha256:
        raise ValueError(
            f"{path} was made with the tokenizer {manifest['tokenizer_sha256']}, not "
            f"with {tokenizer_sha256}; choose another EXAMPLES_DIR, or "
            f"{_CURE.format(path)}."
        )
    count = manifest["examples"]
    sides = {side: _open_side(path, side, manifest[side], count) for side in SIDES}
    hashes = "".join(manifest[side][kind] for side in SIDES for kind in _HASHES)
    return ExampleSplit(
        task=manifest["task"],
        split=manifest["split"],
        **sides,
        rows=np.arange(count),
        fingerprint=hashlib.sha256(hashes.encode()).hexdigest(),
    )


def is_store(path: str | os.PathLike[str]) -> bool:
    """Returns whether a store, whole or damaged, is at a path."""
    return (Path(path) / MANIFEST_FILE).is_file()


def write_store(
    path: str | os.PathLike[str],
    examples: Iterable[tuple[Sequence[int], Sequence[int]]],
    *,
    task: str,
    split: str,
    tokenizer_sha256: str,
) -> None:
    """Writes a store; it appears under its name only when it is complete.

    Where somebody else finished the same one first, theirs is kept.

    Args:
        path: the directory to make.
        examples: ids of (inputs, targets), without mode and EOS.
        task: name of the task.
        split: name of the split.
        tokenizer_sha256: hash of the tokenizer that made the ids.

    Raises:
        ValueError: there is no example, or nothing can be written there.
    """
    path = Path(os.path.abspath(path))
    partial = path.with_name(f"{_partial_of_this_machine(path)}{os.getpid()}.partial")
    try:
        _throw_leftovers_away(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        manifest: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "task": task,
            "split": split,
            "tokenizer_sha256": tokenizer_sha256,
            **_write_sides(partial, examples),
        }
        if not manifest["examples"]:
            raise ValueError(f"split {split!r} of task {task!r} holds no example.")
        with (partial / MANIFEST_FILE).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.write("\n")
            _flush(file)
        try:
            partial.rename(path)
        except OSError:
            if not is_store(path):
                raise
    except OSError as error:
        raise ValueError(
            f"cannot write examples to {path}: {error.strerror}; choose another "
            "EXAMPLES_DIR."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial_of_this_machine(path: Path) -> str:
    """Returns how half-written stores are named, up to the number of a process."""
    return f".{path.name}.{socket.gethostname()}."


def _throw_leftovers_away(path: Path) -> None:
    """Removes what killed processes of this machine had begun."""
    start = _partial_of_this_machine(path)
    for partial in path.parent.glob(f"{glob.escape(start)}*.partial"):
        number = partial.name.removeprefix(start).removesuffix(".partial")
        if number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(partial, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class _SideWriter:
    """Two growing files: the tokens of one side, and where each example starts."""

    def __init__(self, folder: Path, side: str) -> None:
        self._tokens = (folder / f"{side}.tokens").open("wb")
        self._path = folder / f"{side}.offsets"
        self._hash = hashlib.sha256()
        self._offsets = array.array("Q", [0])
        self._buffer = array.array("i")
        self._longest = 0

    def add(self, ids: Sequence[int]) -> None:
        """Appends an example."""
        self._buffer.extend(ids)
        self._offsets.append(self._offsets[-1] + len(ids))
        self._longest = max(self._longest, len(ids))
        if len(self._buffer) >= _FLUSH_TOKENS:
            self._write()

    def finish(self) -> dict[str, Any]:
        """Writes the rest, and returns the side's entry in the manifest."""
        self._write()
        _flush(self._tokens)
        offsets = np.array(self._offsets, _OFFSET).tobytes()
        with self._path.open("wb") as file:
            file.write(offsets)
            _flush(file)
        return {
            "tokens": self._offsets[-1],
            "longest": self._longest,
            _HASHES[0]: self._hash.hexdigest(),
            _HASHES[1]: hashlib.sha256(offsets).hexdigest(),
        }

    def close(self) -> None:
        """Closes the file of tokens."""
        self._tokens.close()

    def _write(self) -> None:
        data = np.array(self._buffer, _TOKEN).tobytes()
        self._hash.update(data)
        self._tokens.write(data)
        self._buffer = array.array("i")


def _write_sides(
    folder: Path, examples: Iterable[tuple[Sequence[int], Sequence[int]]]
) -> dict[str, Any]:
    """Writes both sides, and returns what the manifest says of them."""
    writers = [_SideWriter(folder, side) for side in SIDES]
    count = 0
    try:
        for pair in examples:
            for writer, ids in zip(writers, pair, strict=True):
                writer.add(ids)
            count += 1
        entries = {
            side: writer.finish() for side, writer in zip(SIDES, writers, strict=True)
        }
    finally:
        for writer in writers:
            writer.close()
    return {"examples": count, **entries}


_HASHES: Final = ("tokens_sha256", "offsets_sha256")
_KEYS: Final[dict[str, type]] = {
    "task": str,
    "split": str,
    "tokenizer_sha256": str,
    "examples": int,
    **dict.fromkeys(SIDES, dict),
}


def _read_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest, and checks the version and the type of every field."""
    file = path / MANIFEST_FILE
    cure = _CURE.format(path)
    try:
        manifest = json_files.read(file)
    except OSError as error:
        raise ValueError(
            f"{path} is no store of examples: {file}: {error.strerror}."
        ) from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); {cure}.") from None
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {found!r}, this ul2 reads {FORMAT_VERSION}; "
            f"{cure}."
        )
    wrong = [key for key, kind in _KEYS.items() if type(manifest.get(key)) is not kind]
    wrong += [
        f"{side}.{key}"
        for side in SIDES
        for key in _HASHES
        if side not in wrong and not _is_sha256(manifest[side].get(key))
    ]
    if wrong:
        raise ValueError(f"{file} is damaged (no {', '.join(wrong)}); {cure}.")
    return dict(manifest)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _open_side(
    path: Path, side: str, entry: Mapping[str, Any], examples: int
) -> Ragged:
    """Maps the two files of one side, after comparing them with their checksums."""
    for kind, name in zip(_HASHES, ("tokens", "offsets"), strict=True):
        file = path / f"{side}.{name}"
        try:
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(
                f"{file}: {error.strerror}; {_CURE.format(path)}."
            ) from None
        if found != entry[kind]:
            raise ValueError(
                f"{file} is damaged: its sha256 is {found}, {entry[kind]} was written; "
                f"{_CURE.format(path)}."
            )
    offsets = _map(path / f"{side}.offsets", _OFFSET)
    tokens = _map(path / f"{side}.tokens", _TOKEN)
    sound = (
        len(offsets) == examples + 1
        and offsets[0] == 0
        and offsets[-1] == len(tokens)
        and bool((offsets[1:] >= offsets[:-1]).all())
    )
    if not sound:
        raise ValueError(
            f"{path / MANIFEST_FILE} is damaged: its {examples} examples are not those "
            f"of {side}.offsets; {_CURE.format(path)}."
        )
    return Ragged(tokens, offsets)


def _map(file: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """Maps a file as a plain array; an empty one cannot be mapped."""
    if not file.stat().st_size:
        return np.empty(0, dtype)
    if file.stat().st_size % dtype.itemsize:
        raise ValueError(f"{file} is damaged; {_CURE.format(file.parent)}.")
    return np.asarray(np.memmap(file, dtype, "r"))


def _flush(file: IO[Any]) -> None:
    """Waits until the file's content is on disk."""
    file.flush()
    os.fsync(file.fileno())
