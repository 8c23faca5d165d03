"""Tokenizes a corpus once, on all cores, into a token store.

    documents -> split by hash -> chunks -> workers encode -> written in reading order

A chunk of documents is the unit of work, so one large file keeps every core busy, and
chunks are written in the order in which they were read, so the store's bytes do not
depend on the number of workers. TensorFlow is loaded only to read a registered seqio
task, and only by the process that reads.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Integer

from ul2.data.store_manifest import SPLITS
from ul2.data.token_store_writer import TokenStoreWriter
from ul2.tasks.progress import Progress
from ul2.tasks.sources import (
    Document,
    TextSource,
    find_files,
    read_documents,
    split_documents,
)
from ul2.tasks.tokenizer import Tokenizer

_CHUNK_CHARACTERS: Final = 2**19
_CHUNK_DOCUMENTS: Final = 2**14
# Chunks under way per worker: enough that none waits for the one before it.
_CHUNKS_PER_WORKER: Final = 4
_REASONS_KEPT: Final = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSource:
    """A registered seqio task, whose text is read as far as its tokenize step.

    Attributes:
        name: name in seqio's TaskRegistry; what registers it must be imported.
        text_field: the field that holds the text at that point.
        held_out_share: used where the task has no validation split of its own.
    """

    name: str
    text_field: str = "text"
    held_out_share: float = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What was tokenized.

    Attributes:
        path: the store.
        documents: number of documents by split.
        tokens: number of tokens by split, one EOS per document included.
        text_bytes: UTF-8 bytes of all documents.
        unknown_tokens: tokens for text the vocabulary cannot write; such text is lost.
        skipped: records left out because they were broken.
        skipped_reasons: what was wrong with the first of these.
        seconds: time taken.
    """

    path: str
    documents: dict[str, int]
    tokens: dict[str, int]
    text_bytes: int
    unknown_tokens: int
    skipped: int
    skipped_reasons: tuple[str, ...]
    seconds: float


class _Chunk(NamedTuple):
    """Documents of one split that are encoded together."""

    split: str
    texts: list[str]
    origins: list[tuple[str, int]]


class _Encoded(NamedTuple):
    """The tokens of a chunk, back to back, each document ending in EOS."""

    tokens: Integer[np.ndarray, " T"]
    lengths: Integer[np.ndarray, " D"]
    text_bytes: int


def tokenize_corpus(
    source: TextSource | TaskSource,
    out: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    num_workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Summary:
    """Writes the token store of a corpus.

    Args:
        source: files or a registered task.
        out: the directory to make.
        tokenizer: what encodes; its model is copied into the store.
        num_workers: processes that encode; one per core if None, and with 1 it is
            done in this process. More than one start anew and import the main module,
            so a script needs its `if __name__ == "__main__":`.
        overwrite: whether to replace a store that is there.
        progress: whether to report on stderr: a bar on a terminal, lines elsewhere.

    Raises:
        ValueError: the source is broken or holds no text, or `out` is taken.
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"{num_workers=} must be at least 1.")
    started = time.monotonic()
    skipped: list[str] = []
    num_skipped = itertools.count()

    def skip(reason: str) -> None:
        if next(num_skipped) < _REASONS_KEPT:
            skipped.append(reason)

    writer = TokenStoreWriter(
        out, tokenizer=tokenizer.model, vocab=tokenizer.vocab, overwrite=overwrite
    )
    text_bytes = unknown = 0
    with writer, _start_progress(source, progress) as bar:
        chunks = _chunks(bar.watch(read_source(source, skip)))
        with _encoder(tokenizer, num_workers or _count_cores()) as encode:
            for chunk, encoded in encode(chunks):
                writer.add(chunk.split, encoded.tokens, encoded.lengths, chunk.origins)
                text_bytes += encoded.text_bytes
                unknown += int(np.sum(encoded.tokens == tokenizer.vocab.unk_id))
                bar.add(len(chunk.texts), len(encoded.tokens), encoded.text_bytes)
        if not writer.num_documents("train"):
            raise ValueError(f"{_name(source)} holds no text; nothing was written.")
        totals = {
            "text_bytes": text_bytes,
            "unknown_tokens": unknown,
            "skipped": next(num_skipped),
        }
        writer.provenance = {**dataclasses.asdict(source), **totals}
    return Summary(
        path=str(Path(out)),
        documents={split: writer.num_documents(split) for split in SPLITS},
        tokens={split: writer.num_tokens(split) for split in SPLITS},
        skipped_reasons=tuple(skipped),
        seconds=time.monotonic() - started,
        **totals,
    )


def _name(source: TextSource | TaskSource) -> str:
    """Returns what the user called the source."""
    return source.files if isinstance(source, TextSource) else source.name


def _start_progress(source: TextSource | TaskSource, show: bool) -> Progress:
    """Returns a progress report that knows the files' sizes, where there are files."""
    sizes: dict[str, int] = {}
    if isinstance(source, TextSource):
        files = find_files(source.files)
        sizes = {f: os.path.getsize(f) for f in files if os.path.exists(f)}
    return Progress(sizes, show=show)


def read_source(
    source: TextSource | TaskSource,
    on_skip: Callable[[str], None] = lambda reason: None,
) -> Iterator[tuple[str, Document]]:
    """Yields every document with its split."""
    if isinstance(source, TextSource):
        return split_documents(read_documents(source, on_skip), source.held_out_share)
    try:
        # It loads TensorFlow.
        from ul2.tasks.task_documents import read_task_documents
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reading a seqio task needs {error.name}: pip install 'ul2[tasks]'."
        ) from None
    return read_task_documents(source.name, source.text_field, source.held_out_share)


