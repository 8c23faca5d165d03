"""A vocabulary of ids that read well in a failing test, and texts for it."""

from ul2.vocab import Vocab

EOS = 1
FIRST_SENTINEL = 1000
MODE_IDS = {"[R]": (3,), "[S]": (4,), "[X]": (5,)}
# What T5's vocabulary makes of "[NLU]" and "[S2S]": four or five ordinary pieces.
MODE_PIECES = {"[R]": (10, 11, 12), "[S]": (10, 13, 14, 13, 12), "[X]": (10, 15, 12)}


def make_vocab(num_sentinels=600, mode_ids=None):
    return Vocab(
        size=FIRST_SENTINEL + num_sentinels,
        padded_size=FIRST_SENTINEL + num_sentinels,
        pad_id=0,
        eos_id=EOS,
        unk_id=2,
        start_id=0,
        # Counted down, as in T5's vocabulary.
        sentinel_ids=tuple(
            FIRST_SENTINEL + num_sentinels - 1 - i for i in range(num_sentinels)
        ),
        mode_ids=MODE_IDS if mode_ids is None else mode_ids,
        mode_convention="paper",
        tokenizer_sha256="toy",
    )


def make_texts(rng, count, length):
    """Returns texts that hold document ends and the pieces of modes, like real ones."""
    texts = rng.integers(10, FIRST_SENTINEL, (count, length))
    texts[rng.random((count, length)) < 0.05] = EOS
    return texts


def rows_of(tokens, lengths):
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]
