"""Which documents are held out: the hash of a text decides.

So a text keeps its split when files are renamed, added or reordered, and copies of a
text never lie on both sides.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from ul2.tasks.sources import Document

# How many documents, or characters, are looked at to make sure that both splits get
# one: enough that a corpus which is larger has both anyway.
_SPLIT_WINDOW_DOCUMENTS: Final = 1000
_SPLIT_WINDOW_CHARACTERS: Final = 2**24


class SplitRule(NamedTuple):
    """Which documents are held out, by the hash of each text.

    Attributes:
        held_out_share: share of the documents that training never sees.
        lowest: of the hashes of the first documents: held out in any case.
        highest: of them: trained on in any case.
    """

    held_out_share: float
    lowest: float
    highest: float

    @classmethod
    def of(
        cls, shares: Sequence[float], characters: Sequence[int], held_out_share: float
    ) -> "SplitRule":
        """Returns the rule of a corpus that begins with such documents.

        Args:
            shares: `hash_share` of each text; enough of them, or all.
            characters: length of each text.
            held_out_share: share to hold out.
        """
        first, size = 0, 0
        while first < len(shares) and not is_split_window(first, size):
            size += characters[first]
            first += 1
        window = shares[:first] or [0.0]
        return cls(held_out_share, min(window), max(window))

    def holds_out(self, share: Any) -> Any:
        """Returns whether a text is held out; of an array of shares, which are."""
        is_low = (share < self.held_out_share) | (share == self.lowest)
        return is_low & (share != self.highest) & (self.held_out_share > 0)


def is_split_window(num_documents: int, characters: int) -> bool:
    """Returns whether so many are enough to choose a rule by."""
    enough = characters >= _SPLIT_WINDOW_CHARACTERS and num_documents > 1
    return enough or num_documents >= _SPLIT_WINDOW_DOCUMENTS


def split_documents(
    documents: Iterable[Document], held_out_share: float
) -> Iterator[tuple[str, Document]]:
    """Yields each document with its split: `train` or `held_out`.

    Where there are two different documents or more, each split gets at least one.
    """
    documents = iter(documents)
    window: list[tuple[float, Document]] = []
    characters = 0
    for document in documents:
        window.append((hash_share(document.text.encode()), document))
        characters += len(document.text)
        if is_split_window(len(window), characters):
            break
    rule = SplitRule.of(
        [share for share, _ in window],
        [len(document.text) for _, document in window],
        held_out_share,
    )
    for share, document in window:
        yield "held_out" if rule.holds_out(share) else "train", document
    for document in documents:
        share = hash_share(document.text.encode())
        yield "held_out" if rule.holds_out(share) else "train", document


def hash_share(text: bytes) -> float:
    """Returns a number in [0, 1) that depends on a text's UTF-8 bytes alone."""
    digest = hashlib.blake2b(text, digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
