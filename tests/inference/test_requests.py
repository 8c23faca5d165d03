import dataclasses

import pytest
from inference_toys import make_text_model

from ul2.decoding.scoring import Score
from ul2.decoding.settings import DecodingSettings
from ul2.decoding.text_model import TextOutput
from ul2.inference.requests import (
    BadRowError,
    answer_bad,
    answer_decoded,
    answer_scored,
    make_request,
)
from ul2.inference.rows import Row
from ul2.inference.settings import InferenceSettings

SETTINGS = InferenceSettings(mode="R", decoding=DecodingSettings(max_tokens=9))


@pytest.fixture(scope="module")
def model():
    return make_text_model()


def request(model, fields, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return make_request(Row(0, fields), model, settings)


def output(model, text, log_prob=-1.23456789):
    ids = model.encode_target(model.prompt("the ___ reads"), text)[:-1]
    return TextOutput(model.tokenizer.decode(ids), ids, log_prob, log_prob, True)


def test_answer_is_the_worked_example(model):
    asked = request(model, {"inputs": "the ___ reads", "id": 7, "error": "old"})
    answer = answer_decoded(asked, [output(model, " model")], model)
    assert answer == {
        "inputs": "the ___ reads",
        "id": 7,
        "mode": "R",
        "prediction": "<extra_id_0> model",
        "filled": "the model reads",
        "log_prob": -1.234568,
        "score": -1.234568,
        "finished": True,
    }


def test_several_outputs_are_a_list_whose_first_is_the_answer(model):
    several = dataclasses.replace(SETTINGS.decoding, num_beams=2, num_decodes=2)
    asked = request(model, {"inputs": "the ___ reads"}, decoding=several)
    outputs = [output(model, " model"), output(model, " word", -2.0)]
    answer = answer_decoded(asked, outputs, model)
    assert [one["filled"] for one in answer["predictions"]] == [
        "the model reads",
        "the word reads",
    ]
    assert answer["prediction"] == "<extra_id_0> model"
    # T5X's beam search may end with fewer.
    fewer = answer_decoded(asked, outputs[:1], model)
    assert [one["filled"] for one in fewer["predictions"]] == ["the model reads"]


def test_row_chooses_its_mode_prefix_and_length(model):
    for given, mode in (("X", "X"), ("none", None), (None, None)):
        asked = request(model, {"inputs": "the", "mode": given})
        assert asked.mode == mode
        assert asked.prompt.inputs == model.prompt("the", mode).inputs
    assert request(model, {"inputs": "the"}).mode == "R"
    asked = request(model, {"inputs": "the", "prefix": "word", "max_tokens": 5})
    assert asked.prompt.forced == model.tokenizer.encode("word")
    assert asked.decoding.max_tokens == 5


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"inputs": " "}, '"inputs" is empty'),
        ({"text": "a"}, "no \"inputs\", only ['text']"),
        ({"inputs": 3}, '"inputs" is no text but 3'),
        ({"inputs": "\ud800"}, '"inputs" holds half of a character'),
        ({"inputs": "a", "mode": "Q"}, "mode 'Q' is not one of R, S, X or none"),
        ({"inputs": "a", "mode": ["R"]}, "mode ['R'] is not one of R, S, X or none"),
        ({"inputs": "___" * 5}, "5 blanks, but the vocabulary has 4 sentinels"),
        ({"inputs": "a", "prefix": 1}, '"prefix" is no text but 1'),
        ({"inputs": "a", "max_tokens": 10**9}, "not a number from 1 to 9"),
        ({"inputs": "a", "max_tokens": True}, "not a number from 1 to 9"),
        ({"inputs": "a ___", "max_tokens": 1}, "leave no room in 1 (--max_tokens)"),
        ({"inputs": "___" * 3, "max_tokens": 2}, "3 blanks do not fit 2 tokens"),
    ],
)
def test_row_that_cannot_be_answered_says_why_in_one_line(model, fields, error):
    with pytest.raises(BadRowError) as raised:
        request(model, fields)
    assert error in str(raised.value)
    answer = answer_bad(Row(0, fields), str(raised.value))
    assert answer["inputs"] == fields.get("inputs")
    assert "\n" not in answer["error"]
    assert not answer["error"].endswith(".")


def test_long_text_is_cut_at_its_end_or_refused(model):
    text = "the model ___ every word of the ___"
    whole = model.prompt(text, "R").inputs
    limit = len(whole) - 3
    asked = request(model, {"inputs": text}, max_inputs=limit)
    assert asked.prompt.inputs == [*whole[: limit - 1], model.vocab.eos_id]
    assert (asked.prompt.num_cut, asked.prompt.num_blanks) == (3, 1)
    answer = answer_decoded(asked, [output(model, " reads")], model)
    assert answer["truncated"] == 3
    assert answer["filled"] == "the model reads every word of the ___"
    with pytest.raises(BadRowError, match=f"{len(whole)} tokens of inputs, more than"):
        request(model, {"inputs": text}, max_inputs=limit, on_long="refuse")
    fitting = request(model, {"inputs": text}, max_inputs=len(whole), on_long="refuse")
    assert fitting.prompt.num_cut == 0


def test_limit_is_what_the_checkpoint_was_trained_on(model):
    trained = dataclasses.replace(model, inputs_length=4)
    assert len(request(trained, {"inputs": "the model reads"}).prompt.inputs) == 4
    asked = request(trained, {"inputs": "the model reads"}, max_inputs=6)
    assert len(asked.prompt.inputs) == 6
    with pytest.raises(BadRowError, match="max_inputs=2 has no room"):
        request(trained, {"inputs": "the model reads"}, max_inputs=2)


def test_scores_are_a_list_where_targets_are(model):
    scores = [Score(-1.0, 2, [-0.5, -0.5]), Score(-3.0, 3, [-1.0] * 3)]
    one = request(model, {"inputs": "a", "targets": "b"}, score=True)
    assert one.targets == (model.encode_target(one.prompt, "b"),)
    answer = answer_scored(one, scores[:1])
    assert (answer["log_prob"], answer["num_tokens"]) == (-1.0, 2)
    two = request(model, {"inputs": "a", "targets": ["b", "c"]}, score=True)
    answer = answer_scored(two, scores)
    assert (answer["log_prob"], answer["num_tokens"]) == ([-1.0, -3.0], [2, 3])
    assert answer["targets"] == ["b", "c"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, 'no "targets" to score'),
        ({"targets": []}, '"targets" is empty'),
        ({"targets": ["a", 2]}, '"targets" is no text but 2'),
        ({"inputs": "___", "targets": "<extra_id_7>"}, "not one of the 4 sentinels"),
    ],
)
def test_targets_that_cannot_be_scored_are_a_bad_row(model, fields, error):
    with pytest.raises(BadRowError, match=error):
        request(model, {"inputs": "a", **fields}, score=True)


def test_settings_that_make_no_sense_are_refused():
    for bad in (
        {"mode": "Q"},
        {"on_long": "cut"},
        {"batch_size": 0},
        {"max_inputs": 0},
    ):
        with pytest.raises(ValueError, match=r"not one of|at least 1"):
            InferenceSettings(**bad)
