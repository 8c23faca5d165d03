"""Reads and encodes parts of a corpus: what each tokenizing process does.

    part -> documents -> hash of each, ids of each -> arrays

It loads SentencePiece and numpy, and no more of this package than it needs, because
every process does so at its start.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.tasks.file_parts import Part, RowGroups, read_part
from ul2.tasks.sources import BrokenTextError, CutOffError, Document, TextSource
from ul2.tasks.splits import hash_share
from ul2.tasks.text_encoder import TextEncoder

# Of the reasons why records are broken, the first ones are told.
REASONS_KEPT: Final = 10
# Encoded in one call.
_CALL_CHARACTERS: Final = 2**19
# Of a part of a table: a few bytes may stand for one text, a thousand times.
_MAX_TABLE_CHARACTERS: Final = 2**25


class EncodedDocuments(NamedTuple):
    """D documents of T tokens in all.

    Attributes:
        tokens: [T] of all documents, back to back, each ending in EOS.
        lengths: [D] tokens of each document, EOS included.
        characters: [D] of each document.
        shares: [D] the hash of each, as `hash_share` has it.
        origins: [D] name and record of each, as the store has them.
    """

    tokens: NDArray[Any]
    lengths: NDArray[np.int64]
    characters: NDArray[np.int64]
    shares: NDArray[np.float64]
    origins: list[tuple[str, int]]


class EncodedPart(NamedTuple):
    """A part of a corpus, without what is empty or broken in it.

    Attributes:
        documents: the others.
        text_bytes: UTF-8 bytes of them.
        unknown_tokens: tokens for text that the vocabulary cannot write.
        num_broken: broken records up to where reading ended.
        reasons: what is wrong with the first of these.
        is_cut_off: whether nothing of the file can be read behind this part.
    """

    documents: EncodedDocuments
    text_bytes: int
    unknown_tokens: int
    num_broken: int
    reasons: list[str]
    is_cut_off: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartEncoder:
    """Reads and encodes parts; can be sent to another process.

    Attributes:
        encoder: text to ids.
        source: how to read the parts.
        eos_id: put behind each document.
        unk_id: counted.
        dtype: of the tokens.
    """

    encoder: TextEncoder
    source: TextSource
    eos_id: int
    unk_id: int
    dtype: str

    def encode(self, part: Part) -> EncodedPart | None:
        """Returns a part, encoded; None if it is too large to be held as a whole."""
        broken: list[BrokenTextError] = []
        calls: list[EncodedDocuments] = []
        text_bytes = characters = 0
        for documents in _calls(self._sound(part, broken)):
            texts = [document.text for document in documents]
            characters += sum(map(len, texts))
            is_table = isinstance(part.content, RowGroups)
            if is_table and characters > _MAX_TABLE_CHARACTERS:
                return None
            data = [text.encode() for text in texts]
            text_bytes += sum(map(len, data))
            calls.append(
                EncodedDocuments(
                    *self._tokens(texts),
                    np.fromiter(map(len, texts), np.int64, len(texts)),
                    np.fromiter(map(hash_share, data), np.float64, len(data)),
                    [(document.source, document.record) for document in documents],
                )
            )
        encoded = join(calls or [self._nothing()])
        return EncodedPart(
            encoded,
            text_bytes,
            int(np.count_nonzero(encoded.tokens == self.unk_id)),
            len(broken),
            [str(error) for error in broken[:REASONS_KEPT]],
            any(isinstance(error, CutOffError) for error in broken),
        )

    def _sound(self, part: Part, broken: list[BrokenTextError]) -> Iterator[Document]:
        """Yields the documents worth encoding and puts the broken ones aside.

        It ends at the first of these if they are refused.
        """
        for document in read_part(part, self.source):
            if isinstance(document, BrokenTextError):
                broken.append(document)
                if self.source.on_error == "refuse":
                    return
            elif document.text.strip():
                yield document

    def _tokens(self, texts: list[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Returns the tokens of texts, back to back, and how many each has."""
        rows = self.encoder.encode_arrays(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows)) + 1
        end = np.array([self.eos_id], np.int32)
        pieces = [piece for row in rows for piece in (row, end)]
        return np.concatenate(pieces, dtype=self.dtype, casting="unsafe"), lengths

    def _nothing(self) -> EncodedDocuments:
        """Returns no documents."""
        none = np.zeros(0, np.int64)
        return EncodedDocuments(
            none.astype(self.dtype), none, none, none.astype(np.float64), []
        )


def join(several: list[EncodedDocuments]) -> EncodedDocuments:
    """Puts documents behind one another."""
    if len(several) == 1:
        return several[0]
    tokens, lengths, characters, shares, origins = zip(*several, strict=True)
    return EncodedDocuments(
        np.concatenate(tokens),
        np.concatenate(lengths),
        np.concatenate(characters),
        np.concatenate(shares),
        [origin for some in origins for origin in some],
    )


def _calls(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Gathers documents until they are worth a call of the encoder."""
    call: list[Document] = []
    size = 0
    for document in documents:
        call.append(document)
        size += len(document.text)
        if size >= _CALL_CHARACTERS:
            yield call
            call, size = [], 0
    if call:
        yield call


# Of a worker process: what `start_worker` was given.
_worker_encoder: PartEncoder | None = None


def start_worker(encoder: PartEncoder) -> None:
    """Prepares a process for the parts to come."""
    global _worker_encoder
    _worker_encoder = encoder
    # Ctrl-C reaches the whole group; the writing process ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def encode_in_worker(part: Part) -> EncodedPart | None:
    """Encodes a part with what `start_worker` was given."""
    assert _worker_encoder is not None
    return _worker_encoder.encode(part)


def _die_with_parent() -> None:
    """Ends this worker when the writing process is killed: nothing else tells it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
