import dataclasses
import json

import pytest

from ul2.vocab import MODE_CONVENTIONS, Vocab, resolve, round_up

PIECES = {"<pad>": 0, "</s>": 1, "<unk>": 2}


def encode(text):
    return [ord(character) for character in text]


def resolved(pieces, size, **changes):
    fields = {"tokenizer_sha256": "hash", "mode_convention": "paper", **changes}
    return resolve(pieces.get, encode, size=size, **fields)


def test_resolve_finds_sentinels_and_modes_wherever_they_are():
    own = {"<extra_id_0>": 9, "<extra_id_1>": 4, "[R]": 5, "[S]": 6, "[X]": 7}
    vocab = resolved({**PIECES, **own}, 10)
    assert vocab.sentinel_ids == (9, 4)
    assert [vocab.mode(name) for name in ("R", "S", "X")] == [(5,), (6,), (7,)]
    assert (vocab.size, vocab.padded_size) == (10, 128)


def test_resolve_reads_sentencepiece_spelling():
    assert resolved({**PIECES, "▁<extra_id_0>": 8}, 9).sentinel_ids == (8,)


def test_added_sentinels_are_t5s_and_more_of_them_move_none():
    few = resolved(PIECES, 32_000, extra_sentinels=100)
    many = resolved(PIECES, 32_000, extra_sentinels=128)
    assert few.sentinel_ids == tuple(range(32_099, 31_999, -1))
    assert many.sentinel_ids == (*few.sentinel_ids, *range(32_100, 32_128))
    assert (few.size, few.padded_size) == (32_100, 32_128)
    assert (many.size, many.padded_size) == (32_128, 32_128)


def test_modes_of_a_foreign_vocabulary_are_plain_text():
    vocab = resolved(PIECES, 300, mode_convention="released", extra_sentinels=3)
    assert vocab.mode("R") == tuple(encode("[NLU]"))
    assert vocab.mode("S") == tuple(encode("[S2S]"))
    assert vocab.with_mode_convention("paper").mode("X") == tuple(encode("[X]"))
    assert vocab.mode(None) == ()


def test_resolve_names_what_is_missing():
    with pytest.raises(ValueError, match="no <pad> and no </s>"):
        resolved({"<unk>": 2}, 10)
    with pytest.raises(ValueError, match="2 sentinels of its own"):
        own = {"<extra_id_0>": 9, "<extra_id_1>": 4}
        resolved({**PIECES, **own}, 10, extra_sentinels=5)


def test_json_round_trip_is_exact_and_strict():
    vocab = resolved(PIECES, 300, extra_sentinels=7)
    fields = json.loads(json.dumps(vocab.to_json()))
    assert Vocab.from_json(fields) == vocab
    with pytest.raises(ValueError, match=r"missing \['eos_id'\], unknown \['eos'\]"):
        Vocab.from_json(
            {"eos": 1, **{k: v for k, v in fields.items() if k != "eos_id"}}
        )


def test_wrong_contracts_are_refused():
    vocab = resolved(PIECES, 300, extra_sentinels=3)
    with pytest.raises(ValueError, match="MODE_CONVENTION"):
        vocab.with_mode_convention("nlu")
    with pytest.raises(ValueError, match="ids of their own"):
        dataclasses.replace(vocab, sentinel_ids=(1, 5))
    with pytest.raises(ValueError, match="does not hold"):
        dataclasses.replace(vocab, padded_size=200)
    with pytest.raises(ValueError, match="mode 'Q' is not one of"):
        vocab.mode("Q")
    assert set(MODE_CONVENTIONS) == {"paper", "released"}


def test_round_up():
    assert [round_up(n, 8) for n in (1, 8, 9)] == [8, 8, 16]
