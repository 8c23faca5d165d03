"""Held-out text per denoiser: the numbers of training, and other modes and masks."""

import dataclasses
import json

import pytest
from wiring_toys import flags, make_store

from ul2 import cli
from ul2.denoising.mixture import named
from ul2.evaluation.held_out import (
    OWN_MODES,
    HeldOutText,
    mixture_from_json,
    read_numbers,
    text_of_run,
)
from ul2.sharding.mesh import make_mesh
from ul2.training.checkpoints import load_model, read_contract

NOTHING = dict.fromkeys(("inputs_length", "targets_length", "batch_size", "batches"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("held_out"))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A run of two updates, evaluated after the last."""
    model_dir = tmp_path_factory.mktemp("run") / "one"
    macros = {"MODEL_DIR": model_dir, "TOTAL_STEPS": 2, "EVAL_BATCHES": 2}
    assert cli.main(["train", *flags(store, **macros, EVAL_EVERY_STEPS=2)]) == 0
    return model_dir


@pytest.fixture(scope="module")
def loaded(run):
    mesh = make_mesh("auto")
    model, contract = load_model(run, mesh)
    return model, contract, mesh


def test_scores_are_those_of_training(run, store, loaded):
    model, contract, mesh = loaded
    text = text_of_run(str(store), contract, None, NOTHING, "validation")
    assert (text.inputs_length, text.batch_size, text.batches) == (32, 16, 2)
    scores = text.evaluate(model, contract.vocab, OWN_MODES, mesh)
    (line,) = (run / "eval.jsonl").read_text().splitlines()
    trained = json.loads(line)
    del trained["step"]
    assert scores == trained


def test_other_objective_mode_and_lengths_may_be_asked_for(store, loaded):
    model, contract, mesh = loaded
    given = {"inputs_length": 24, "targets_length": 24, "batch_size": 8, "batches": 1}
    spans = text_of_run(
        str(store), contract, named("span_corruption"), given, "validation"
    )
    assert (spans.targets_length, spans.batches) == (24, 1)
    by_mode = {
        mode: spans.evaluate(model, contract.vocab, mode, mesh)
        for mode in (OWN_MODES, None, "R", "X")
    }
    assert list(by_mode["R"]["denoisers"]) == ["span_corruption"]
    # Without modes of its own, asking for none changes nothing; R and X do.
    assert by_mode[OWN_MODES] == by_mode[None]
    assert len({scores["loss"] for scores in by_mode.values()}) == 3
    trained_on = dataclasses.replace(spans, split="train")
    assert trained_on.to_json()["data"] != spans.to_json()["data"]


def test_mixture_of_a_contract_is_the_one_that_was_trained(run):
    contract = read_contract(run)
    assert mixture_from_json(contract.mixture) == named("ul2", s_denoiser="quarter")


def test_every_denoiser_announces_the_mode():
    mixture = named("ul2").in_mode("S")
    assert {denoiser.mode for denoiser in mixture.denoisers} == {"S"}
    assert named("ul2").in_mode(None).denoisers[0].mode is None


def test_lengths_are_read_out_of_a_config_that_is_not_run():
    # The example of the docstring, and what is not to be believed.
    text = "recipe.Recipe.inputs_length = %INPUTS_LENGTH\nINPUTS_LENGTH = 128\n"
    assert read_numbers(text) == {"inputs_length": 128}
    assert read_numbers("recipe.Recipe.batch_size = 7") == {"batch_size": 7}
    assert read_numbers("recipe.Recipe.batch_size = -7\nx.inputs_length = @f()") == {}
    assert read_numbers("x.inputs_length = %NOT_THERE\nimport os\n") == {}


def test_checkpoint_without_objective_is_refused(store, loaded):
    _, contract, _ = loaded
    for silent in (None, dataclasses.replace(contract, mixture=None)):
        with pytest.raises(ValueError, match="does not say which objective"):
            text_of_run(str(store), silent, None, NOTHING, "validation")
    tasks = dataclasses.replace(contract, mixture={"tasks": []})
    with pytest.raises(ValueError, match="trained on tasks"):
        text_of_run(str(store), tasks, None, NOTHING, "validation")
    with pytest.raises(ValueError, match="mixture is damaged"):
        mixture_from_json({"denoisers": [{"colour": 1}]})
    with pytest.raises(ValueError, match="--split=test: text has validation and train"):
        text_of_run(str(store), contract, None, NOTHING, "test")


def test_text_of_another_vocabulary_is_refused(loaded, tmp_path):
    model, contract, mesh = loaded
    text = HeldOutText(
        data=str(make_store(tmp_path, num_sentinels=41)), mixture=named("ul2")
    )
    with pytest.raises(ValueError, match="trained on another vocabulary"):
        text.evaluate(model, contract.vocab, None, mesh)
