"""A vocabulary for tests that need no tokenizer."""

from typing import Any

from ul2.vocab import Vocab


def toy_vocab(size: int, padded_size: int, **changes: Any) -> Vocab:
    """Returns one with T5's special ids, and neither sentinels nor modes."""
    fields: dict[str, Any] = {
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "start_id": 0,
        "sentinel_ids": (),
        "mode_ids": {},
        "mode_convention": "paper",
        "tokenizer_sha256": "",
    }
    return Vocab(size=size, padded_size=padded_size, **{**fields, **changes})
