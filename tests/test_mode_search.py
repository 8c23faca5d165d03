"""MODE=auto: short trials under every mode, and the best goes on as if alone."""

import json
import shutil

import finetuning_toys
import numpy as np
import pytest
from wiring_toys import flags, make_store

from ul2 import cli
from ul2.interop.opening import open_checkpoint
from ul2.training import checkpoints, loop, mode_search, step

NAMES = ["R", "S", "X", "none"]
RECIPE = {
    "TASK": "toy_first",
    "MODE": "auto",
    "MODE_TRIAL_STEPS": 3,
    "TOTAL_STEPS": 6,
    "INPUTS_LENGTH": 32,
    "TARGETS_LENGTH": 8,
    "BATCH_SIZE": 16,
    "LEARNING_RATE": 0.01,
    "LOG_EVERY_STEPS": 1,
    "EVAL_EVERY_STEPS": 3,
    "SAVE_EVERY_STEPS": 3,
    "MESH": "data=8",
}


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set, and a run of two updates to start from."""
    folder = tmp_path_factory.mktemp("modes")
    finetuning_toys.write_data(folder / "data")
    store = make_store(folder)
    macros = {"MODEL_DIR": folder / "pretrained", "TOTAL_STEPS": 2, "BATCH_SIZE": 56}
    assert cli.main(["train", *flags(store, **macros)]) == 0
    return folder


def recipe(folder, model_dir, **macros):
    own = {
        "MODEL_DIR": model_dir,
        "DATA_DIR": folder / "data",
        "EXAMPLES_DIR": folder / "examples",
        "INITIAL_CHECKPOINT": folder / "pretrained",
    }
    pairs = {**own, **RECIPE, **macros}
    return [
        "--gin_file=configs/runs/finetune.gin",
        *(f"--gin.{name}={value}" for name, value in pairs.items()),
    ]


def train(folder, model_dir, **macros):
    assert cli.main(["train", *recipe(folder, model_dir, **macros)]) == 0


def arrays_of(model_dir):
    opened = open_checkpoint(model_dir)
    return {path: tensor.read() for path, tensor in opened.params.items()}


def modes_of(model_dir):
    return json.loads((model_dir / "modes.json").read_text())


@pytest.fixture(scope="module")
def searched(folder):
    """A finished run that chose its mode, and how often its step was traced."""
    traced = []
    accumulate = step.accumulate

    def watch(*arguments):
        traced.append(1)
        return accumulate(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "accumulate", watch)
        train(folder, folder / "auto")
    return folder / "auto", len(traced)


def test_all_trials_and_the_run_are_compiled_once(searched):
    assert searched[1] == 1


def test_trials_are_reported_and_the_best_goes_on(searched):
    model_dir, _ = searched
    report = modes_of(model_dir)
    assert list(report["trials"]) == NAMES
    losses = {name: scores["loss"] for name, scores in report["trials"].items()}
    assert len(set(losses.values())) == 4  # the modes do differ
    assert report["best"] == min(losses, key=losses.get)
    contract = checkpoints.read_contract(model_dir)
    mode = None if report["best"] == "none" else report["best"]
    assert contract.mixture["tasks"][0]["mode"] == mode
    assert contract.step == 6
    assert not (model_dir / "trials").exists()
    lines = (model_dir / "eval.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]
    assert json.loads(lines[0])["loss"] == losses[report["best"]]
    steps = (model_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [1, 2, 3, 4, 5, 6]


def test_run_that_chose_is_bitwise_the_run_under_that_mode(folder, searched, tmp_path):
    best = modes_of(searched[0])["best"]
    train(folder, tmp_path / "plain", MODE=best)
    ours, wanted = arrays_of(searched[0]), arrays_of(tmp_path / "plain")
    assert ours.keys() == wanted.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, wanted[path], path)


def test_trials_read_the_same_examples_and_start_alike(folder, tmp_path, monkeypatch):
    """At a learning rate of zero, what differs is the mode alone."""
    seen = []
    run_train = mode_search.train

    def watch(run, settings, **options):
        seen.append(run.batches._source)
        return run_train(run, settings, **options)

    monkeypatch.setattr(mode_search, "train", watch)
    train(folder, tmp_path / "run", LEARNING_RATE=0.0, TOTAL_STEPS=4)
    ids = {}
    for name, source in zip(NAMES, seen, strict=True):
        picked = source.order.pick(2)
        ids[name] = [
            source.tasks.read(0, row)[0].tolist() for row in picked.rows.tolist()
        ]
    mode_ids = checkpoints.read_contract(tmp_path / "run").vocab.mode
    for name in NAMES[:3]:
        prefix = list(mode_ids(name))
        assert ids[name] == [prefix + inputs for inputs in ids["none"]]


@pytest.mark.parametrize("killed_in", ["S", "run"])
def test_killed_search_goes_on_without_making_trials_again(
    folder, searched, tmp_path, monkeypatch, killed_in
):
    made = []
    run_train = loop.train

    def watch(run, settings, **options):
        name = str(run.model_dir).rpartition("/")[2]
        if name == killed_in and len(made) < 5 and killed_in not in made:
            made.append(name)
            raise StoppedError
        made.append(name)
        return run_train(run, settings, **options)

    monkeypatch.setattr(mode_search, "train", watch)
    monkeypatch.setattr(loop, "train", watch)
    model_dir = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(folder, model_dir)
    train(folder, model_dir)
    assert (
        made
        == {
            "S": ["R", "S", "S", "X", "none", "run"],
            "run": [*NAMES, "run", "run"],
        }[killed_in]
    )
    assert modes_of(model_dir) == modes_of(searched[0])
    ours, wanted = arrays_of(model_dir), arrays_of(searched[0])
    for path, array in ours.items():
        np.testing.assert_array_equal(array, wanted[path], path)


def test_finished_search_is_told_again_and_may_go_on(folder, searched, tmp_path, capfd):
    model_dir = shutil.copytree(searched[0], tmp_path / "copy")
    before = modes_of(model_dir)
    capfd.readouterr()
    arguments = recipe(folder, model_dir, TOTAL_STEPS=7)
    assert cli.main(["train", *arguments, "--json"]) == 0
    captured = capfd.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["step"], report["modes"]) == (7, before)
    assert f"{before['best']} *" in captured.err


def test_rows_with_a_mode_of_their_own_keep_it(folder, tmp_path):
    rows = "(('toy_first', 1), ('toy_last', 1, 'X'))"
    train(folder, tmp_path / "run", TASK=rows, HELD_OUT_SHARE=0.2, TOTAL_STEPS=4)
    tasks = checkpoints.read_contract(tmp_path / "run").mixture["tasks"]
    best = modes_of(tmp_path / "run")["best"]
    assert tasks[0]["mode"] == (None if best == "none" else best)
    assert tasks[1]["mode"] == "X"


def test_trials_by_another_metric_are_refused(folder, tmp_path, monkeypatch, capfd):
    def stop(run, settings, **options):
        raise StoppedError

    model_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(mode_search.ModeSearch, "_promote", lambda self: stop(0, 0))
        with pytest.raises(StoppedError):
            train(folder, model_dir, MODE_TRIAL_STEPS=1)
    report = modes_of(model_dir)
    (model_dir / "modes.json").write_text(json.dumps({**report, "best": None}))
    capfd.readouterr()
    assert cli.main(["train", *recipe(folder, model_dir)]) == 2
    assert "set BEST_METRIC and MODE_TRIAL_STEPS back" in capfd.readouterr().err
    (model_dir / "modes.json").write_text("{")
    assert cli.main(["train", *recipe(folder, model_dir)]) == 2
    assert "modes.json is damaged" in capfd.readouterr().err
