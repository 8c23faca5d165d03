import pytest
from text_toys import SENTENCE, train_foreign

from ul2.decoding.text import fill, make_prompt
from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer
from ul2.vocab import Vocab

VOCAB = Vocab(
    size=200,
    padded_size=256,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    start_id=0,
    sentinel_ids=(150, 151),
    mode_ids={"[R]": (160,), "[S]": (161,), "[X]": (162,)},
    mode_convention="paper",
    tokenizer_sha256="toy",
)


def encode(text):
    return [ord(character) for character in text]


def decode(ids):
    return "".join(map(chr, ids))


def test_prompt_and_filling_are_the_worked_example():
    text = "The ___ sat on the ___."
    prompt = make_prompt(text, "R", encode, VOCAB)
    assert prompt.inputs == [
        *[160, *encode("The"), 150],
        *[*encode(" sat on the"), 151, *encode("."), 1],
    ]
    assert prompt.forced == [150]
    output = [150, *encode(" cat"), 151, *encode(" mat")]
    assert fill(text, output, decode, VOCAB) == "The cat sat on the mat."


def test_blank_without_its_sentinel_stays_a_blank():
    text = "a ___ b ___"
    assert fill(text, [150, *encode("x")], decode, VOCAB) == "a x b ___"
    assert fill(text, [], decode, VOCAB) == text


def test_text_without_blanks_is_continued():
    prompt = make_prompt("Once", None, encode, VOCAB)
    assert prompt == ([*encode("Once"), 1], [])
    assert fill("Once", encode(" upon"), decode, VOCAB) == "Once upon"


def test_more_blanks_than_sentinels_are_refused():
    with pytest.raises(ValueError, match="3 blanks, but the vocabulary has 2"):
        make_prompt("___ ___ ___", None, encode, VOCAB)


@pytest.fixture(scope="module", params=["own", "foreign"])
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tokenizer.model"
    if request.param == "foreign":
        return train_foreign(path)
    return open_tokenizer(train_tokenizer([SENTENCE] * 9, 300, 4, path))


def test_prompt_has_the_tokens_of_the_text_around_its_blank(tokenizer):
    vocab = tokenizer.vocab
    prompt = make_prompt("the model ___ every word", None, tokenizer.encode, vocab)
    text = tokenizer.encode("the model reads every word")
    at = prompt.inputs.index(vocab.sentinel_ids[0])
    after = prompt.inputs[at + 1 : -1]
    assert prompt.inputs[:at] == text[:at]
    assert after == text[len(text) - len(after) :]
    span = text[at : len(text) - len(after)]
    assert tokenizer.decode(span).strip() == "reads"
    output = [vocab.sentinel_ids[0], *span]
    filled = fill("the model ___ every word", output, tokenizer.decode, vocab)
    assert filled == "the model reads every word"


def test_continuation_keeps_the_space_before_its_first_word(tokenizer):
    text = tokenizer.encode("the model reads")
    first = tokenizer.encode("the model")
    assert text[: len(first)] == first
    rest = text[len(first) :]
    filled = fill("the model", rest, tokenizer.decode, tokenizer.vocab)
    assert filled == "the model reads"
