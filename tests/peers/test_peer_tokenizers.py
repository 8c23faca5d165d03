"""Tokenizers of transformers give our ids, and we find the ids of theirs."""

import json
import random

import pytest
from text_toys import train_foreign

from ul2.interop import huggingface_tokenizer, huggingface_vocab
from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

TEXTS = [
    "the model reads every word of the story",
    "  leading and   many    spaces  ",
    "",
    " ",
    "     ",
    "\n",
    "tabs\tand\nnewlines\r\n  follow",
    "def f(x):\n    return {x: [1, 2]}  # <x> \\ ^ ~ `\n",
    "naïve café, Zürich straße",
    "日本語のテキスト 한국어 العربية שלום हिन्दी",
    "emoji 😀 and 👩‍👩‍👧 and 🇩🇪",
    "ﬁ ligature Ⅷ ① \uff11\uff12\uff13 \uff21\uff22\uff23 ½",
    "a\u00a0b\u3000c\u2028d\u200be\ufeff",
    "e\u0301 combined",
    "x" * 500,
    "bytes <0x41> and <0xE2><0x96> by name",
    "almost a sentinel: <extra_id_ 0> <extra_id_x> [R [S",
    "\x00 control \x07 characters \x7f",
]


def random_texts():
    rng = random.Random(0)
    pool = "abcdefg XYZ .,;0123456789éüß日本\t\n€😀[]_-<>{}"
    return ["".join(rng.choices(pool, k=rng.randrange(1, 80))) for _ in range(300)]


@pytest.fixture(scope="module", params=["own", "foreign"])
def tokenizer(request, tmp_path_factory):
    """Ours keeps every character; the other is made as T5's was."""
    file = tmp_path_factory.mktemp("tokenizer") / "spiece.model"
    if request.param == "foreign":
        return train_foreign(file)
    texts = [f"the {i}th text <0x{i:02X}> \n\t    of words {i * i}" for i in range(90)]
    return open_tokenizer(train_tokenizer(texts, 420, 20, file))


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """The export of a tokenizer, beside a config as `AutoTokenizer` wants it."""
    out = tmp_path_factory.mktemp("export")
    huggingface_tokenizer.write(out, tokenizer.vocab, tokenizer.model)
    (out / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return out


@pytest.fixture(scope="module", params=["t5", "umt5"])
def theirs(request, exported):
    (exported / "config.json").write_text(json.dumps({"model_type": request.param}))
    return transformers.AutoTokenizer.from_pretrained(exported)


def test_ids_are_sentencepieces_with_an_end(tokenizer, theirs):
    texts = TEXTS + random_texts()
    eos = tokenizer.vocab.eos_id
    wrong = [t for t in texts if theirs(t).input_ids != [*tokenizer.encode(t), eos]]
    assert wrong == []
    assert len(theirs) == tokenizer.vocab.size


def test_texts_come_back(tokenizer, theirs):
    for text in TEXTS + random_texts():
        ids = tokenizer.encode(text)
        if tokenizer.vocab.unk_id not in ids:
            assert theirs.decode(ids) == tokenizer.decode(ids), text


def test_special_tokens_have_our_ids(tokenizer, theirs):
    vocab = tokenizer.vocab
    assert theirs.pad_token_id == vocab.pad_id
    assert theirs.eos_token_id == vocab.eos_id
    assert theirs.unk_token_id == vocab.unk_id
    for index, token in enumerate(vocab.sentinel_ids):
        text = f"<extra_id_{index}>"
        assert theirs(text).input_ids == [token, vocab.eos_id]
        assert token in theirs.all_special_ids
    modes = {text: ids for text, ids in vocab.mode_ids.items() if len(ids) == 1}
    for text, ids in modes.items():
        assert theirs(text).input_ids == [*ids, vocab.eos_id]


def test_specials_within_a_text_are_taken_out(tokenizer, theirs):
    first, second = tokenizer.vocab.sentinel_ids[:2]
    found = theirs("the<extra_id_0> model<extra_id_1>").input_ids
    words = [tokenizer.encode(text) for text in ("the", " model")]
    assert found == [*words[0], first, *words[1], second, tokenizer.vocab.eos_id]
    assert "<extra_id_0>" not in theirs.decode(found, skip_special_tokens=True)


def test_padded_batch_has_our_pad(tokenizer, theirs):
    rows = theirs(["the model", "a"], padding=True)
    assert rows["input_ids"][1][-1] == tokenizer.vocab.pad_id
    assert rows["attention_mask"][1][-1] == 0


def test_vocab_is_found_again(tokenizer, exported):
    rows = tokenizer.vocab.padded_size
    fields = {"vocab_size": rows}
    found, model, assumed = huggingface_vocab.find(
        exported, fields, vocab_file=None, mode_convention=None
    )
    assert (found, model, assumed) == (tokenizer.vocab, tokenizer.model, ())


def test_sentinels_of_their_own_tokenizer_are_found(tmp_path):
    plain = train_foreign(tmp_path / "spiece.model")
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path, extra_ids=7)
    theirs.save_pretrained(tmp_path / "saved")
    fields = {"vocab_size": 128}
    for with_model in (False, True):
        if with_model:
            model = (tmp_path / "spiece.model").read_bytes()
            (tmp_path / "saved" / "spiece.model").write_bytes(model)
        found, _, _ = huggingface_vocab.find(
            tmp_path / "saved", fields, vocab_file=None, mode_convention=None
        )
        texts = [f"<extra_id_{i}>" for i in range(7)]
        assert list(found.sentinel_ids) == theirs.convert_tokens_to_ids(texts)
        assert found.size == len(theirs) == plain.vocab.size + 3
        assert (found.pad_id, found.eos_id, found.unk_id) == (0, 1, 2)
