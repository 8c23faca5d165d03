"""`TokenStore`: a tokenized corpus on disk, written once and memory-mapped for ever.

A store is a directory. Documents stand one after another, each closed by EOS, in
shards of raw little-endian ids; beside each shard lie the documents' start offsets
and where every document came from.

    STORE/manifest.json            format, tokenizer, vocab contract, sizes, checksums
    STORE/tokenizer.model          the tokenizer itself
    STORE/train-00000.tokens       11 12 13 <eos> 21 22 <eos> 31 ...   uint16 or uint32
    STORE/train-00000.documents    0 4 7 ...                           uint64
    STORE/train-00000.origins      (source, record) of each document   uint32, uint64
    STORE/train-00000.checksums    CRC-32 of each 16 KiB of tokens     uint32
    STORE/held_out-00000.*         documents that training never sees

Opening compares sizes, and the hashes of what is small. Tokens are compared with their
checksums where they are read, documents and origins when a place is first looked up.
`token_store_writer` makes a store.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Integer

from ul2.data import store_manifest
from ul2.data.block_checksums import CHECKSUM, BlockChecksums
from ul2.data.store_manifest import CHECKSUMS, KINDS, OFFSET, ORIGIN, SPLITS
from ul2.vocab import Vocab


class Place(NamedTuple):
    """Where a position of a split lies in the text it was made from."""

    document: int  # index within the split
    offset: int  # tokens since the start of that document
    source: str  # the file, or the name of the corpus
    record: int  # index of the document within its source


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One shard, memory-mapped; `start` and `first_document` count within the split."""

    path: Path
    files: Mapping[str, Mapping[str, Any]]
    start: int
    first_document: int
    tokens: Integer[np.ndarray, " T"]
    checksums: BlockChecksums | None

    def read(self, begin: int, length: int) -> Integer[np.ndarray, " T"]:
        """Returns the tokens from `begin` on, at most as many as there are."""
        tokens = self.tokens[begin : begin + length]
        if self.checksums is not None:
            width = self.tokens.itemsize
            self.checksums.check(begin * width, len(tokens) * width)
        return tokens

    @functools.cached_property
    def documents(self) -> Integer[np.ndarray, " D"]:
        """Where each document starts."""
        return self._sound("documents", OFFSET)

    @functools.cached_property
    def origins(self) -> np.ndarray:
        """Where each document came from."""
        return self._sound("origins", ORIGIN)

    def _sound(self, kind: str, dtype: "np.dtype[Any]") -> np.ndarray:
        """Maps a file, after comparing it with its hash."""
        _check_hash(self.path, self.files[kind])
        return _map(self.path / self.files[kind]["file"], dtype)


