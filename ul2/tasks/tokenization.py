"""Tokenizes a corpus once, on all cores, into a token store.

    files -> parts -> workers read, hash and encode -> split -> chunks -> written

A part of a file is the unit of work, so one large file keeps every core busy, and only
tokens come back from the workers. They are split and written in reading order, so the
store's bytes do not depend on the number of workers, nor on the size of a part. Where a
file cannot be cut into parts, this process reads it and sends the texts. TensorFlow is
loaded only to read a registered seqio task, and only by this process.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ul2.data.store_manifest import SPLITS
from ul2.data.token_store_writer import TokenStoreWriter
from ul2.tasks.chunks import gather
from ul2.tasks.file_parts import Part, cut_files, part_documents, read_part
from ul2.tasks.part_encoding import (
    REASONS_KEPT,
    EncodedDocuments,
    EncodedPart,
    PartEncoder,
    encode_in_worker,
    start_worker,
)
from ul2.tasks.progress import Progress
from ul2.tasks.sources import (
    Document,
    TextSource,
    find_files,
    read_documents,
    reason_of_empty,
    refusal_of_broken,
    refusal_of_empty,
)
from ul2.tasks.splits import SplitRule, is_split_window, split_documents
from ul2.tasks.tokenizer import Tokenizer

# Parts under way per worker: enough that none waits for the one before it.
_PARTS_PER_WORKER: Final = 4


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


@dataclasses.dataclass
class _Totals:
    """What was counted so far: see `Summary`."""

    text_bytes: int = 0
    unknown_tokens: int = 0
    skipped: int = 0
    skipped_reasons: list[str] = dataclasses.field(default_factory=list)

    def skip(self, count: int, reasons: list[str]) -> None:
        """Counts records left out; keeps the first reasons."""
        self.skipped += count
        self.skipped_reasons += reasons[: REASONS_KEPT - len(self.skipped_reasons)]


_Encoded = tuple[Part, EncodedPart]


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
    totals = _Totals()
    writer = TokenStoreWriter(
        out, tokenizer=tokenizer.model, vocab=tokenizer.vocab, overwrite=overwrite
    )
    with (
        writer,
        _start_progress(source, progress) as bar,
        _start_encoding(source, tokenizer, num_workers or _count_cores()) as encode,
    ):
        encoded = _accept(encode(_parts(source)), source, totals)
        counted = _count(encoded, totals, bar)
        for split, documents in gather(_split(counted, source.held_out_share)):
            writer.add(split, documents.tokens, documents.lengths, documents.origins)
        if not writer.num_documents("train"):
            raise ValueError(f"{_name(source)} holds no text; nothing was written.")
        counts = dataclasses.asdict(totals)
        reasons = tuple(counts.pop("skipped_reasons"))
        writer.provenance = {**dataclasses.asdict(source), **counts}
    return Summary(
        path=str(Path(out)),
        documents={split: writer.num_documents(split) for split in SPLITS},
        tokens={split: writer.num_tokens(split) for split in SPLITS},
        skipped_reasons=reasons,
        seconds=time.monotonic() - started,
        **counts,
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


def _parts(source: TextSource | TaskSource) -> Iterator[Part]:
    """Yields the parts of a source in reading order."""
    if isinstance(source, TextSource):
        return cut_files(find_files(source.files), source)
    return part_documents(source.name, read_source(source))


def _accept(
    parts: Iterable[_Encoded], source: TextSource | TaskSource, totals: _Totals
) -> Iterator[_Encoded]:
    """Passes parts on, and refuses or counts what is broken, as `read_documents` does.

    Raises:
        ValueError: a record is broken, or a file empty, and such are refused.
    """
    skips = isinstance(source, TextSource) and source.on_error == "skip"
    is_empty, is_cut_off = True, False  # the file so far
    for part, encoded in parts:
        if encoded.num_broken and not skips:
            raise refusal_of_broken(encoded.reasons[0])
        if not is_cut_off:
            totals.skip(encoded.num_broken, encoded.reasons)
            is_empty &= not (encoded.num_broken or len(encoded.documents.lengths))
            is_cut_off = encoded.is_cut_off
            yield part, encoded
        if not part.is_last:
            continue
        if is_empty and isinstance(source, TextSource):
            if not skips:
                raise refusal_of_empty(part.file)
            totals.skip(1, [reason_of_empty(part.file)])
        is_empty, is_cut_off = True, False


def _count(
    parts: Iterable[_Encoded], totals: _Totals, bar: Progress
) -> Iterator[_Encoded]:
    """Passes parts on and tells how far they have come."""
    for part, encoded in parts:
        totals.text_bytes += encoded.text_bytes
        totals.unknown_tokens += encoded.unknown_tokens
        bar.reach(part.file, part.reached)
        documents = encoded.documents
        bar.add(len(documents.lengths), len(documents.tokens), encoded.text_bytes)
        yield part, encoded


def _split(
    parts: Iterator[_Encoded], held_out_share: float
) -> Iterator[tuple[EncodedDocuments, NDArray[np.bool_]]]:
    """Yields the documents of each part, and which of them are held out.

    They are split as by `split_documents`, unless they know their split.
    """
    window: list[_Encoded] = []
    shares: list[float] = []
    characters: list[int] = []
    for part, encoded in parts:
        window.append((part, encoded))
        shares += encoded.documents.shares.tolist()
        characters += encoded.documents.characters.tolist()
        if is_split_window(len(shares), sum(characters)):
            break
    rule = SplitRule.of(shares, characters, held_out_share)
    for part, encoded in itertools.chain(window, parts):
        if part.splits is None:
            yield encoded.documents, rule.holds_out(encoded.documents.shares)
        else:
            yield encoded.documents, np.array(part.splits) == "held_out"


_Encode = Callable[[Iterable[Part]], Iterator[_Encoded]]


@contextlib.contextmanager
def _start_encoding(
    source: TextSource | TaskSource, tokenizer: Tokenizer, num_workers: int
) -> Iterator[_Encode]:
    """Starts the workers; yields a function from parts to encoded parts, in order."""
    vocab = tokenizer.vocab
    encoder = PartEncoder(
        encoder=tokenizer.encoder,
        # The parts of a task hold its documents: there is nothing to read.
        source=source if isinstance(source, TextSource) else TextSource(files=""),
        eos_id=vocab.eos_id,
        unk_id=vocab.unk_id,
        dtype="uint16" if vocab.size <= 2**16 else "uint32",
    )
    if num_workers == 1:
        yield lambda parts: _encode_here(encoder, parts)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers,
        # A forked process inherits the locks of threads that it does not have.
        multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(encoder,),
    )
    try:
        window = num_workers * _PARTS_PER_WORKER
        yield lambda parts: _encode_in(pool, encoder.source, parts, window)
    except concurrent.futures.process.BrokenProcessPool:
        raise RuntimeError(
            "a tokenizing process died, most likely for lack of memory; use fewer "
            "with --num_workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_here(encoder: PartEncoder, parts: Iterable[Part]) -> Iterator[_Encoded]:
    """Encodes parts in this process."""
    for part in parts:
        encoded = encoder.encode(part)
        if encoded:
            yield part, encoded
        else:
            yield from _encode_here(encoder, _reread(part, encoder.source))


def _encode_in(
    pool: concurrent.futures.Executor,
    source: TextSource,
    parts: Iterable[Part],
    window: int,
) -> Iterator[_Encoded]:
    """Encodes parts in the workers, `window` at a time, so that memory stays small."""
    waiting: collections.deque[tuple[Part, concurrent.futures.Future[Any]]]
    waiting = collections.deque()

    def take(most: int) -> Iterator[_Encoded]:
        while len(waiting) > most:
            part, future = waiting.popleft()
            if encoded := future.result():
                yield part, encoded
            else:
                yield from _encode_in(pool, source, _reread(part, source), window)

    try:
        for part in parts:
            waiting.append((part, pool.submit(encode_in_worker, part)))
            yield from take(window - 1)
    except ValueError:
        # The next part cannot be read; what is wrong before it is to be said first.
        yield from take(0)
        raise
    yield from take(0)


def _reread(part: Part, source: TextSource) -> Iterator[Part]:
    """Yields a part of a table that is too large to be held whole, as documents."""
    documents = ((None, one) for one in read_part(part, source))
    for piece in part_documents(part.file, documents):
        yield piece._replace(is_last=piece.is_last and part.is_last)


def _count_cores() -> int:
    """Returns the cores this process may use, which a container may have limited."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
