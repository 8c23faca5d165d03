"""A vocabulary, splits that live in memory, and streams over them."""

import numpy as np

from ul2.data.stream import Stream
from ul2.denoising.mixture import named
from ul2.vocab import Vocab

EOS = 1
FIRST_SENTINEL = 2**20


def make_vocab(num_sentinels=300):
    last = FIRST_SENTINEL + num_sentinels
    return Vocab(
        size=last + 3,
        padded_size=last + 128,
        pad_id=0,
        eos_id=EOS,
        unk_id=2,
        start_id=0,
        sentinel_ids=tuple(range(FIRST_SENTINEL, last)),
        mode_ids={"[R]": (last,), "[S]": (last + 1,), "[X]": (last + 2,)},
        mode_convention="paper",
        tokenizer_sha256="toy",
    )


class RingSplit:
    """What a stream reads of a `Split`, over an array."""

    name = "train"

    def __init__(self, tokens):
        self.tokens = np.asarray(tokens)
        self.num_tokens = len(self.tokens)

    def take(self, starts, length):
        places = (starts[:, None] + np.arange(length)) % self.num_tokens
        return self.tokens[places].astype(np.int32)


def numbered_split(num_tokens):
    """Returns a split whose every token says where it stands: 10, 11, 12, ..."""
    return RingSplit(np.arange(10, num_tokens + 10))


def make_stream(
    objective="ul2", length=64, batch_size=14, num_tokens=20_000, **changes
):
    fields = {
        "split": numbered_split(num_tokens),
        "mixture": named(objective) if isinstance(objective, str) else objective,
        "vocab": make_vocab(),
        "inputs_length": length,
        "targets_length": length,
        "batch_size": batch_size,
        "seed": 0,
    }
    return Stream(**{**fields, **changes})


def examples_of(made):
    """Returns the (inputs, targets) pairs of one denoiser, without padding."""
    return [
        (inputs[:ours], targets[:theirs])
        for inputs, ours, targets, theirs in zip(*made, strict=True)
    ]
