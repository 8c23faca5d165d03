"""Which ids mean what: found by text wherever transformers keeps its tokens."""

import dataclasses
import json

import pytest
from checkpoint_toys import make_checkpoint
from text_toys import train_foreign

from ul2.interop import huggingface, huggingface_tokenizer, huggingface_vocab
from ul2.interop.staging import Staging
from ul2.interop.vocabulary import T5_VOCAB
from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer

ROWS = 512
FIELDS = {"model_type": "t5", "vocab_size": ROWS}


def find(path, **options):
    fields = {**FIELDS, **options.pop("fields", {})}
    options = {"vocab_file": None, "mode_convention": None, **options}
    return huggingface_vocab.find(path, fields, **options)


def write_json(path, name, content):
    (path / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """A vocabulary of ours: sentinels and modes are pieces of it."""
    file = tmp_path_factory.mktemp("own") / "tokenizer.model"
    texts = [f"the {i}th text of many words, {i * i}" for i in range(60)]
    return open_tokenizer(train_tokenizer(texts, 400, 20, file))


@pytest.fixture
def foreign(tmp_path):
    """A directory with a vocabulary as T5's, which has no sentinels."""
    train_foreign(tmp_path / "spiece.model")
    return tmp_path


def size_of(path):
    return open_tokenizer(path / "spiece.model").vocab.size


def test_t5_vocabulary_gets_a_hundred_sentinels(foreign):
    vocab, model, assumed = find(foreign)
    size = size_of(foreign)
    assert vocab.sentinel_ids == tuple(range(size + 99, size - 1, -1))
    assert (vocab.size, vocab.padded_size) == (size + 100, ROWS)
    assert vocab.mode_convention == "released"
    assert model == (foreign / "spiece.model").read_bytes()
    assert assumed == ()


def test_table_without_room_gets_no_sentinels(foreign):
    vocab, _, _ = find(foreign, fields={"vocab_size": size_of(foreign)})
    assert vocab.sentinel_ids == ()


@pytest.mark.parametrize("file", ["added", "config", "tokenizer", "extra_ids"])
def test_declared_sentinels_are_counted(foreign, file):
    size = size_of(foreign)
    ids = {f"<extra_id_{i}>": size + 6 - i for i in range(7)}
    if file == "added":
        write_json(foreign, "added_tokens.json", ids)
    elif file == "config":
        decoder = {str(token): {"content": text} for text, token in ids.items()}
        write_json(foreign, "tokenizer_config.json", {"added_tokens_decoder": decoder})
    elif file == "extra_ids":
        write_json(foreign, "tokenizer_config.json", {"extra_ids": 7})
    else:
        added = [{"content": text, "id": token} for text, token in ids.items()]
        write_json(foreign, "tokenizer.json", {"added_tokens": added})
    vocab, _, _ = find(foreign)
    assert vocab.sentinel_ids == tuple(ids.values())


def test_declared_sentinels_elsewhere_are_refused(foreign):
    size = size_of(foreign)
    ids = {f"<extra_id_{i}>": size + i for i in range(7)}
    write_json(foreign, "added_tokens.json", ids)
    message = f"added_tokens.json puts <extra_id_0> at {size}, but by .* at {size + 6}"
    with pytest.raises(ValueError, match=message):
        find(foreign)


def test_own_pieces_are_the_sentinels_and_modes(own_model, tmp_path):
    vocab, _, _ = find(tmp_path, vocab_file=own_model.path)
    assert vocab == dataclasses.replace(own_model.vocab, padded_size=ROWS)
    assert vocab.mode_convention == "paper"


def test_given_convention_is_kept(own_model, tmp_path):
    vocab, _, _ = find(tmp_path, vocab_file=own_model.path, mode_convention="released")
    assert vocab.mode_convention == "released"


def test_config_has_the_last_word_on_pad_end_and_start(foreign):
    fields = {"pad_token_id": 3, "eos_token_id": [4, 1], "decoder_start_token_id": 5}
    vocab, _, _ = find(foreign, fields=fields)
    assert (vocab.pad_id, vocab.eos_id, vocab.start_id) == (3, 4, 5)


def test_generation_config_knows_the_start(foreign):
    write_json(foreign, "generation_config.json", {"decoder_start_token_id": 9})
    assert find(foreign)[0].start_id == 9


def test_start_is_the_pad_where_nothing_says_it(foreign):
    assert find(foreign, fields={"pad_token_id": 6})[0].start_id == 6


def test_more_ids_than_rows_are_refused(own_model, tmp_path):
    fields = {"vocab_size": own_model.vocab.size - 1}
    with pytest.raises(ValueError, match=r"ids, but the embedding table .* rows; give"):
        find(tmp_path, vocab_file=own_model.path, fields=fields)


def write_tokenizer(directory, opened):
    huggingface_tokenizer.write(directory, opened.vocab, opened.model)
    return directory


def test_exported_contract_is_read_again(own_model, tmp_path):
    vocab = own_model.vocab.with_mode_convention("released")
    vocab = dataclasses.replace(vocab, padded_size=ROWS, start_id=2)
    huggingface_tokenizer.write(tmp_path, vocab, own_model.model)
    found, model, assumed = find(tmp_path, fields={"decoder_start_token_id": 2})
    assert (found, model, assumed) == (vocab, own_model.model, ())


def test_contract_of_another_tokenizer_is_passed_over(own_model, foreign):
    write_tokenizer(foreign, own_model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (foreign / name).unlink()
    train_foreign(foreign / "spiece.model")
    vocab, _, assumed = find(foreign)
    assert vocab.size == size_of(foreign) + 100
    assert assumed == ("ul2_vocab.json is of another tokenizer than spiece.model",)


@pytest.mark.parametrize("is_own", [True, False])
def test_tokenizer_json_alone_tells_the_special_ids(own_model, foreign, is_own):
    opened = own_model if is_own else open_tokenizer(foreign / "spiece.model", 100)
    write_tokenizer(foreign, opened)
    for name in ("spiece.model", "ul2_vocab.json"):
        (foreign / name).unlink()
    vocab, model, assumed = find(foreign)
    assert model is None
    assert vocab.sentinel_ids == opened.vocab.sentinel_ids
    assert (vocab.size, vocab.padded_size) == (opened.vocab.size, ROWS)
    assert (vocab.pad_id, vocab.eos_id, vocab.unk_id) == (0, 1, 2)
    assert vocab.mode_ids == (own_model.vocab.mode_ids if is_own else {})
    assert vocab.tokenizer_sha256 == ""
    assert "no spiece.model" in assumed[0]


@pytest.mark.parametrize("content", [{}, {"model": {"vocab": [["<pad>", 0]]}}])
def test_tokenizer_json_of_another_kind_is_refused(tmp_path, content):
    write_json(tmp_path, "tokenizer.json", content)
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer of T5"):
        find(tmp_path)


def test_nothing_at_all_leaves_ids_of_the_config(tmp_path):
    vocab, model, assumed = find(tmp_path, fields={"eos_token_id": 7})
    assert (vocab.pad_id, vocab.eos_id, vocab.start_id) == (0, 7, 0)
    assert (vocab.size, vocab.sentinel_ids, vocab.mode_ids) == (ROWS, (), {})
    assert model is None
    assert "no tokenizer" in assumed[0]


def test_as_many_rows_as_t5_are_taken_for_its_vocabulary(tmp_path):
    vocab, _, assumed = find(tmp_path, fields={"vocab_size": 32128})
    assert vocab == T5_VOCAB
    assert "the vocabulary is T5's" in assumed[0]


@pytest.mark.parametrize("is_own", [True, False])
def test_export_holds_the_tokenizer(own_model, foreign, tmp_path, is_own):
    opened = own_model if is_own else open_tokenizer(foreign / "spiece.model", 30)
    vocab = dataclasses.replace(opened.vocab, padded_size=ROWS)
    checkpoint = make_checkpoint("ul2", vocab_size=ROWS)
    checkpoint = dataclasses.replace(checkpoint, vocab=vocab, tokenizer=opened.model)
    staging = Staging(tmp_path / "hf", {})
    huggingface.write(checkpoint, staging, None)
    found = huggingface.read(staging.directory)
    assert (found.vocab, found.tokenizer) == (vocab, opened.model)


def test_tokenizer_json_names_every_id(own_model, foreign):
    for opened in (own_model, open_tokenizer(foreign / "spiece.model", 100)):
        content = huggingface_tokenizer.tokenizer_json(opened.vocab, opened.model)
        pieces = content["model"]["vocab"]
        assert len(pieces) == opened.vocab.size
        for index, token in enumerate(opened.vocab.sentinel_ids):
            assert pieces[token][0] == f"<extra_id_{index}>"
        added = {entry["id"]: entry for entry in content["added_tokens"]}
        assert all(added[i]["special"] for i in opened.vocab.sentinel_ids)
        assert all(pieces[i][0] == entry["content"] for i, entry in added.items())


def test_model_that_is_not_unigram_is_refused(own_model):
    proto = huggingface_tokenizer.sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(own_model.model)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    with pytest.raises(ValueError, match=r"no unigram model"):
        huggingface_tokenizer.tokenizer_json(own_model.vocab, proto.SerializeToString())
