"""The vocab contract of a model of transformers: which ids mean what.

Sentinels are looked up by their text in every file that declares them. The
SentencePiece model of T5 has none, and transformers adds a hundred above it; those of
mT5 and UMT5 have their own.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ul2.interop import vocabulary
from ul2.interop.huggingface_config import CONFIG, special_ids
from ul2.interop.safetensors import read_json
from ul2.tasks.tokenizer import Tokenizer, open_tokenizer
from ul2.vocab import MODE_CONVENTIONS, Vocab, sentinel_text

SENTENCEPIECE: Final = "spiece.model"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
ADDED_TOKENS: Final = "added_tokens.json"
_SENTINEL: Final = re.compile(r"▁?<extra_id_(\d{1,5})>")


def find(
    path: Path,
    fields: Mapping[str, Any],
    *,
    vocab_file: Path | None,
    mode_convention: str | None,
) -> tuple[Vocab, bytes | None, tuple[str, ...]]:
    """Returns the vocabulary of a model, its tokenizer, and what was assumed.

    Args:
        path: the directory.
        fields: of its `config.json`, which has the last word on pad, end and start.
        vocab_file: the SentencePiece model; None for the directory's.
        mode_convention: how modes are written; None for as the vocabulary has them.

    Raises:
        ValueError: files of the directory disagree, or name ids that are not there.
    """
    rows = int(fields["vocab_size"])
    vocab, tokenizer, assumed = _find(path, rows, vocab_file)
    if vocab.size > rows:
        raise ValueError(
            f"{path}: the tokenizer has {vocab.size} ids, but the embedding table "
            f"{rows} rows; give --vocab the tokenizer it was trained with."
        )
    try:
        pad_id, eos_id, start_id = special_ids(path, fields)
        vocab = dataclasses.replace(
            vocab, padded_size=rows, pad_id=pad_id, eos_id=eos_id, start_id=start_id
        )
    except ValueError as error:
        raise ValueError(f"{path / CONFIG}: {error}") from None
    if mode_convention is not None:
        vocab = vocab.with_mode_convention(mode_convention)
    return vocab, tokenizer, assumed


def _find(
    path: Path, rows: int, vocab_file: Path | None
) -> tuple[Vocab, bytes | None, tuple[str, ...]]:
    """Returns the vocabulary of the best source there is."""
    file = vocab_file or path / SENTENCEPIECE
    has_model = vocab_file is not None or file.is_file()
    if vocab_file is None and (path / vocabulary.CONTRACT).is_file():
        vocab, tokenizer = vocabulary.read_contract(path)
        if not has_model:
            return vocab, tokenizer, ()
        model = open_tokenizer(file)
        if model.sha256 == vocab.tokenizer_sha256:
            return vocab, model.model, ()
        line = f"{vocabulary.CONTRACT} is of another tokenizer than {file.name}"
        opened = _open(path, file, rows)
        return opened.vocab, opened.model, (line,)
    if has_model:
        opened = _open(path, file, rows)
        return opened.vocab, opened.model, ()
    if (path / TOKENIZER).is_file():
        line = f"no {SENTENCEPIECE}: ids are those of {TOKENIZER}; --vocab gives more"
        return _read_tokenizer_json(path), None, (line,)
    return vocabulary.find(path, rows)


def _open(path: Path, file: Path, rows: int) -> Tokenizer:
    """Opens a SentencePiece model with the sentinels that the directory declares."""
    declared = dict(_declared_sentinels(path))
    plain, count = open_tokenizer(file).vocab, 0
    if not plain.sentinel_ids:
        count = len(declared) or _default_sentinels(path, plain.size, rows)
    opened = vocabulary.open_foreign(file, count)
    ids = dict(enumerate(opened.vocab.sentinel_ids))
    for index, (token, source) in declared.items():
        if ids.get(index) != token:
            raise ValueError(
                f"{path / source} puts {sentinel_text(index)} at {token}, but by "
                f"{file} it is at {ids.get(index)}; give --vocab the model's own "
                f"tokenizer, or take {source} away."
            )
    return opened


def _default_sentinels(path: Path, size: int, rows: int) -> int:
    """Returns how many sentinels a directory without a list of them means."""
    if (path / TOKENIZER_CONFIG).is_file():
        count = read_json(path / TOKENIZER_CONFIG).get("extra_ids")
        if type(count) is int and 0 <= count <= rows:
            return count
    # A model trained by others may have no room for T5's.
    has_room = size + vocabulary.T5_SENTINELS <= rows
    return vocabulary.T5_SENTINELS if has_room else 0


def _declared_sentinels(path: Path) -> Iterator[tuple[int, tuple[int, str]]]:
    """Yields the sentinels that files give ids, with id and file, by index."""
    for file in (ADDED_TOKENS, TOKENIZER_CONFIG, TOKENIZER):
        if not (path / file).is_file():
            continue
        for text, token in _added_tokens(file, read_json(path / file)):
            match = _SENTINEL.fullmatch(text) if isinstance(text, str) else None
            if match and type(token) is int:
                yield int(match[1]), (token, file)


def _added_tokens(file: str, content: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yields text and id of every added token in one of the three ways to write it."""
    if file == ADDED_TOKENS:
        yield from content.items()
    elif file == TOKENIZER:
        added = content.get("added_tokens")
        for entry in added if isinstance(added, list) else []:
            if isinstance(entry, dict):
                yield entry.get("content"), entry.get("id")
    else:
        decoder = content.get("added_tokens_decoder")
        for token, entry in decoder.items() if isinstance(decoder, dict) else ():
            if isinstance(entry, dict) and re.fullmatch("[0-9]+", token):
                yield entry.get("content"), int(token[:10])


def _read_tokenizer_json(path: Path) -> Vocab:
    """Returns what can be told without SentencePiece: where the special ids are."""
    ids = dict(_all_tokens(read_json(path / TOKENIZER)))
    sentinels: list[int] = []
    while (found := ids.get(sentinel_text(len(sentinels)))) is not None:
        sentinels.append(found)
    texts = {t for names in MODE_CONVENTIONS.values() for t in names.values()}
    is_paper = set(MODE_CONVENTIONS["paper"].values()) <= ids.keys()
    try:
        return Vocab(
            size=max(ids.values()) + 1,
            padded_size=max(ids.values()) + 1,
            pad_id=ids["<pad>"],
            eos_id=ids["</s>"],
            unk_id=ids["<unk>"],
            start_id=ids["<pad>"],
            sentinel_ids=tuple(sentinels),
            mode_ids={text: (ids[text],) for text in texts & ids.keys()},
            mode_convention="paper" if is_paper else "released",
            tokenizer_sha256="",
        )
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path / TOKENIZER} is no tokenizer of T5 ({error}); give --vocab a "
            "SentencePiece model."
        ) from None


def _all_tokens(content: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields text and id of every token of a `tokenizer.json`."""
    model = content.get("model")
    pieces = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(pieces, list):
        pieces = {
            piece[0]: token
            for token, piece in enumerate(pieces)
            if isinstance(piece, list) and piece and isinstance(piece[0], str)
        }
    found = list(pieces.items()) if isinstance(pieces, dict) else []
    for text, token in [*found, *_added_tokens(TOKENIZER, content)]:
        if isinstance(text, str) and type(token) is int and token >= 0:
            yield text, token
