"""`ul2 eval` as a person types it."""

import json
import shutil

import pytest
from wiring_toys import flags, make_store

from ul2 import cli
from ul2.cli import eval as evaluation

MODULE = """
import json
from ul2.tasks import registry
from ul2.tasks.text_task import Files, TextExample, TextTask


def read(path):
    return map(json.loads, path.read_text().splitlines())


def to_examples(row):
    choices = tuple(row.get("choices", ()))
    yield TextExample(row["inputs"], row["targets"], choices)


def accuracy(targets, predictions):
    right = sum(t == p for t, p in zip(targets, predictions))
    return {"accuracy": 100 * right / len(targets)}


def task(name, pattern):
    return TextTask(
        name=name,
        source=Files(
            "eval_toys", {"train": pattern, "validation": pattern}, read, "https://x.org"
        ),
        to_examples=to_examples,
        metrics=(accuracy,),
        validation_metric="accuracy",
        inputs_length=16,
        targets_length=4,
    )


registry.register(task("toy_choice", "choice.jsonl"))
registry.register(task("toy_free", "free.jsonl"))
registry.register(task("toy_missing", "missing.jsonl"))
"""
CHOICES = [
    {"inputs": "the model reads", "targets": "rain", "choices": ["rain", "bread"]},
    {"inputs": "people talk of " * 9, "targets": "bread", "choices": ["rain", "bread"]},
]
FREE = [{"inputs": "every word", "targets": "of this"}]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A run with checkpoints of its first and second update."""
    model_dir = tmp_path_factory.mktemp("run") / "one"
    macros = {"MODEL_DIR": model_dir, "TOTAL_STEPS": 2, "SAVE_EVERY_STEPS": 1}
    assert cli.main(["train", *flags(store, **macros)]) == 0
    return model_dir


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """The flags that make the toy tasks known, and their data found."""
    (tmp_path / "eval_toy_tasks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = tmp_path / "data" / "eval_toys"
    data.mkdir(parents=True)
    for name, rows in (("choice", CHOICES), ("free", FREE)):
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return ["--import_module=eval_toy_tasks", f"--data_dir={tmp_path / 'data'}"]


@pytest.fixture
def evaluate(capfd):
    """Runs the command, and returns its report."""

    def run_command(*arguments):
        capfd.readouterr()
        assert cli.main(["eval", *map(str, arguments), "--json"]) == 0
        return json.loads(capfd.readouterr().out.splitlines()[-1])

    return run_command


@pytest.fixture
def refuse(capfd):
    """Runs the command, which must be refused, and returns the one line."""

    def run_command(*arguments):
        capfd.readouterr()
        assert cli.main(["eval", *map(str, arguments)]) == 2
        (line,) = capfd.readouterr().err.strip().splitlines()
        return line

    return run_command


def test_steps_tasks_and_modes_make_one_table(run, toys, evaluate, tmp_path, capfd):
    out = tmp_path / "out"
    arguments = [
        *("--checkpoint", run, "--step", "all", "--mode", "all", "--out", out, *toys),
        *("--task", "toy_choice", "--task", "toy_free", "--reference", "one@1"),
    ]
    report = evaluate(*arguments)
    assert len(report["results"]) == 2 * 2 * 4
    methods = {(one["task"], one["method"], one["road"]) for one in report["results"]}
    assert methods == {
        ("toy_choice", "rank", "direct"),
        ("toy_free", "generate", "direct"),
    }
    rows = [(row["checkpoint"], row["mode"]) for row in report["rows"]]
    assert rows == [
        (f"one@{step}", mode) for step in (1, 2) for mode in ("R", "S", "X", "none")
    ]
    cut = [one["counts"]["truncated_inputs"] for one in report["results"]]
    assert cut == [1, 1, 1, 1, 0, 0, 0, 0] * 2
    written = json.loads((out / "results.json").read_text())
    assert written["results"] == report["results"]
    assert written["rows"] == report["rows"]
    # Nothing is left to do, so nothing is loaded; the table is the same.
    shutil.rmtree(tmp_path / "data")
    assert evaluate(*arguments) == report
    assert cli.main(["eval", *map(str, arguments)]) == 0
    table = capfd.readouterr().out
    for word in ("toy_choice", "one@2", "none", "accuracy", "gain"):
        assert word in table


def test_curves_of_the_run_get_the_scores(run, toys, evaluate):
    before = set((run / "tensorboard").iterdir())
    evaluate("--checkpoint", run, "--task", "toy_choice", "--mode", "S", *toys)
    (events,) = set((run / "tensorboard").iterdir()) - before
    assert events.name.endswith(".tasks")
    assert b"tasks/toy_choice/S/accuracy" in events.read_bytes()


def test_text_is_scored_per_denoiser_and_mode(run, store, evaluate):
    report = evaluate("--checkpoint", run, "--data", store, "--mode", "all")
    by_mode = {one["mode"]: one["scores"] for one in report["results"]}
    assert list(by_mode) == ["own", "R", "S", "X", "none"]
    trained = (run / "eval.jsonl").read_text().splitlines()[-1]
    assert by_mode["own"]["denoisers"] == json.loads(trained)["denoisers"]
    # The R-denoisers' own mode is R.
    own, in_r = by_mode["own"]["denoisers"], by_mode["R"]["denoisers"]
    assert own["r_3_15"]["loss"] != in_r["s"]["loss"]
    assert len({scores["loss"] for scores in by_mode.values()}) == 5


def test_text_may_be_masked_by_another_objective(run, store, evaluate):
    objective = "--gin_file=configs/objectives/span_corruption.gin"
    report = evaluate(
        *("--checkpoint", run, "--data", store, objective, "--text_batches", "1"),
        *("--gin.CAP_SPANS=True", "--text_inputs_length", "24"),
    )
    (result,) = report["results"]
    assert list(result["scores"]["denoisers"]) == ["span_corruption"]
    assert result["settings"]["inputs_length"] == 24


def test_self_consistency_teacher_forcing_and_shots_run(run, toys, evaluate):
    base = ["--checkpoint", run, "--mode", "R", *toys]
    (voted,) = evaluate(
        *(*base, "--task", "toy_free", "--num_samples", "3", "--calculator")
    )["results"]
    assert voted["settings"]["num_samples"] == 3
    (forced,) = evaluate(
        *(*base, "--task", "toy_choice", "--method", "teacher_forced")
    )["results"]
    assert set(forced["scores"]) == {"loss", "token_accuracy", "sequence_accuracy"}
    (shots,) = evaluate(*base, "--task", "toy_choice", "--shots", "1")["results"]
    assert shots["counts"]["examples"] == 2


@pytest.mark.slow
def test_samples_depend_on_the_seed_and_not_on_the_batches(
    run, toys, evaluate, tmp_path
):
    def answers(name, *flags):
        out = tmp_path / name
        report = evaluate(
            *("--checkpoint", run, "--mode", "S", "--task", "toy_choice", "--out", out),
            *("--num_samples", "2", "--temperature", "1", *toys, *flags),
        )
        (result,) = report["results"]
        lines = (out / result["predictions"]).read_text().splitlines()
        return [json.loads(line)["answers"] for line in lines]

    together = answers("a", "--batch_size", "8")
    assert answers("b", "--batch_size", "2") == together
    assert answers("c", "--seed", "1") != together


def test_mixture_stands_for_its_tasks_each_once():
    tasks, mixtures = evaluation._find_tasks(["super_glue", "super_glue_rte", "xsum"])
    names = [task.name for task in tasks]
    assert len(names) == len(set(names)) == 9
    assert mixtures == {"super_glue": names[:8]}


def test_modes_are_those_of_tasks_and_of_text():
    assert evaluation._find_modes(None) == ([None], ["own"])
    four = ["R", "S", "X", None]
    assert evaluation._find_modes("all") == (four, ["own", *four])
    assert evaluation._find_modes("X,none,X") == (["X", None], ["X", None])
    assert evaluation._find_modes("own,S") == (["S"], ["own", "S"])


def test_mode_that_does_not_fit_is_warned_of(run, toys, capfd):
    arguments = ["--checkpoint", run, "--task", "toy_choice", *toys]
    assert cli.main(["eval", *map(str, arguments)]) == 0
    assert "trained with modes R, S, X, but none is given" in capfd.readouterr().err


def test_what_makes_no_sense_is_refused_in_one_line(run, toys, store, refuse, tmp_path):
    base = ["--checkpoint", run, *toys]
    choice = [*base, "--task", "toy_choice"]
    assert "nothing to evaluate on" in refuse(*base)
    assert "--mode=Q is not one of R, S, X, none" in refuse(*choice, "--mode", "Q")
    assert "--split=test: task 'toy_choice' has train, validation" in refuse(
        *choice, "--split", "test"
    )
    assert "has no choices to rank" in refuse(
        *base, "--task", "toy_free", "--method", "rank"
    )
    missing = refuse(*base, "--task", "toy_missing")
    assert "https://x.org" in missing
    assert "toy_choice" in refuse(*base, "--task", "toy_choic")
    assert "--step=7" in refuse(*choice, "--step", "7")
    assert "--step=last" in refuse(*choice, "--step", "last")
    assert "--reference=x" in refuse(*choice, "--reference", "x")
    assert "--method=guess" in refuse(*choice, "--method", "guess")
    assert "no such" in refuse(*choice, "--import_module", "no_such").replace("_", " ")
    assert "holds no objective" in refuse(
        *("--checkpoint", run, "--data", store, "--gin_file=configs/runs/adafactor.gin")
    )
    assert "nothing.json" not in refuse("--checkpoint", tmp_path / "nothing", *toys)
