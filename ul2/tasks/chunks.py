"""Sorts encoded documents by split into chunks, the units in which they are written.

    parts      t t h t | t t t t | h t t          in reading order
    chunks     train t t t t t | train t t t | held_out h h

A chunk is full at so many characters or documents of its split, wherever a part ended.
So what is written, and in which order, does not depend on how files were cut.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.data.store_manifest import SPLITS
from ul2.tasks.part_encoding import EncodedDocuments, join

# Where a shard may end depends on them, so they change the bytes of large stores.
_CHUNK_CHARACTERS: Final = 2**19
_CHUNK_DOCUMENTS: Final = 2**14


class Chunk(NamedTuple):
    """Documents of one split."""

    split: str
    documents: EncodedDocuments


def gather(
    several: Iterable[tuple[EncodedDocuments, NDArray[np.bool_]]],
) -> Iterator[Chunk]:
    """Yields chunks in the order in which they become full, at last what is left.

    Args:
        several: documents, and which of them are held out.
    """
    growing = {split: _GrowingChunk() for split in SPLITS}
    for documents, is_held_out in several:
        full: list[tuple[int, Chunk]] = []
        of_tokens = np.repeat(is_held_out, documents.lengths)
        for split in SPLITS:
            is_train = split == "train"
            places = np.flatnonzero(is_held_out ^ is_train)
            chosen = _choose(documents, places, of_tokens ^ is_train)
            full += [
                (int(places[last]), Chunk(split, chunk))
                for last, chunk in growing[split].add(chosen)
            ]
        for _, chunk in sorted(full, key=lambda place_and_chunk: place_and_chunk[0]):
            yield chunk
    for split in SPLITS:
        if growing[split].num_documents:
            yield Chunk(split, growing[split].take())


class _GrowingChunk:
    """A chunk that is not full yet."""

    def __init__(self) -> None:
        self._pieces: list[EncodedDocuments] = []
        self.num_documents = self._num_characters = 0

    def add(
        self, documents: EncodedDocuments
    ) -> Iterator[tuple[int, EncodedDocuments]]:
        """Takes documents; yields what gets full, and with which of these it did."""
        begin, sums = 0, np.cumsum(documents.characters)
        while begin < len(sums):
            before = sums[begin - 1] if begin else 0
            lacking = before + _CHUNK_CHARACTERS - self._num_characters
            end = min(
                int(np.searchsorted(sums, lacking)) + 1,
                begin + _CHUNK_DOCUMENTS - self.num_documents,
            )
            self._append(_slice(documents, begin, min(end, len(sums))))
            if end <= len(sums):
                yield end - 1, self.take()
            begin = end

    def take(self) -> EncodedDocuments:
        """Returns what was gathered and begins anew."""
        whole = join(self._pieces)
        self._pieces, self.num_documents, self._num_characters = [], 0, 0
        return whole

    def _append(self, documents: EncodedDocuments) -> None:
        self._pieces.append(documents)
        self.num_documents += len(documents.lengths)
        self._num_characters += int(documents.characters.sum())


def _choose(
    documents: EncodedDocuments,
    places: NDArray[np.intp],
    of_tokens: NDArray[np.bool_],
) -> EncodedDocuments:
    """Returns the documents at some places, whose tokens are `of_tokens`."""
    if len(places) == len(documents.lengths):
        return documents
    return EncodedDocuments(
        documents.tokens[of_tokens],
        documents.lengths[places],
        documents.characters[places],
        documents.shares[places],
        [documents.origins[place] for place in places.tolist()],
    )


def _slice(documents: EncodedDocuments, begin: int, end: int) -> EncodedDocuments:
    """Returns consecutive documents."""
    ends = np.concatenate([[0], np.cumsum(documents.lengths)])
    return EncodedDocuments(
        documents.tokens[ends[begin] : ends[end]],
        documents.lengths[begin:end],
        documents.characters[begin:end],
        documents.shares[begin:end],
        documents.origins[begin:end],
    )
