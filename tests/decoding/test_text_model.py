"""Texts in, texts out: blanks, modes, prefixes and scores over a tiny model."""

import dataclasses

import pytest
from model_fixtures import tiny_model
from text_toys import SENTENCE, train_foreign

from ul2.decoding.settings import DecodingSettings
from ul2.decoding.text_model import TextModel, TextOutput
from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer
from ul2.vocab import round_up

SHORT = DecodingSettings(max_tokens=24)
SAMPLED = DecodingSettings(max_tokens=24, temperature=1.0, num_decodes=3, seed=4)


@pytest.fixture(scope="module", params=["encoder_decoder", "decoder_only"])
def model(request, tmp_path_factory):
    """One with a vocabulary of our own, one with a vocabulary as others make them."""
    path = tmp_path_factory.mktemp("text_model") / "tokenizer.model"
    if request.param == "decoder_only":
        tokenizer = train_foreign(path)
    else:
        tokenizer = open_tokenizer(train_tokenizer([SENTENCE] * 9, 300, 4, path))
    # At least one row more than there are ids: nobody may ever write it.
    rows = round_up(tokenizer.vocab.size + 1, 128)
    vocab = dataclasses.replace(tokenizer.vocab, padded_size=rows)
    network = tiny_model(request.param, vocab_size=rows)
    # Small batches: whatever the number of texts, this many are computed.
    return TextModel(network, tokenizer, vocab, batch_size=2)


def written(model, text, settings=SAMPLED, **options):
    (outputs,) = model.generate([text], settings=settings, **options)
    return outputs


def sentinels(model, output):
    return [one for one in output.ids if one in model.vocab.sentinel_ids]


def test_blanks_are_filled_in_order_each_once(model):
    text = "the ___ reads ___ of the ___"
    for filling in model.infillings(text, settings=SAMPLED):
        expected = list(model.vocab.sentinel_ids[:3])
        found = sentinels(model, filling.output)
        assert found == expected[: len(found)]
        assert found == expected or not filling.output.finished
        assert "<extra_id" not in filling.text
        assert filling.text.startswith("the ")
        assert filling.text.count("___") == 3 - len(found)
    best = model.infillings(text, settings=SAMPLED)[0]
    assert model.infill(text, settings=SAMPLED) == best.text


def test_texts_without_blanks_are_answered_without_sentinels(model):
    for output in written(model, "the model"):
        assert not sentinels(model, output)
        assert max(output.ids, default=0) < model.vocab.size
        assert output.text == model.tokenizer.decode(output.ids)


def test_sentinels_are_kept_if_wanted(model):
    settings = dataclasses.replace(SAMPLED, num_decodes=12)
    outputs = written(model, "the model", settings, keep_sentinels=True)
    assert any(sentinels(model, output) for output in outputs)


def test_texts_with_and_without_blanks_share_a_call(model):
    texts = ["the ___ reads", "every word", "of ___ the ___"]
    modes = ["R", None, "X"]
    together = model.generate(texts, modes=modes, settings=SAMPLED)
    for number, (text, mode) in enumerate(zip(texts, modes, strict=True)):
        alone = model.generate([text], modes=[mode], settings=SAMPLED, numbers=[number])
        assert [one.ids for one in alone[0]] == [one.ids for one in together[number]]


def test_mode_changes_the_inputs(model):
    plain, told = (model.prompt("the model", mode) for mode in (None, "S"))
    assert told.inputs == [*model.vocab.mode("S"), *plain.inputs]


def test_prefix_begins_the_output_and_does_not_count(model):
    for output in written(model, "every word", prefixes=["the story"]):
        assert output.text.startswith("the story")
    (score,) = model.score(["every word"], [" reads"], prefixes=["the story"])
    (whole,) = model.score(["every word"], ["the story reads"])
    assert score.num_tokens < whole.num_tokens


def test_log_prob_of_an_output_is_its_score(model):
    for text, mode in (("the ___ reads the ___", "R"), ("every word", None)):
        for output in written(model, text, modes=[mode]):
            # EOS counts where it was written.
            if not output.finished:
                continue
            ids = [*output.ids, model.vocab.eos_id]
            prompt = model.prompt(text, mode)
            (score,) = model.score_from([prompt], [ids])
            assert score.log_prob == pytest.approx(output.log_prob, abs=1e-4)


def test_target_of_blanks_names_its_sentinels(model):
    prompt = model.prompt("the ___ reads the ___", "R")
    ids = model.encode_target(prompt, "<extra_id_0> model<extra_id_1> story")
    first, second = model.vocab.sentinel_ids[:2]
    encode = model.tokenizer.encode
    assert ids == [
        *[first, *encode(" model"), second, *encode(" story")],
        model.vocab.eos_id,
    ]
    # The first may be left out, and in other texts such a name is text.
    assert model.encode_target(prompt, " model<extra_id_1> story") == ids
    plain = model.encode_target(model.prompt("the"), "<extra_id_0>")
    assert first not in plain
    with pytest.raises(ValueError, match="<extra_id_9> is not one of the 4 sentinels"):
        model.encode_target(prompt, "<extra_id_9>")


def test_default_mode_of_infilling_is_one_that_the_model_knows(model, monkeypatch):
    asked = []

    def generate(self, inputs, *, modes, settings):
        asked.extend(modes)
        return [[TextOutput("", [], 0.0, 0.0, True)]]

    monkeypatch.setattr(TextModel, "generate", generate)
    for trained in (None, ("R", "S"), (), ("S",)):
        dataclasses.replace(model, trained_modes=trained).infill("the ___")
    model.infill("the ___", mode="X")
    assert asked == ["R", "R", None, None, "X"]
