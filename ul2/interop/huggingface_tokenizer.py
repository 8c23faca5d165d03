"""Tokenizer files of transformers, made of a SentencePiece model and a vocab contract.

`tokenizer.json` describes to the `tokenizers` library, step by step, what
SentencePiece does. Its ids equal SentencePiece's, with one difference that its users
expect: a special token that stands in a text becomes its id there, and characters here.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sentencepiece import sentencepiece_model_pb2

from ul2.interop.huggingface_config import write_json
from ul2.interop.huggingface_vocab import SENTENCEPIECE, TOKENIZER, TOKENIZER_CONFIG
from ul2.interop.vocabulary import write_contract
from ul2.vocab import Vocab, sentinel_text

SPECIAL_TOKENS: Final = "special_tokens_map.json"
_SPACE: Final = "▁"
_UNIGRAM: Final = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
_TYPES: Final = sentencepiece_model_pb2.ModelProto.SentencePiece


def write(out: Path, vocab: Vocab, tokenizer: bytes | None) -> None:
    """Writes the contract, and the files of the tokenizer if there is one.

    Raises:
        ValueError: the SentencePiece model is not of the unigram kind.
    """
    write_contract(out, vocab, None)
    if tokenizer is None:
        return
    (out / SENTENCEPIECE).write_bytes(tokenizer)
    content = tokenizer_json(vocab, tokenizer)
    write_json(out / TOKENIZER, content)
    named = _named_tokens(vocab, content)
    write_json(out / SPECIAL_TOKENS, named)
    # T5's own class would split at white space, whatever the vocabulary does.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(out / TOKENIZER_CONFIG, {**settings, **named})


def tokenizer_json(vocab: Vocab, tokenizer: bytes) -> dict[str, Any]:
    """Returns the content of `tokenizer.json`.

    Raises:
        ValueError: the model is not of the unigram kind.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer)
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise ValueError(
            "the tokenizer is no unigram model of SentencePiece; transformers would "
            "give other ids."
        )
    pieces = _pieces(proto, vocab)
    has_bytes = any(piece.type == _TYPES.BYTE for piece in proto.pieces)
    eos = pieces[vocab.eos_id][0]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(proto, vocab, pieces),
        "normalizer": _normalizer(proto),
        "pre_tokenizer": _BYTE_NAMES_APART if has_bytes else None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_sequence("A", 0), _special(eos, 0)],
            "pair": [
                _sequence("A", 0),
                _special(eos, 0),
                _sequence("B", 1),
                _special(eos, 1),
            ],
            "special_tokens": {
                eos: {"id": eos, "ids": [vocab.eos_id], "tokens": [eos]}
            },
        },
        "decoder": _decoder(proto, has_bytes=has_bytes),
        "model": {
            "type": "Unigram",
            "unk_id": vocab.unk_id,
            "vocab": pieces,
            "byte_fallback": has_bytes,
        },
    }


# The library finds the name of a byte, `<0x41>`, in a text and takes it for the byte;
# it cannot where the text is cut within that name.
_BYTE_NAMES_APART: Final = {
    "type": "Split",
    "pattern": {"Regex": "<(?=0x[0-9A-F]{2}>)"},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def _pieces(proto: Any, vocab: Vocab) -> list[list[Any]]:
    """Returns text and score of every id, added sentinels included."""
    pieces = [[piece.piece, piece.score] for piece in proto.pieces]
    pieces += [[f"<unused_{i}>", 0.0] for i in range(len(pieces), vocab.size)]
    for index, token in enumerate(vocab.sentinel_ids):
        # Some models spell theirs with a space, which no user writes.
        pieces[token][0] = sentinel_text(index)
    return pieces


def _added_tokens(
    proto: Any, vocab: Vocab, pieces: list[list[Any]]
) -> list[dict[str, Any]]:
    """Returns what is taken out of a text before anything else is done to it."""
    kinds = {
        i: piece.type
        for i, piece in enumerate(proto.pieces)
        if piece.type in (_TYPES.CONTROL, _TYPES.USER_DEFINED, _TYPES.UNKNOWN)
    }
    special = {vocab.pad_id, vocab.eos_id, vocab.unk_id, *vocab.sentinel_ids}
    special |= {ids[0] for ids in vocab.mode_ids.values() if len(ids) == 1}
    special |= {i for i, kind in kinds.items() if kind != _TYPES.USER_DEFINED}
    return [
        {
            "id": token,
            "content": pieces[token][0],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token in special,
        }
        for token in sorted(special | kinds.keys())
    ]


def _normalizer(proto: Any) -> dict[str, Any] | None:
    """Returns what SentencePiece does to a text before it looks for pieces."""
    spec = proto.normalizer_spec
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append(_replace({"Regex": r"\A +| +\z"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    if spec.escape_whitespaces:
        steps.append(_replace({"String": " "}, _SPACE))
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _decoder(proto: Any, *, has_bytes: bool) -> dict[str, Any]:
    """Returns how pieces become a text again."""
    steps = [_replace({"String": _SPACE}, " ")]
    if has_bytes:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _named_tokens(vocab: Vocab, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tokens that transformers calls by a name."""
    texts = {entry["id"]: entry["content"] for entry in content["added_tokens"]}
    names = {
        "pad_token": vocab.pad_id,
        "eos_token": vocab.eos_id,
        "unk_token": vocab.unk_id,
    }
    others = [*vocab.sentinel_ids]
    others += [ids[0] for ids in vocab.mode_ids.values() if len(ids) == 1]
    return {
        **{name: texts[token] for name, token in names.items()},
        "additional_special_tokens": [texts[token] for token in others],
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _sequence(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}


def _special(text: str, kind: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": kind}}
