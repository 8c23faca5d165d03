"""`TokenStore`: a tokenized corpus on disk, written once and memory-mapped for ever.

A store is a directory. Documents stand one after another, each closed by EOS, in
shards of raw little-endian ids; beside each shard lie the documents' start offsets
and where every document came from.

    STORE/manifest.json            format, tokenizer, vocab contract, sizes, checksums
    STORE/tokenizer.model          the tokenizer itself
    STORE/train-00000.tokens       11 12 13 <eos> 21 22 <eos> 31 ...   uint16 or uint32
    STORE/train-00000.documents    0 4 7 ...                           uint64
    STORE/train-00000.origins      (source, record) of each document   uint32, uint64
    STORE/held_out-00000.*         documents that training never sees

`token_store_writer` makes one.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Integer

from ul2.vocab import Vocab

FORMAT_VERSION: Final = 1
SPLITS: Final = ("train", "held_out")
MANIFEST_FILE: Final = "manifest.json"
OFFSET: Final = np.dtype("<u8")
ORIGIN: Final = np.dtype([("source", "<u4"), ("record", "<u8")])
KINDS: Final = ("tokens", "documents", "origins")


class Place(NamedTuple):
    """Where a position of a split lies in the text it was made from."""

    document: int  # index within the split
    offset: int  # tokens since the start of that document
    source: str  # the file, or the name of the corpus
    record: int  # index of the document within its source


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One shard, memory-mapped; `start` and `first_document` count within the split."""

    start: int
    first_document: int
    tokens: Integer[np.ndarray, " T"]
    documents: Integer[np.ndarray, " D"]
    origins: np.ndarray


@dataclasses.dataclass(frozen=True)
class Split:
    """The documents of one split, read as one long ring of tokens.

    Pickling sends the path, not the tokens, so worker processes map the files too.
    """

    name: str
    num_tokens: int
    num_documents: int
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
            ValueError: the split is empty, or `length` is not positive.
        """
        if not self.num_tokens:
            raise ValueError(f"split {self.name!r} of the token store is empty.")
        if length < 1:
            raise ValueError(f"{length=} must be at least 1.")
        starts = np.asarray(starts, np.int64) % self.num_tokens
        windows = np.empty((len(starts), length), np.int32)
        rest = np.ones(len(starts), bool)
        for shard in self._shards:
            begin = starts - shard.start
            inside = (begin >= 0) & (begin + length <= len(shard.tokens))
            if inside.any():
                # One copy of a contiguous run per window: ten times as fast as
                # gathering token by token.
                view = np.lib.stride_tricks.sliding_window_view(shard.tokens, length)
                windows[inside] = view[begin[inside]]
                rest &= ~inside
        if rest.any():
            windows[rest] = self._gather(starts[rest, None] + np.arange(length))
        return windows

    def _gather(self, positions: Int64[np.ndarray, "C L"]) -> Int32[np.ndarray, "C L"]:
        """Reads token by token: for windows over the end of a shard or of the split."""
        positions = positions % self.num_tokens
        tokens = np.empty(positions.shape, np.int32)
        for shard in self._shards:
            begin = positions - shard.start
            inside = (begin >= 0) & (begin < len(shard.tokens))
            tokens[inside] = shard.tokens[begin[inside]]
        return tokens

    def document_of(self, position: int) -> Place:
        """Returns the document that holds `position`, which may run past the end."""
        if not self.num_tokens:
            raise ValueError(f"split {self.name!r} of the token store is empty.")
        position %= self.num_tokens
        starts = [shard.start for shard in self._shards]
        shard = self._shards[int(np.searchsorted(starts, position, "right")) - 1]
        begin = position - shard.start
        row = int(np.searchsorted(shard.documents, np.uint64(begin), "right")) - 1
        source, record = shard.origins[row].item()
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
                missing or cut short.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        for entry in _files(manifest):
            _check_size(path / entry["file"], entry["bytes"])
        sources = tuple(manifest["sources"])
        return cls(
            path=path,
            vocab=Vocab.from_json(manifest["vocab"]),
            splits={
                name: _open_split(path, name, manifest["splits"][name], sources)
                for name in SPLITS
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

    def fingerprint(self, split: str) -> str:
        """Returns a hash of a split's tokens, from the checksums of its shards."""
        shards = json.dumps(self.manifest["splits"][self.split(split).name])
        return hashlib.sha256(shards.encode()).hexdigest()

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
        for entry in _files(self.manifest):
            found = _sha256(self.path / entry["file"])
            if found != entry["sha256"]:
                raise ValueError(
                    f"{self.path / entry['file']} is damaged: its sha256 is {found}, "
                    f"{entry['sha256']} was written; tokenize the text again."
                )


def _open_split(
    path: Path, name: str, entry: Mapping[str, Any], sources: tuple[str, ...]
) -> Split:
    """Maps the shards of one split."""
    shards: list[_Shard] = []
    start = first_document = 0
    for shard in entry["shards"]:
        files = {kind: path / shard["files"][kind]["file"] for kind in KINDS}
        width = shard["files"]["tokens"]["bytes"] // shard["tokens"]
        shards.append(
            _Shard(
                start=start,
                first_document=first_document,
                tokens=_map(files["tokens"], np.dtype(f"<u{width}")),
                documents=_map(files["documents"], OFFSET),
                origins=_map(files["origins"], ORIGIN),
            )
        )
        start += shard["tokens"]
        first_document += shard["documents"]
    return Split(
        name=name,
        num_tokens=start,
        num_documents=first_document,
        _path=path,
        _shards=tuple(shards),
        _sources=sources,
    )


def _reopen_split(path: Path, name: str) -> Split:
    """Opens a split anew, in the process that unpickles it."""
    return TokenStore.open(path).split(name)


def _map(file: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """Maps a file as a plain array: indexing an `np.memmap` costs twice as much."""
    return np.asarray(np.memmap(file, dtype, "r"))


_KEYS: Final = ("tokenizer", "vocab", "splits", "sources")


def _read_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest and checks the format version."""
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise ValueError(
            f"{path} is no token store: {file} does not exist; make one with "
            "`ul2 tokenize` or set DATA to one."
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from None
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}, this ul2 reads {FORMAT_VERSION}; "
            "tokenize the text again."
        )
    missing = [key for key in _KEYS if key not in manifest]
    if missing:
        raise ValueError(f"{file} is damaged: no {', '.join(missing)}.")
    return manifest


def _files(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the manifest's entry of every file but the manifest itself."""
    shards = [
        entry
        for split in manifest["splits"].values()
        for shard in split["shards"]
        for entry in shard["files"].values()
    ]
    return [manifest["tokenizer"], *shards]


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


def _sha256(file: Path) -> str:
    """Returns the hash of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
