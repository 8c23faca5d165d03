"""A run that measures all that a report shows, and the report of it."""

import json

import numpy as np
import pytest
from browser import fetched_by, is_blank, screenshot
from wiring_toys import flags, make_store

from ul2 import cli, launch
from ul2.denoising.denoisers import merge
from ul2.evaluation.samples import take_in_turn

NAMES = ("r_3_15", "r_8_15", "s", "x_3_50", "x_8_50", "x_64_15", "x_64_50")
PROBES = {"EVAL_MODES": True, "EVAL_SOURCES": True, "EVAL_SAMPLES": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def run(store):
    folder = store.parent / "run"
    macros = {"EVAL_EVERY_STEPS": 2, "EVAL_BATCHES": 2, "TOTAL_STEPS": 4, **PROBES}
    arguments = flags(store, MODEL_DIR=folder, **macros)
    assert cli.main(["train", *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluations(run):
    return [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]


def opened(arguments):
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return launch.opened_to_look_at(files, [tuple(p.split("=", 1)) for p in pairs])


@pytest.mark.parametrize("convention", ["paper", "released"])
def test_every_mode_is_asked_about_the_same_text_and_spans(store, convention):
    with opened(flags(store, MODE_CONVENTION=convention)) as data:
        vocab = data.vocab
        found = {}
        for mode in ("R", "S", "X", None):
            told = data.in_mode(mode)
            examples = list(told.examples("held_out", 1))
            assert {example.mode for example in examples} == {mode}
            found[mode] = [
                (
                    merge(denoiser, example.inputs, example.targets, vocab).tolist(),
                    example.targets.tolist(),
                    example.inputs[len(vocab.mode(mode)) :].tolist(),
                )
                for example in examples
                for denoiser in told.mixture.denoisers
                if denoiser.name == example.denoiser
            ]
    assert found["R"] == found["S"] == found["X"] == found[None]


def test_a_denoiser_under_its_own_mode_scores_as_it_does(evaluations):
    for scores in evaluations:
        assert list(scores["modes"]) == ["R", "S", "X", "none"]
        for name in NAMES:
            own = scores["modes"][name[0].upper()]["denoisers"][name]
            assert own["tokens"] == scores["denoisers"][name]["tokens"]
            assert own["loss"] == pytest.approx(scores["denoisers"][name]["loss"])


def test_sources_add_up_to_everything(evaluations):
    for scores in evaluations:
        sources = scores["sources"].values()
        assert list(scores["sources"]) == ["corpus"]
        assert sum(one["tokens"] for one in sources) == scores["tokens"]
        total = sum(one["tokens"] * one["loss"] for one in sources)
        assert total / scores["tokens"] == pytest.approx(scores["loss"])


def test_examples_of_a_source_are_told_apart(store, monkeypatch):
    with opened(flags(store)) as data:
        told = []

        def kinds(sources):
            told.extend(sources)
            return {name: name for name in sources}

        monkeypatch.setattr("ul2.data.corpus.source_kinds", kinds)
        monkeypatch.setattr(
            type(data.store.split("held_out")),
            "document_of",
            lambda self, position: type("Place", (), {"source": str(position % 3)}),
        )
        names, make = data.held_out_by_source(2)
        plain = data.held_out_batches(2)
        for ours, theirs in zip(make(), plain(), strict=True):
            kept = theirs.denoiser_ids >= 0
            assert ((ours.denoiser_ids >= 0) == kept).all()
            np.testing.assert_array_equal(ours.targets, theirs.targets)
            # One example is of one source.
            for row, segments in enumerate(theirs.decoder.segment_ids):
                for segment in range(1, segments.max() + 1):
                    of = ours.denoiser_ids[row, segments == segment]
                    assert len(set(of.tolist())) == 1
        assert set(names) == set(told) == {"0", "1", "2"}


def test_samples_are_the_same_examples_each_time(evaluations, store):
    with opened(flags(store)) as data:
        examples = take_in_turn(data.examples("held_out", 0), 3)
    for scores in evaluations:
        samples = scores["samples"]
        assert [one["index"] for one in samples] == [e.number for e in examples]
        assert [one["denoiser"] for one in samples] == list(NAMES[:3])
        assert samples[0]["output"].startswith("<extra_id_0>")
        assert all(one["targets"].endswith("<eos>") for one in samples)


def test_too_many_samples_are_refused(store, capsys):
    arguments = flags(store, EVAL_SAMPLES=17, MODEL_DIR="/nowhere")
    assert cli.main(["check", *arguments]) == 2
    assert "eval_samples=17 must lie in [0, 16]; set EVAL_SAMPLES" in (
        capsys.readouterr().out
    )


def test_report_of_a_run_has_all_of_it(run, tmp_path):
    out = tmp_path / "report.html"
    assert cli.main(["report", str(run), f"--out={out}"]) == 0
    page = out.read_text()
    assert fetched_by(page) == []
    anchors = ("loss", "denoisers", "sources", "modes", "optimizer", "speed")
    for anchor in (*anchors, "events", "samples", "config"):
        assert f'<section id="{anchor}">' in page
    assert "done, 4 updates" in page
    for dark in (False, True):
        pixels, said = screenshot(out, tmp_path, dark=dark)
        assert said == []
        assert not is_blank(pixels)
