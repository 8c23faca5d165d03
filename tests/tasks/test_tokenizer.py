import io
import os
import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.tasks.tokenizer import _sample, _sentences, open_tokenizer, train_tokenizer
from ul2.vocab import MODE_CONVENTIONS

CODE = 'def f(x):\n    """Adds one."""\n\n\treturn x + 1  # {}\n\n\n    \n'
DOCUMENTS = [CODE, "Hello   world,\nthis is the end.", "  Grüße, 😀!"] * 10
MODE_TEXTS = [text for texts in MODE_CONVENTIONS.values() for text in texts.values()]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return open_tokenizer(train_tokenizer(DOCUMENTS, 420, 12, path))


def train_foreign(path, **options):
    """A model as others make them: T5's ids, a dummy prefix, spaces squeezed."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            ["a word and another word [ ] < > _ id extra 0 NLU"] * 9
        ),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return path


def test_special_ids_follow_t5(tokenizer):
    vocab = tokenizer.vocab
    assert (vocab.pad_id, vocab.eos_id, vocab.unk_id) == (0, 1, 2)
    assert vocab.sentinel_ids == tuple(range(3, 15))
    assert {len(ids) for ids in vocab.mode_ids.values()} == {1}
    assert len({ids for ids in vocab.mode_ids.values()}) == len(MODE_TEXTS)
    assert vocab.mode("S") == vocab.mode_ids["[S]"]
    released = open_tokenizer(tokenizer.path, mode_convention="released").vocab
    assert released.mode("S") == vocab.mode_ids["[S2S]"]


@pytest.mark.parametrize(
    "text",
    [
        *DOCUMENTS[:3],
        "",
        " ",
        "\r\n\t ",
        "\x00",
        "▁a ▁▁ b▁",
        "漢字 and ⁇",
        *MODE_TEXTS,
        "x <extra_id_0>y</s><pad><unk><0x41>",
    ],
)
def test_every_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("index", [0, 11])
def test_literal_special_text_is_no_special_id(tokenizer, index):
    special = {0, 1, *tokenizer.vocab.sentinel_ids}
    special |= {i for ids in tokenizer.vocab.mode_ids.values() for i in ids}
    text = f"a <extra_id_{index}> b " + " ".join(MODE_TEXTS) + "</s><pad>"
    assert special.isdisjoint(tokenizer.encode(text))
    assert special.isdisjoint(tokenizer.encode([text, text])[1])


def test_encoding_many_texts_equals_encoding_each(tokenizer):
    texts = [*DOCUMENTS[:3], "", "▁", "<extra_id_0>"]
    assert tokenizer.encode(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode([]) == []


@pytest.mark.parametrize("many", [[], ["a b", "", "<extra_id_0>"], ["▁", "a"]])
def test_arrays_hold_what_lists_hold(tokenizer, many):
    encoder = pickle.loads(pickle.dumps(tokenizer.encoder))
    arrays = encoder.encode_arrays(many)
    assert [array.tolist() for array in arrays] == tokenizer.encode(many)


def test_decode_shows_sentinels_and_modes_and_hides_pad_and_eos(tokenizer):
    vocab = tokenizer.vocab
    ids = [*vocab.mode("R"), *tokenizer.encode("Hello "), vocab.sentinel_ids[11]]
    ids += [*tokenizer.encode(" end"), 1, 0, 0]
    assert tokenizer.decode(np.array(ids)) == "[R]Hello <extra_id_11> end"
    assert tokenizer.id_to_text(vocab.sentinel_ids[1]) == "<extra_id_1>"
    assert [tokenizer.id_to_text(i) for i in (0, 1, 2)] == ["<pad>", "</s>", "<unk>"]
    assert (
        "".join(map(tokenizer.id_to_text, tokenizer.encode("the  end"))) == "the  end"
    )


def test_ids_of_padding_rows_decode_and_others_are_refused(tokenizer):
    vocab = tokenizer.vocab
    assert vocab.size < vocab.padded_size
    assert "⁇" in tokenizer.decode([vocab.padded_size - 1])
    assert tokenizer.id_to_text(vocab.size) == f"<unused_{vocab.size}>"
    for token in (-1, vocab.padded_size):
        with pytest.raises(ValueError, match=f"token {token} is not in 0.."):
            tokenizer.decode([token])


def test_training_twice_makes_the_same_file(tokenizer, tmp_path):
    again = train_tokenizer(iter(DOCUMENTS), 420, 12, tmp_path / "again.model")
    assert again.read_bytes() == tokenizer.path.read_bytes()


def test_training_on_one_short_text_works(tmp_path):
    path = train_tokenizer(["a b"], 8000, 128, tmp_path / "new" / "t.model")
    vocab = open_tokenizer(path).vocab
    assert len(vocab.sentinel_ids) == 128
    assert vocab.size < 8000
    assert os.listdir(path.parent) == ["t.model"]


def test_training_refuses_what_cannot_work(tmp_path):
    out = tmp_path / "t.model"
    with pytest.raises(ValueError, match="no text to train"):
        train_tokenizer(["", ""], 500, 10, out)
    with pytest.raises(ValueError, match=r"128 sentinels, 6 modes.*use at least 493"):
        train_tokenizer(["a b"], 300, 128, out)
    many = "".join(map(chr, range(0x4E00, 0x4F00)))
    with pytest.raises(ValueError, match=r"vocab_size=300.*use at least \d+"):
        train_tokenizer([many], 300, 0, out)
    assert not out.exists()
    out.write_text("precious")
    with pytest.raises(ValueError, match="exists"):
        train_tokenizer(["a b"], 500, 10, out)


def test_sample_thins_evenly_and_loses_nothing_below_the_limit():
    documents = ["x" * 100] * 1000
    assert len(_sample(documents, 10**6)) == 1000
    kept = _sample([f"{i:0100d}" for i in range(1000)], 30_000)
    assert 125 < len(kept) <= 300
    steps = np.diff([int(sentence) for sentence in kept])
    assert set(steps) == {steps[0]}


def test_sentences_are_short_and_join_to_the_document():
    document = "one two\nthree " * 2000 + "x" * 9000
    sentences = list(_sentences([document, "short"]))
    assert "".join(sentences) == document + "short"
    assert max(map(len, sentences)) <= 4000


@pytest.mark.parametrize("spelling", ["<extra_id_{}>", "▁<extra_id_{}>"])
def test_foreign_sentinels_are_found_but_never_encoded(tmp_path, spelling):
    symbols = [spelling.format(i) for i in range(3)] + ["[NLU]"]
    path = train_foreign(tmp_path / "t.model", user_defined_symbols=symbols)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = open_tokenizer(path, mode_convention="released")
    sentinel = tokenizer.vocab.sentinel_ids[0]
    assert tokenizer.vocab.sentinel_ids == tuple(map(plain.piece_to_id, symbols[:3]))
    text = "a word <extra_id_0> another [NLU]"
    assert sentinel in plain.encode(text)  # what the model alone would do
    assert sentinel not in tokenizer.encode(text)
    assert tokenizer.vocab.mode("R") == (plain.piece_to_id("[NLU]"),)
    assert tokenizer.vocab.mode("R")[0] not in tokenizer.encode([text])[0]
    assert tokenizer.encode("another word") == plain.encode("another word")
    assert tokenizer.decode([*tokenizer.encode("a"), sentinel]).split() in (
        ["a", "<extra_id_0>"],
        ["a<extra_id_0>"],
    )
    with pytest.raises(ValueError, match="has 3 sentinels of its own"):
        open_tokenizer(path, extra_sentinels=100)


def test_foreign_modes_are_plain_pieces_and_added_sentinels_count_as_t5s(tmp_path):
    path = train_foreign(tmp_path / "t.model")
    size = sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()
    tokenizer = open_tokenizer(path, extra_sentinels=128, mode_convention="released")
    vocab = tokenizer.vocab
    assert vocab.sentinel_ids[0] == size + 99
    assert vocab.sentinel_ids[99:102] == (size, size + 100, size + 101)
    assert list(vocab.mode("R")) == tokenizer.encode("[NLU]")
    assert len(vocab.mode("R")) > 1
    ids = [*tokenizer.encode("a"), size + 99, *tokenizer.encode("word"), size + 127]
    assert tokenizer.decode(ids) == "a<extra_id_0> word<extra_id_127>"
    assert tokenizer.id_to_text(size) == "<extra_id_99>"


def test_opening_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"none\.model: No such file.*--vocab"):
        open_tokenizer(tmp_path / "none.model")
    with pytest.raises(ValueError, match="Is a directory"):
        open_tokenizer(tmp_path)
    for content in (b"", b"not a model", bytes(range(256))):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.model is not a SentencePiece"):
            open_tokenizer(tmp_path / "bad.model")
    path = train_foreign(tmp_path / "t.model", eos_piece="<end>")
    with pytest.raises(ValueError, match=r"t\.model: the vocabulary has no </s>"):
        open_tokenizer(path)


def test_pickle_carries_the_path_and_options(tokenizer):
    data = pickle.dumps(open_tokenizer(tokenizer.path, mode_convention="released"))
    assert len(data) < 500
    again = pickle.loads(data)
    assert again.vocab.mode_convention == "released"
    assert again.encode(CODE) == tokenizer.encode(CODE)
