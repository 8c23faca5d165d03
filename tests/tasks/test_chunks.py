import itertools

import numpy as np
import pytest

from ul2.tasks import chunks
from ul2.tasks.chunks import gather
from ul2.tasks.part_encoding import EncodedDocuments, join


def document(number, characters):
    """A document whose tokens are its number, one for ten characters."""
    length = characters // 10 + 1
    return EncodedDocuments(
        np.full(length, number, np.uint16),
        np.array([length]),
        np.array([characters]),
        np.array([0.5]),
        [(f"{number % 2}.txt", number)],
    )


def by_hand(characters, is_held_out, most_characters, most_documents):
    """Numbers of the documents in each chunk, one document at a time."""
    made, growing = [], {"train": [], "held_out": []}
    for number in range(len(characters)):
        split = "held_out" if is_held_out[number] else "train"
        growing[split].append(number)
        total = sum(characters[one] for one in growing[split])
        if total >= most_characters or len(growing[split]) == most_documents:
            made.append((split, growing[split]))
            growing[split] = []
    return made + [(split, rest) for split, rest in growing.items() if rest]


@pytest.mark.parametrize("seed", range(20))
def test_chunks_do_not_depend_on_the_parts(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(chunks, "_CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(chunks, "_CHUNK_DOCUMENTS", 5)
    characters = rng.choice(
        [1, 20, 30, 99, 100, 700], 60, p=[0.5, 0.1, 0.1, *[0.1] * 3]
    )
    is_held_out = rng.random(60) < rng.choice([0.0, 0.3, 1.0])
    documents = [document(i, size) for i, size in enumerate(characters)]
    wanted = by_hand(characters.tolist(), is_held_out, 100, 5)
    for most in (1, 4, 60):
        cuts = np.unique([0, 60, *np.cumsum(rng.integers(1, most + 1, 60)) % 60])
        parts = [
            (join(documents[begin:end]), is_held_out[begin:end])
            for begin, end in itertools.pairwise(cuts)
        ]
        made = list(gather(parts))
        numbers = [[number for _, number in chunk.documents.origins] for chunk in made]
        splits = [chunk.split for chunk in made]
        assert list(zip(splits, numbers, strict=True)) == wanted
        for chunk, some in zip(made, numbers, strict=True):
            whole = join([documents[number] for number in some])
            np.testing.assert_array_equal(chunk.documents.tokens, whole.tokens)
            np.testing.assert_array_equal(chunk.documents.lengths, whole.lengths)
