import pytest
from text_toys import SENTENCE, train_foreign
from vocab_toys import toy_vocab

from ul2.decoding.text import Prompt, encode_output, fill, make_prompt
from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer

VOCAB = toy_vocab(
    200,
    256,
    sentinel_ids=(150, 151),
    mode_ids={"[R]": (160,), "[S]": (161,), "[X]": (162,)},
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
    assert prompt == Prompt([*encode("Once"), 1], [])
    assert fill("Once", encode(" upon"), decode, VOCAB) == "Once upon"


def test_more_blanks_than_sentinels_are_refused():
    with pytest.raises(ValueError, match="3 blanks, but the vocabulary has 2"):
        make_prompt("___ ___ ___", None, encode, VOCAB)


def test_prefix_comes_behind_the_first_sentinel():
    for text, start in (("Once", []), ("a ___ b ___", [150])):
        prompt = make_prompt(text, None, encode, VOCAB, prefix="up")
        assert prompt.forced == [*start, *encode("up")]


def test_long_text_is_cut_at_its_end_and_keeps_mode_and_eos():
    text = "The ___ sat on the ___."
    whole = make_prompt(text, "R", encode, VOCAB)
    assert (whole.num_blanks, whole.num_cut) == (2, 0)
    fitting = make_prompt(text, "R", encode, VOCAB, max_inputs=len(whole.inputs))
    assert fitting == whole
    cut = make_prompt(text, "R", encode, VOCAB, max_inputs=8)
    assert cut == Prompt([160, *encode("The"), 150, *encode(" s"), 1], [150], 1, 11)
    # The blank that was cut off stays a blank.
    filled = fill(text, [150, *encode(" cat")], decode, VOCAB)
    assert filled == "The cat sat on the ___."
    no_blank = make_prompt(text, "R", encode, VOCAB, max_inputs=3)
    assert (no_blank.inputs, no_blank.forced) == ([160, ord("T"), 1], [])
    with pytest.raises(ValueError, match="max_inputs=2 has no room for text"):
        make_prompt(text, "R", encode, VOCAB, max_inputs=2)


def test_names_of_sentinels_become_sentinels_in_an_output():
    output = encode_output("<extra_id_0> cat<extra_id_1> mat", encode, VOCAB)
    assert output == [150, *encode(" cat"), 151, *encode(" mat")]
    assert encode_output("cat", encode, VOCAB) == encode("cat")
    with pytest.raises(ValueError, match="<extra_id_2> is not one of the 2 sentinels"):
        encode_output("<extra_id_2>", encode, VOCAB)


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
