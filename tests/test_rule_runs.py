"""A rule of one's own, from `--import_module` to the batches of a run."""

import contextlib
import io
import json

import numpy as np
import pytest
from text_toys import train_foreign
from wiring_toys import flags, make_store

from ul2 import cli
from ul2.data.token_store import TokenStore
from ul2.denoising import span_rules
from ul2.evaluation.held_out import mixture_from_json
from ul2.tasks.tokenizer import open_tokenizer, open_with_vocab, pieces_of

OBJECTIVE = """
from __gin__ import dynamic_registration
from ul2 import recipe
from ul2.denoising import mixture
recipe.Recipe.mixture = @mixture.from_rows()
mixture.from_rows.rows = [
    ('words', 'R', 3, 0.2, '{rule}', 2),
    ('s', 'S', None, 0.25, 'suffix', 1),
]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("rules"))


@pytest.fixture
def rule_flags(store, tmp_path):
    def make(rule="whole_words", **macros):
        (tmp_path / "own.gin").write_text(OBJECTIVE.replace("{rule}", rule))
        arguments = flags(store, **macros)
        own = f"--gin_file={tmp_path / 'own.gin'}"
        return [arguments[0], own, *arguments[2:]]

    return make


def report_of(command, arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = cli.main([command, *arguments, "--json"])
    return status, json.loads(out.getvalue().splitlines()[-1])


def test_pieces_of_a_text_are_its_characters(store, tmp_path):
    opened = TokenStore.open(store)
    pieces = pieces_of(opened.tokenizer_path, opened.vocab)
    tokenizer = open_with_vocab(opened.tokenizer_path, opened.vocab)
    assert len(pieces) == opened.vocab.size
    text = "the model\treads\n\n every word. Ab"
    assert "".join(pieces[i] for i in tokenizer.encode(text)) == text
    assert "".join(pieces[i] for i in tokenizer.encode("a ä")) == "a \ufffd\ufffd"
    assert pieces[opened.vocab.eos_id] == "\n"
    special = (*opened.vocab.sentinel_ids, *opened.vocab.mode("R"))
    assert {pieces[i] for i in special} == {""}
    train_foreign(tmp_path / "foreign.model")
    foreign = open_tokenizer(tmp_path / "foreign.model", 10)
    pieces = pieces_of(tmp_path / "foreign.model", foreign.vocab)
    said = "".join(pieces[i] for i in foreign.encode("the model reads"))
    assert said.split() == ["the", "model", "reads"]


def test_a_rule_is_checked_shown_and_trained_on(rule_flags, tmp_path):
    by_hand = ["--import_module=ul2.denoising.rules.whole_words"]
    lengths = {"INPUTS_LENGTH": 96, "TARGETS_LENGTH": 48}
    arguments = [*by_hand, *rule_flags(MODEL_DIR=tmp_path / "run", **lengths)]
    status, report = report_of("check", arguments)
    assert (status, report["errors"]) == (0, [])
    words = report["denoisers"][0]
    assert words["measured_share"] == pytest.approx(2 / 3, abs=1e-3)
    assert words["measured_noise_density"] == pytest.approx(0.2, abs=0.03)
    assert words["measured_inputs_length"] < 96
    _, shown = report_of("inspect", [*by_hand, *rule_flags(), "--step=3"])
    made = [one for one in shown["examples"] if one["denoiser"] == "words"]
    assert made
    for one in made:
        targets, inputs = (
            one[side].removesuffix("<eos>").replace("<eos>", "\n")
            for side in ("targets", "inputs")
        )
        head, *spans = targets.split("<extra_id_")
        assert head == ""
        assert spans
        said = [span.partition(">")[2] for span in spans]
        kept = inputs.removeprefix("[R]")
        for number, span in enumerate(said):
            behind = kept.partition(f"<extra_id_{number}>")[2]
            # A word, and its blank in front, in whole; nothing else.
            assert span[:1] in (" ", "\n") or kept.startswith(f"<extra_id_{number}>")
            assert not behind or behind[0] in " \n<"
    assert cli.main(["train", *arguments]) == 0
    fields = report_of("train", arguments)[1]  # goes on, and has nothing to do
    assert fields["step"] == 3


def test_rule_that_nobody_imported_is_one_line(rule_flags, monkeypatch):
    monkeypatch.setattr(span_rules, "SPAN_RULES", {})
    _, report = report_of("check", rule_flags("my_rule", MODEL_DIR="unused"))
    (error,) = report["errors"]
    assert "denoiser 'words': placement='my_rule' is not one of ['random'," in error
    assert "--import_module" in error and "\n" not in error


def test_checkpoint_names_the_rule():
    fields = {
        "denoisers": [
            {
                "name": "words",
                "mode": None,
                "mean_span_length": 3,
                "noise_density": 0.15,
                "placement": "whole_words",
                "sentinels": True,
            }
        ],
        "rates": [1],
        "cap_spans": False,
    }
    rules = dict(span_rules.SPAN_RULES)
    try:
        span_rules.SPAN_RULES["whole_words"] = lambda text, budget, rng: np.empty(
            (0, 2)
        )
        assert mixture_from_json(fields).denoisers[0].has_rule
        span_rules.SPAN_RULES.clear()
        with pytest.raises(ValueError, match="--import_module"):
            mixture_from_json(fields)
    finally:
        span_rules.SPAN_RULES.update(rules)
