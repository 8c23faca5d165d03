"""The vocab contract of a checkpoint that may not have one."""

import dataclasses
import json
from pathlib import Path
from typing import Final

from ul2 import json_files
from ul2.tasks.tokenizer import Tokenizer, open_tokenizer
from ul2.vocab import MODES, Vocab

CONTRACT: Final = "ul2_vocab.json"
TOKENIZER: Final = "tokenizer.model"
# The vocabulary of T5, UL2 and Flan: `cc_all.32000` with seqio's 100 extra ids.
T5_VOCAB: Final = Vocab(
    size=32100,
    padded_size=32128,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    start_id=0,
    sentinel_ids=tuple(range(32099, 31999, -1)),
    mode_ids={
        "[R]": (784, 448, 908),
        "[S]": (784, 134, 908),
        "[X]": (784, 4, 908),
        "[NLU]": (784, 567, 9138, 908),
        "[S2S]": (784, 134, 357, 134, 908),
        "[NLG]": (784, 18207, 517, 908),
    },
    mode_convention="released",
    tokenizer_sha256=(
        "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
    ),
)
T5_SENTINELS: Final = len(T5_VOCAB.sentinel_ids)


def find(
    directory: Path,
    rows: int,
    *,
    vocab_file: Path | None = None,
    mode_convention: str | None = None,
) -> tuple[Vocab, bytes | None, tuple[str, ...]]:
    """Returns the vocabulary of a checkpoint, its tokenizer, and what was assumed.

    In order: the file that was given; the contract and tokenizer that our own exports
    lay beside; T5's vocabulary where the table has as many rows as T5's; or nothing
    but the ids that all of T5's kin share.

    Args:
        directory: of the checkpoint.
        rows: of the embedding table.
        vocab_file: a SentencePiece model.
        mode_convention: how modes are written; by default as the vocabulary has them.

    Raises:
        ValueError: the vocabulary names more ids than the table has rows.
    """
    vocab, tokenizer, assumed = _find(directory, rows, vocab_file)
    if vocab.size > rows:
        raise ValueError(
            f"the vocabulary has {vocab.size} ids, the embedding table {rows} rows; "
            "give --vocab the tokenizer it was trained with."
        )
    vocab = dataclasses.replace(vocab, padded_size=rows)
    if mode_convention is not None:
        vocab = vocab.with_mode_convention(mode_convention)
    return vocab, tokenizer, assumed


def _find(
    directory: Path, rows: int, vocab_file: Path | None
) -> tuple[Vocab, bytes | None, tuple[str, ...]]:
    if vocab_file is not None:
        opened = open_foreign(vocab_file)
        return opened.vocab, opened.model, ()
    if (directory / CONTRACT).is_file():
        return (*read_contract(directory), ())
    if rows == T5_VOCAB.padded_size:
        line = f"{rows} rows: the vocabulary is T5's; --vocab gives another"
        return T5_VOCAB, None, (line,)
    plain = Vocab(
        size=rows,
        padded_size=rows,
        pad_id=T5_VOCAB.pad_id,
        eos_id=T5_VOCAB.eos_id,
        unk_id=T5_VOCAB.unk_id,
        start_id=T5_VOCAB.start_id,
        sentinel_ids=(),
        mode_ids={},
        mode_convention="released",
        tokenizer_sha256="",
    )
    line = "no tokenizer: pad 0, eos 1, unk 2, no sentinels or modes; --vocab gives one"
    return plain, None, (line,)


def open_foreign(path: Path, extra_sentinels: int | None = None) -> Tokenizer:
    """Opens a SentencePiece model of others.

    Modes are written as the released models write them, unless the model has the
    paper's as ids of their own.

    Args:
        path: the model file.
        extra_sentinels: how many to add; by default T5's hundred to a model that has
            none.

    Raises:
        ValueError: as `open_tokenizer` does, which adds none to sentinels of its own.
    """
    plain = open_tokenizer(path)
    own = all(len(plain.vocab.mode(mode)) == 1 for mode in MODES)
    if extra_sentinels is None:
        extra_sentinels = 0 if plain.vocab.sentinel_ids else T5_SENTINELS
    return open_tokenizer(path, extra_sentinels, "paper" if own else "released")


def read_contract(directory: Path) -> tuple[Vocab, bytes | None]:
    """Reads the contract, and the tokenizer, that lie beside an export of ours.

    Raises:
        ValueError: the contract is damaged, or the tokenizer is another one.
    """
    file = directory / CONTRACT
    try:
        vocab = Vocab.from_json(json_files.read_object(file))
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}.") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {str(error).rstrip('.')}.") from None
    if not (directory / TOKENIZER).is_file():
        return vocab, None
    opened = open_tokenizer(directory / TOKENIZER)
    if opened.sha256 != vocab.tokenizer_sha256:
        raise ValueError(
            f"{directory / TOKENIZER} is not the tokenizer that {CONTRACT} names."
        )
    return vocab, opened.model


def write_contract(directory: Path, vocab: Vocab, tokenizer: bytes | None) -> None:
    """Lays the contract, and the tokenizer, beside an export."""
    (directory / CONTRACT).write_text(json.dumps(vocab.to_json(), indent=1))
    if tokenizer is not None:
        (directory / TOKENIZER).write_bytes(tokenizer)
