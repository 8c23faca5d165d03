"""What a person types, and what is shown."""

import dataclasses

import pytest
from inference_toys import make_text_model

from ul2.decoding.settings import DecodingSettings
from ul2.inference.interactive import Session
from ul2.inference.settings import InferenceSettings

SETTINGS = InferenceSettings(decoding=DecodingSettings(max_tokens=5))


@pytest.fixture(scope="module")
def model():
    return make_text_model()


def talk(model, *lines, settings=SETTINGS):
    """Returns the number of texts asked, and what was shown after the greeting."""
    waiting = iter(lines)
    shown = []
    session = Session(model, settings, lambda: next(waiting, None), shown.append)
    asked = session.run()
    return asked, "".join(shown).split("\n", 1)[1]


def expected(model, text, **changes):
    settings = dataclasses.replace(SETTINGS.decoding, **changes)
    (outputs,) = model.generate([text], settings=settings)
    return outputs


def test_text_is_answered_as_it_is_decoded(model):
    (output,) = expected(model, "the model")
    assert talk(model, "the model", "", "/quit", "never") == (1, output.text + "\n")


def test_answer_is_shown_while_it_grows(model):
    shown = []
    waiting = iter(["the model"])
    settings = dataclasses.replace(
        SETTINGS, decoding=DecodingSettings(max_tokens=12), keep_sentinels=True
    )
    Session(model, settings, lambda: next(waiting, None), shown.append).run()
    assert len(shown) > 3


def test_blanks_are_shown_filled(model):
    _, shown = talk(model, "the ___ reads")
    assert (
        shown
        == model.infill("the ___ reads", mode=None, settings=SETTINGS.decoding) + "\n"
    )


def test_settings_change_in_between(model):
    _, shown = talk(
        model, "/mode S", "/max_tokens 3", "/top_p 0.5", "/temperature 0.7", "/settings"
    )
    for one in ("mode=S", "max_tokens=3", "top_p=0.5", "temperature=0.7"):
        assert one in shown
    _, shown = talk(model, "/temperature 0.7", "/beams 4", "/settings")
    assert "num_beams=4" in shown
    assert "temperature=0.0" in shown
    _, shown = talk(model, "/beams 4", "/temperature 0.7", "/settings")
    assert "num_beams=0" in shown


def test_several_answers_have_scores(model):
    _, shown = talk(model, "/beams 3", "/num_decodes 2", "the model")
    outputs = expected(model, "the model", num_beams=3, num_decodes=2)
    lines = [f"{one.text}   {one.score:.4f}" for one in outputs]
    assert shown == "\n".join(lines) + "\n"


def test_answer_can_be_scored(model):
    _, shown = talk(model, "/score word", "every word", "/score of the story")
    (score,) = model.score(["every word"], ["of the story"])
    assert "error: /score needs a text before it." in shown
    assert f"{score.log_prob:.4f} over {score.num_tokens} tokens" in shown


def test_prefix_begins_the_answers(model):
    _, shown = talk(model, "/prefix the story", "every word")
    assert shown.startswith("the story")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/nothing", "/nothing is no command; /help shows them."),
        ("/mode Q", "mode 'Q' is not one of R, S, X or none."),
        ("/max_tokens many", "/max_tokens many: not a number."),
        ("/max_tokens 0", "max_tokens=0 must be at least 1."),
        ("/beams -1", "/beams -1: not a number."),
        ("/top_p 2", "top_p=2.0 is not in (0, 1]."),
        ("___" * 5, "5 blanks, but the vocabulary has 4 sentinels."),
    ],
)
def test_wrong_line_is_one_line_and_the_session_goes_on(model, line, error):
    _, shown = talk(model, line, "/help")
    first, *rest = shown.splitlines()
    assert first == f"error: {error}"
    assert any("/quit" in one for one in rest)


def test_ctrl_c_stops_an_answer_and_not_the_session(model, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model), "generate_from", stop)
    _, shown = talk(model, "the model", "/help")
    assert "/quit" in shown


def test_mode_that_does_not_fit_and_cut_text_are_said(model):
    told = dataclasses.replace(model, trained_modes=("R",), inputs_length=4)
    _, shown = talk(told, "the model reads every word", "the")
    assert shown.count("warning: the checkpoint was trained with modes R") == 1
    assert shown.count("tokens were cut off") == 1
