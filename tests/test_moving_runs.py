"""A mixture that moves, from a gin file to the batches of a run."""

import contextlib
import io
import json

import pytest
from rich.console import Console
from wiring_toys import flags, make_store

from ul2 import cli, inspection, launch
from ul2.evaluation.held_out import mixture_from_json


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("moving"))


def own_objective(folder, text):
    """Writes an objective of two denoisers that moves as `text` says."""
    (folder / "own.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from ul2 import recipe\n"
        "from ul2.denoising import mixture\n"
        "from ul2.denoising import moving\n"
        "from ul2.denoising import ramps\n"
        "recipe.Recipe.mixture = @moving.moving()\n"
        "moving.moving.mixture = @mixture.named()\n"
        f"mixture.named.name = 'sclm'\n{text}"
    )
    return f"--gin_file={folder / 'own.gin'}"


STAGES = """
moving.moving.rates = {'causal_lm': @less/ramps.stages()}
less/ramps.stages.values = [1, 0]
less/ramps.stages.starts = [0, 4]
moving.moving.noise_densities = {'span_corruption': @less/ramps.linear()}
less/ramps.linear.start = 0.5
less/ramps.linear.end = 0.25
less/ramps.linear.steps = 8
"""


def moving_flags(store, folder, text=STAGES, **macros):
    arguments = flags(store, objective="sclm", **macros)
    # Behind the objective, in front of the run.
    return [*arguments[:1], own_objective(folder, text), *arguments[2:]]


def report_of(command, arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = cli.main([command, *arguments, "--json"])
    return status, json.loads(out.getvalue().splitlines()[-1])


def test_check_measures_the_beginning_the_middle_and_the_end(store, tmp_path):
    arguments = moving_flags(store, tmp_path, MODEL_DIR="unused")
    arguments = [a.replace("[0, 4]", "[0, 300]") for a in arguments]
    text = STAGES.replace("[0, 4]", "[0, 300]").replace("steps = 8", "steps = 400")
    own_objective(tmp_path, text)
    status, report = report_of("check", arguments)
    assert status == 0
    rows = {(row["step"], row["name"]): row for row in report["denoisers"]}
    assert {step for step, _ in rows} == {0, 200, 400}
    for row in rows.values():
        assert row["measured_share"] == pytest.approx(row["rate"], abs=2 / 2048)
    shares = [rows[step, "causal_lm"]["measured_share"] for step in (0, 200, 400)]
    assert shares == pytest.approx([0.5, 100 / 128 / 2, 0], abs=2 / 2048)
    # 2,048 examples are 128 batches of 16: the middle of a stretch is 64 steps on.
    spans = [rows[step, "span_corruption"] for step in (0, 200, 400)]
    declared = [row["noise_density"] for row in spans]
    assert declared == pytest.approx(
        [0.5 - 0.25 * (s + 64) / 400 for s in (0, 200)] + [0.25]
    )
    for row in spans:
        assert row["measured_noise_density"] == pytest.approx(
            row["noise_density"], abs=0.5 / row["text_length"] + 0.01
        )
    console = Console(file=io.StringIO(), width=200)
    inspection.print_check(report, console)
    for step in (0, 200, 400):
        assert f"measured (declared), from step {step} on" in console.file.getvalue()


def test_inspect_shows_the_shares_and_densities_of_its_step(store, tmp_path):
    arguments = moving_flags(store, tmp_path)
    for step, share, density in ((0, 0.5, 0.5), (2, 0.5, 0.4375), (4, 0, 0.375)):
        _, report = report_of("inspect", [*arguments, f"--step={step}"])
        causal, spans = report["denoisers"]
        assert (causal["name"], causal["share"]) == ("causal_lm", share)
        assert spans["share"] == 1 - share
        assert spans["noise_density"] == density
        made = [one["denoiser"] for one in report["examples"]]
        assert made.count("causal_lm") == 16 * share
    _, held_out = report_of("inspect", [*arguments, "--step=4", "--split=held_out"])
    assert [row["noise_density"] for row in held_out["denoisers"]] == [1.0, 0.25]
    assert held_out["denoisers"][0]["share"] == 0.25


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows}


@pytest.mark.slow
def test_run_that_stopped_goes_on_with_the_step_it_stopped_at(store, tmp_path):
    def train(run, total_steps):
        arguments = moving_flags(
            store, tmp_path, MODEL_DIR=tmp_path / run, TOTAL_STEPS=total_steps
        )
        assert cli.main(["train", *arguments]) == 0

    train("whole", 6)
    train("parts", 3)
    train("parts", 6)
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "parts") == whole
    assert list(whole) == [1, 2, 3, 4, 5, 6]
    evaluated = (tmp_path / "whole" / "eval.jsonl").read_text().splitlines()[-1]
    # What training has left is still scored.
    assert json.loads(evaluated)["denoisers"]["causal_lm"]["tokens"] > 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (STAGES.replace("[1, 0]", "[1, -1]"), "moving.rates['causal_lm'] falls to -1"),
        (STAGES.replace("[0, 4]", "[0, 0]"), "ramps.stages: steps [0, 0] must be"),
        (STAGES.replace("0.25", "0.0"), "noise_densities['span_corruption'] comes to"),
        (STAGES.replace("{'causal", "{'casual"), "moving.rates names 'casual_lm'"),
        (STAGES.replace("end = 0.25", "end = 'x'"), "ramps.linear.end = 'x' is no"),
    ],
)
def test_bad_movement_is_one_line_with_its_knob(store, tmp_path, text, problem):
    arguments = moving_flags(store, tmp_path, text, MODEL_DIR="unused")
    _, report = report_of("check", arguments)
    (error,) = report["errors"]
    assert problem in error and "\n" not in error


def test_evaluation_masks_as_the_run_did(store, tmp_path):
    arguments = moving_flags(store, tmp_path, MODEL_DIR="unused")
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    recipe = launch.read(files, [tuple(pair.split("=", 1)) for pair in pairs])
    data = recipe.open_data(launch.make_mesh(recipe))
    kept = json.loads(json.dumps(data.to_json()))
    assert mixture_from_json(kept) == data.stream("held_out").mixture


def test_a_vocabulary_gets_the_sentinels_of_the_densest_step(tmp_path):
    text = STAGES.replace("end = 0.25", "end = 0.15")
    moves = own_objective(tmp_path, text).removeprefix("--gin_file=")
    still = "configs/objectives/sclm.gin"
    needed = [launch.sentinels_needed([file], []) for file in (moves, still)]
    assert needed[0] > 2 * needed[1]