@dataclasses.dataclass(frozen=True)
class Split:
    """The documents of one split, read as one long ring of tokens.

    Pickling sends the path, not the tokens, so worker processes map the files too.
    """

    name: str
    num_tokens: int
    num_documents: int
    num_ids: int
    _path: Path
    _shards: tuple[_Shard, ...]
    _sources: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_split, (self._path, self.name)

    def take(
        self, starts: Int64[np.ndarray, " C"], length: int
    ) -> Int32[np.ndarray, "C L"]:
        """Returns the `length` tokens from each start on.

        A window that passes the last token goes on at the first.

        Raises:
            ValueError: the split is empty, `length` is not positive, or what was read
                is damaged.
        """
        if not self.num_tokens:
            raise ValueError(f"split {self.name!r} of the token store is empty.")
        if length < 1:
            raise ValueError(f"{length=} must be at least 1.")
        starts = np.asarray(starts, np.int64) % self.num_tokens
        owners = np.searchsorted(self._starts, starts, "right") - 1
        windows = np.empty((len(starts), length), np.int32)
        # One copy of a contiguous run per window, however many shards there are: ten
        # times as fast as gathering token by token.
        for window, owner, start in zip(
            windows, owners.tolist(), starts.tolist(), strict=True
        ):
            self._read(window, owner, start - self._shards[owner].start)
        if windows.max(initial=0) >= self.num_ids or windows.min(initial=0) < 0:
            raise ValueError(
                f"{self._path} is damaged: split {self.name!r} holds a token "
                f"beyond the {self.num_ids:,} ids of its vocabulary; tokenize the text "
                "again."
            )
        return windows

    def _read(self, window: Int32[np.ndarray, " L"], owner: int, begin: int) -> None:
        """Fills a window from a shard on; where that ends, the next one goes on."""
        filled = 0
        while filled < len(window):
            tokens = self._shards[owner].read(begin, len(window) - filled)
            window[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
            owner, begin = (owner + 1) % len(self._shards), 0

    @functools.cached_property
    def _starts(self) -> Int64[np.ndarray, " S"]:
        """Where in the split each shard starts."""
        return np.array([shard.start for shard in self._shards], np.int64)

    def document_of(self, position: int) -> Place:
        """Returns the document that holds `position`, which may run past the end."""
        if not self.num_tokens:
            raise ValueError(f"split {self.name!r} of the token store is empty.")
        position %= self.num_tokens
        owner = int(np.searchsorted(self._starts, position, "right")) - 1
        shard = self._shards[owner]
        begin = position - shard.start
        row = int(np.searchsorted(shard.documents, np.uint64(begin), "right")) - 1
        source, record = shard.origins[row].item()
        if row < 0 or source >= len(self._sources):
            raise ValueError(
                f"{self._path} is damaged: token {position} of split {self.name!r} is "
                "of no document; tokenize the text again."
            )
        return Place(
            document=shard.first_document + row,
            offset=begin - int(shard.documents[row]),
            source=self._sources[source],
            record=record,
        )


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A complete store, opened for reading."""

    path: Path
    vocab: Vocab
    splits: Mapping[str, Split]
    manifest: Mapping[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore.open, (self.path,)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "TokenStore":
        """Maps the store at `path` and checks the size of every file.

        Raises:
            ValueError: there is no store, it is of another version, or a file is
                missing, cut short or damaged.
        """
        path = Path(path)
        manifest = store_manifest.read(path)
        for entry in store_manifest.files(manifest):
            _check_size(path / entry["file"], entry["bytes"])
        _check_hash(path, manifest["tokenizer"])
        vocab = store_manifest.vocab_of(path, manifest)
        return cls(
            path=path,
            vocab=vocab,
            splits={
                name: _open_split(path, name, manifest, vocab.size) for name in SPLITS
            },
            manifest=manifest,
        )

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's model file, kept inside the store."""
        return self.path / str(self.manifest["tokenizer"]["file"])

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer that made the tokens."""
        return str(self.manifest["tokenizer"]["sha256"])

    def split(self, name: str) -> Split:
        """Returns a split by name.

        Raises:
            ValueError: `name` is no split.
        """
        if name not in self.splits:
            raise ValueError(f"split={name!r} is not one of {list(self.splits)}.")
        return self.splits[name]

    @property
    def has_checksums(self) -> bool:
        """Whether damage to tokens is found where they are read."""
        return all(
            CHECKSUMS in shard["files"]
            for split in self.manifest["splits"].values()
            for shard in split["shards"]
        )

    def fingerprint(self, split: str) -> str:
        """Returns a hash of a split's tokens, from the hashes of its shards.

        It is the same with and without checksums of blocks.
        """
        entry = self.manifest["splits"][self.split(split).name]
        shards = [
            {**shard, "files": {kind: shard["files"][kind] for kind in KINDS}}
            for shard in entry["shards"]
        ]
        text = json.dumps({**entry, "shards": shards})
        return hashlib.sha256(text.encode()).hexdigest()

    def require_tokenizer(self, sha256: str) -> None:
        """Refuses tokens that another tokenizer made.

        Raises:
            ValueError: the store's tokenizer is not the one with this hash.
        """
        if sha256 != self.tokenizer_sha256:
            raise ValueError(
                f"{self.path} was made with the tokenizer {self.tokenizer_sha256} "
                f"({self.tokenizer_path}), not with {sha256}; tokenize the text again "
                "or set DATA to a store of this tokenizer."
            )

    def verify(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
            ValueError: a file is not what was written.
        """
        for entry in store_manifest.files(self.manifest):
            _check_hash(self.path, entry)


def _open_split(
    path: Path, name: str, manifest: Mapping[str, Any], num_ids: int
) -> Split:
    """Maps the shards of one split."""
    shards: list[_Shard] = []
    start = first_document = 0
    dtype = store_manifest.token_dtype(manifest)
    for shard in manifest["splits"][name]["shards"]:
        files = shard["files"]
        shards.append(
            _Shard(
                path=path,
                files=files,
                start=start,
                first_document=first_document,
                tokens=_map(path / files["tokens"]["file"], dtype),
                checksums=_open_checksums(path, files),
            )
        )
        start += shard["tokens"]
        first_document += shard["documents"]
    return Split(
        name=name,
        num_tokens=start,
        num_documents=first_document,
        num_ids=num_ids,
        _path=path,
        _shards=tuple(shards),
        _sources=tuple(manifest["sources"]),
    )


def _open_checksums(
    path: Path, files: Mapping[str, Mapping[str, Any]]
) -> BlockChecksums | None:
    """Maps the checksums of a shard; None where it has none."""
    if CHECKSUMS not in files:
        return None
    tokens = path / files["tokens"]["file"]
    checksums = _map(path / files[CHECKSUMS]["file"], CHECKSUM)
    return BlockChecksums(tokens, _map(tokens, np.dtype(np.uint8)), checksums)


def _reopen_split(path: Path, name: str) -> Split:
    """Opens a split anew, in the process that unpickles it."""
    return TokenStore.open(path).split(name)


def _map(file: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """Maps a file as a plain array: indexing an `np.memmap` costs twice as much."""
    return np.asarray(np.memmap(file, dtype, "r"))


def _check_size(file: Path, size: int) -> None:
    """Refuses a file that is missing or of another size."""
    if not file.is_file():
        raise ValueError(f"{file} is missing from the store; tokenize the text again.")
    found = file.stat().st_size
    if found != size:
        raise ValueError(
            f"{file} holds {found:,} bytes, {size:,} were written; copy or tokenize "
            "it again."
        )


def _check_hash(path: Path, entry: Mapping[str, Any]) -> None:
    """Refuses a file that is not what was written."""
    file = path / entry["file"]
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}.") from None
    if found != entry["sha256"]:
        raise ValueError(
            f"{file} is damaged: its sha256 is {found}, {entry['sha256']} was written; "
            "tokenize the text again."
        )
