"""A checkpoint of any format is the same model of text."""

import dataclasses

import numpy as np
import pytest
from checkpoint_toys import make_checkpoint, save, with_param
from inference_toys import make_text_model
from text_toys import train_foreign
from tolerances import LOGITS_ATOL

from ul2 import load
from ul2.inference.opening import open_model
from ul2.interop import own
from ul2.interop.conversion import convert
from ul2.interop.opening import open_checkpoint

TEXT, TARGET = "the ___ of the story", "<extra_id_0> model<extra_id_1>"


def make(**changes):
    """Returns a toy with a tokenizer."""
    tokenizer = make_text_model().tokenizer
    vocab = dataclasses.replace(tokenizer.vocab, padded_size=384)
    checkpoint = make_checkpoint("t5_1_1", vocab_size=384)
    fields = {"vocab": vocab, "tokenizer": tokenizer.model, **changes}
    return dataclasses.replace(checkpoint, **fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(own.write, make(), tmp_path_factory.mktemp("opening") / "run")


@pytest.fixture(scope="module")
def expected(run):
    return open_model(run).score([TEXT], [TARGET], modes=["R"])[0]


@pytest.mark.parametrize("to", ["t5x", "huggingface"])
def test_every_format_is_the_same_model(run, expected, to, tmp_path):
    convert(open_checkpoint(run), to, tmp_path / "out")
    options = {} if to == "huggingface" else {"activation": "gelu"}
    found = load(tmp_path / "out", dtype="float32", **options)
    assert found.tokenizer.encode(TEXT) == make_text_model().tokenizer.encode(TEXT)
    (score,) = found.score([TEXT], [TARGET], modes=["R"])
    assert score.num_tokens == expected.num_tokens
    np.testing.assert_allclose(
        score.token_log_probs, expected.token_log_probs, atol=LOGITS_ATOL
    )


def test_mesh_is_a_choice(run, expected):
    found = open_model(run, mesh="data=2,fsdp=2,tensor=2")
    (score,) = found.score([TEXT], [TARGET], modes=["R"])
    np.testing.assert_allclose(
        score.token_log_probs, expected.token_log_probs, atol=LOGITS_ATOL
    )


def test_modes_are_written_as_one_asks(run):
    found = open_model(run, mode_convention="released")
    assert found.vocab.mode("R") == found.vocab.mode_ids["[NLU]"]
    assert open_model(run).vocab.mode("R") == found.vocab.mode_ids["[R]"]


def test_identity_is_of_the_parameters(run, tmp_path):
    before = open_model(run).identity
    assert open_model(run).identity == before
    assert before["checkpoint"] == str(run)
    name = "encoder.final_norm.scale"
    other = with_param(make(), name, make().params[name].read() + 1)
    changed = open_model(save(own.write, other, tmp_path / "other")).identity
    assert changed["parameters"] != before["parameters"]


def test_checkpoint_without_tokenizer_is_refused_and_takes_one(tmp_path):
    tokenizer = make_text_model().tokenizer
    run = save(own.write, make(tokenizer=None), tmp_path / "run")
    with pytest.raises(ValueError, match="give --vocab the SentencePiece model"):
        open_model(run)
    (tmp_path / "its.model").write_bytes(tokenizer.model)
    found = open_model(run, vocab_file=tmp_path / "its.model")
    assert found.tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    with pytest.raises(ValueError, match="cannot read --vocab"):
        open_model(run, vocab_file=tmp_path / "none.model")


def test_another_tokenizer_is_refused(run, tmp_path):
    train_foreign(tmp_path / "other.model")
    with pytest.raises(ValueError, match="but the vocabulary came from"):
        open_model(run, vocab_file=tmp_path / "other.model")
