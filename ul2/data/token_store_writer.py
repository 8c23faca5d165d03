"""`TokenStoreWriter`: makes the directory that `token_store` describes.

A store appears under its name only when it is complete: it is written beside its
place, flushed to disk and renamed. Documents never cross a shard, and the same
documents make the same bytes.

    .STORE.lock       while somebody writes it
    .STORE.partial    what is being written; after a kill, the next throws it away
    .STORE.replaced   an older store that is just being replaced; after a kill, the next
                      puts it back
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np
from jaxtyping import Integer

from ul2.data import store_manifest
from ul2.data.block_checksums import BlockWriter
from ul2.data.store_manifest import (
    CHECKSUMS,
    FORMAT_VERSION,
    KINDS,
    MANIFEST_FILE,
    OFFSET,
    ORIGIN,
    SPLITS,
)
from ul2.lock import Lock
from ul2.vocab import Vocab

TOKENIZER_FILE: Final = "tokenizer.model"


class TokenStoreWriter:
    """Writes a store; used as a context manager.

    The store appears at `path` when the block ends without an error; otherwise
    (Ctrl-C included) nothing remains.

        with TokenStoreWriter(path, tokenizer=model, vocab=vocab) as writer:
            writer.add("train", tokens, lengths=[4, 3], origins=[("a.txt", 0), ...])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: bytes,
        vocab: Vocab,
        overwrite: bool = False,
        shard_tokens: int = 2**28,
    ) -> None:
        """Prepares to write to `path`.

        Args:
            path: the directory to make.
            tokenizer: content of the tokenizer's model file, kept in the store.
            vocab: the tokenizer's vocab contract.
            overwrite: whether to replace a store that is there.
            shard_tokens: a shard is closed once it holds this many.

        Raises:
            ValueError: `path` is taken, or `vocab` is of another tokenizer.
        """
        self.path = Path(os.path.abspath(path))
        self._lock = Lock(
            self._beside("lock"), what=f"{self.path}", instead="choose another place"
        )
        self._partial, self._replaced = (
            self._beside("partial"),
            self._beside("replaced"),
        )
        self.provenance: dict[str, Any] = {}
        self._overwrite = overwrite
        self._check_target()
        self._tokenizer = tokenizer
        sha256 = hashlib.sha256(tokenizer).hexdigest()
        if sha256 != vocab.tokenizer_sha256:
            raise ValueError(
                f"the vocab contract is of tokenizer {vocab.tokenizer_sha256}, but the "
                f"tokenizer given is {sha256}."
            )
        self._vocab = vocab
        self._dtype = np.dtype("<u2" if vocab.size <= 2**16 else "<u4")
        self._shard_tokens = shard_tokens
        self._sources: dict[str, int] = {}
        self._shards: dict[str, list[_ShardWriter]] = {name: [] for name in SPLITS}

    def __enter__(self) -> Self:
        """Begins the store.

        Raises:
            ValueError: another process writes it, or it is there by now.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._lock)
            self._put_back()
            shutil.rmtree(self._partial, ignore_errors=True)
            self._check_target()
            self._partial.mkdir()
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for shards in self._shards.values():
                for shard in shards:
                    shard.close()
            shutil.rmtree(self._partial, ignore_errors=True)
            self._held.close()

    def add(
        self,
        split: str,
        tokens: Integer[np.ndarray, " T"],
        lengths: Integer[np.ndarray, " D"],
        origins: list[tuple[str, int]],
    ) -> None:
        """Appends documents.

        Args:
            split: `train` or `held_out`.
            tokens: the documents back to back, each ending in EOS.
            lengths: tokens of each document, EOS included.
            origins: (source name, record index) of each document.
        """
        assert len(lengths) == len(origins) and int(np.sum(lengths)) == len(tokens)
        if not len(lengths):
            return
        assert (tokens[np.cumsum(lengths) - 1] == self._vocab.eos_id).all()
        shards = self._shards[split]
        if not shards or shards[-1].num_tokens >= self._shard_tokens:
            stem = f"{split}-{len(shards):05d}"
            if shards:
                shards[-1].close()
            shards.append(_ShardWriter(self._partial, stem))
        ends = np.cumsum(lengths, dtype=np.uint64)
        rows = np.empty(len(origins), ORIGIN)
        rows["source"] = [
            self._sources.setdefault(source, len(self._sources))
            for source, _ in origins
        ]
        rows["record"] = [record for _, record in origins]
        shards[-1].write(
            tokens.astype(self._dtype, copy=False),
            (ends - np.asarray(lengths, np.uint64)).astype(OFFSET),
            rows,
        )

    def num_documents(self, split: str) -> int:
        """Returns how many documents were added to `split`."""
        return sum(shard.num_documents for shard in self._shards[split])

    def num_tokens(self, split: str) -> int:
        """Returns how many tokens were added to `split`."""
        return sum(shard.num_tokens for shard in self._shards[split])

    def _beside(self, role: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{role}")

    def _put_back(self) -> None:
        """Undoes half of the replacing of an older store, or what it left to do."""
        if self._replaced.exists() and not self.path.exists():
            os.rename(self._replaced, self.path)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _check_target(self) -> None:
        """Refuses to write over anything but an empty directory or an older store."""
        if not self.path.exists():
            return
        if self.path.is_dir() and not any(self.path.iterdir()):
            return
        if not self._overwrite:
            raise ValueError(
                f"{self.path} exists; choose another place, or --overwrite it."
            )
        if not (self.path / MANIFEST_FILE).is_file():
            raise ValueError(
                f"{self.path} exists and is no token store, so it is not overwritten; "
                "choose another place."
            )

    def _finish(self) -> None:
        """Flushes everything, then gives the store its name."""
        if not any(self._shards.values()):
            raise ValueError(f"no documents: nothing to write to {self.path}.")
        with (self._partial / TOKENIZER_FILE).open("wb") as file:
            file.write(self._tokenizer)
            _flush(file)
        manifest = {
            "format_version": FORMAT_VERSION,
            "dtype": self._dtype.name,
            "tokenizer": {
                "file": TOKENIZER_FILE,
                "bytes": len(self._tokenizer),
                "sha256": self._vocab.tokenizer_sha256,
            },
            "vocab": self._vocab.to_json(),
            "splits": {
                name: {
                    "tokens": self.num_tokens(name),
                    "documents": self.num_documents(name),
                    "shards": [shard.finish() for shard in shards],
                }
                for name, shards in self._shards.items()
            },
            "provenance": self.provenance,
            "sources": list(self._sources),
        }
        with (self._partial / MANIFEST_FILE).open("w", encoding="utf-8") as text:
            text.write(store_manifest.write(manifest))
            _flush(text)
        _flush_directory(self._partial)
        self._rename()

    def _rename(self) -> None:
        """Moves the finished store to its place, an older one out of the way."""
        self._check_target()
        if self.path.exists():
            os.rename(self.path, self._replaced)
        os.rename(self._partial, self.path)
        _flush_directory(self.path.parent)
        shutil.rmtree(self._replaced, ignore_errors=True)


class _ShardWriter:
    """Three growing files and their running checksums, which make a fourth."""

    def __init__(self, directory: Path, stem: str) -> None:
        self.num_tokens = 0
        self.num_documents = 0
        self._entries: list[dict[str, Any]] = [
            {"file": f"{stem}.{kind}", "bytes": 0} for kind in KINDS
        ]
        self._hashes = [hashlib.sha256() for _ in KINDS]
        self._blocks = BlockWriter()
        self._checksums = directory / f"{stem}.{CHECKSUMS}"
        self._files: list[IO[bytes]] = [
            (directory / entry["file"]).open("wb") for entry in self._entries
        ]

    def write(
        self,
        tokens: Integer[np.ndarray, " T"],
        documents: Integer[np.ndarray, " D"],
        origins: np.ndarray,
    ) -> None:
        """Appends documents whose start offsets count from the first of them."""
        documents += OFFSET.type(self.num_tokens)
        for entry, file, digest, rows in zip(
            self._entries,
            self._files,
            self._hashes,
            (tokens, documents, origins),
            strict=True,
        ):
            data = rows.tobytes()
            file.write(data)
            digest.update(data)
            entry["bytes"] += len(data)
            if rows is tokens:
                self._blocks.add(data)
        self.num_tokens += len(tokens)
        self.num_documents += len(documents)

    def close(self) -> None:
        """Flushes the files to disk; further calls do nothing."""
        for file in self._files:
            if not file.closed:
                _flush(file)
                file.close()

    def finish(self) -> dict[str, Any]:
        """Closes the files and returns the shard's entry in the manifest."""
        self.close()
        for entry, digest in zip(self._entries, self._hashes, strict=True):
            entry["sha256"] = digest.hexdigest()
        checksums = self._blocks.finish()
        with self._checksums.open("wb") as file:
            file.write(checksums)
            _flush(file)
        of_checksums = {
            "file": self._checksums.name,
            "bytes": len(checksums),
            "sha256": hashlib.sha256(checksums).hexdigest(),
        }
        return {
            "tokens": self.num_tokens,
            "documents": self.num_documents,
            "files": {
                **dict(zip(KINDS, self._entries, strict=True)),
                CHECKSUMS: of_checksums,
            },
        }


def _flush(file: IO[Any]) -> None:
    """Waits until the file's content is on disk."""
    file.flush()
    os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    """Waits until the directory's entries are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