def _chunks(documents: Iterable[tuple[str, Document]]) -> Iterator[_Chunk]:
    """Gathers documents of the same split until they are worth a worker's while."""
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    origins: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for split, document in documents:
        texts[split].append(document.text)
        origins[split].append((document.source, document.record))
        sizes[split] += len(document.text)
        full = len(texts[split]) == _CHUNK_DOCUMENTS
        if full or sizes[split] >= _CHUNK_CHARACTERS:
            yield _Chunk(split, texts[split], origins[split])
            texts[split], origins[split], sizes[split] = [], [], 0
    for split in SPLITS:
        if texts[split]:
            yield _Chunk(split, texts[split], origins[split])


def _encode(tokenizer: Tokenizer, texts: list[str]) -> _Encoded:
    """Encodes the documents of a chunk."""
    rows = tokenizer.encode_arrays(texts)
    lengths = np.fromiter(map(len, rows), np.int64, len(rows)) + 1
    dtype = np.uint16 if tokenizer.vocab.size <= 2**16 else np.uint32
    end = np.array([tokenizer.vocab.eos_id], np.int32)
    parts = [part for row in rows for part in (row, end)]
    tokens = np.concatenate(parts, dtype=dtype, casting="unsafe")
    return _Encoded(tokens, lengths, sum(len(text.encode()) for text in texts))


_Encode = Callable[[Iterable[_Chunk]], Iterator[tuple[_Chunk, _Encoded]]]


@contextlib.contextmanager
def _encoder(tokenizer: Tokenizer, num_workers: int) -> Iterator[_Encode]:
    """Starts the workers; yields a function from chunks to encoded chunks, in order."""
    if num_workers == 1:
        yield lambda chunks: ((c, _encode(tokenizer, c.texts)) for c in chunks)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers,
        # A forked process inherits the locks of threads that it does not have.
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer,),
    )
    try:
        yield lambda chunks: _encode_in(pool, chunks, num_workers * _CHUNKS_PER_WORKER)
    except concurrent.futures.process.BrokenProcessPool:
        raise RuntimeError(
            "a tokenizing process died, most likely for lack of memory; use fewer "
            "with --num_workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_in(
    pool: concurrent.futures.Executor, chunks: Iterable[_Chunk], window: int
) -> Iterator[tuple[_Chunk, _Encoded]]:
    """Keeps at most `window` chunks under way, so that memory stays small."""
    waiting: collections.deque[tuple[_Chunk, concurrent.futures.Future[_Encoded]]]
    waiting = collections.deque()
    for chunk in chunks:
        waiting.append((chunk, pool.submit(_encode_in_worker, chunk.texts)))
        if len(waiting) == window:
            first, future = waiting.popleft()
            yield first, future.result()
    for chunk, future in waiting:
        yield chunk, future.result()


# Of a worker process: what `_start_worker` opened.
_worker_tokenizer: Tokenizer | None = None


def _start_worker(tokenizer: Tokenizer) -> None:
    """Keeps the tokenizer for the chunks to come."""
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    # Ctrl-C reaches the whole group; the reading process ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Ends this worker when the reading process is killed: nothing else tells it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> _Encoded:
    """Encodes a chunk with the worker's own tokenizer."""
    assert _worker_tokenizer is not None
    return _encode(_worker_tokenizer, texts)


def _count_cores() -> int:
    """Returns the cores this process may use, which a container may have limited."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
