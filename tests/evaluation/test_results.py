"""What an evaluation leaves behind, and how it goes on after a kill."""

import json
import math

import pytest
from evaluation_toys import ToyModel, make_task

from ul2.evaluation import run as evaluation
from ul2.evaluation.candidates import Candidate, find_candidates, fingerprint, steps_of
from ul2.evaluation.evaluator import TaskEvaluator
from ul2.evaluation.results import Results, make_key, plain, read_results
from ul2.evaluation.settings import EvaluationSettings
from ul2.sharding.mesh import make_mesh
from ul2.tasks.text_task import TextExample
from ul2.training.writers import flatten

EXAMPLES = [TextExample("is it red", "yes"), TextExample("3 + 4", "7")]


def checkpoint(path, content=b"parameters", folder="checkpoint_7"):
    """Writes what looks like a checkpoint of T5X to those who only list files."""
    (path / folder).mkdir(parents=True)
    (path / folder / "checkpoint").write_bytes(content)
    return path


class Evaluation:
    """An evaluation of toy models, which counts what it does."""

    def __init__(self, out, paths, steps=None):
        self.out, self.paths, self.steps = out, [str(path) for path in paths], steps
        self.opened, self.evaluated, self.said = [], [], []
        self.answers = {"is it red": "yes", "3 + 4": "6"}

    def run(self, tasks, modes, stop_after=math.inf, **settings):
        settings = EvaluationSettings(**settings)
        evaluator = TaskEvaluator(settings, None, lambda *a, **k: EXAMPLES)

        class Counting:
            prepare = staticmethod(evaluator.prepare)

            def __call__(_, model, task, mode):  # noqa: N805
                if len(self.evaluated) >= stop_after:
                    raise KeyboardInterrupt
                self.evaluated.append((task.name, mode))
                return evaluator(model, task, mode)

        def open_model(candidate):
            self.opened.append(candidate.label)
            return ToyModel(self.answers)

        plan = evaluation.Plan(
            candidates=find_candidates(self.paths, self.steps),
            tasks=tasks,
            modes=modes,
            text_modes=(),
            settings=settings,
            text=None,
            mesh=make_mesh("auto"),
        )
        results = Results(self.out)
        found = evaluation.run(plan, open_model, Counting(), results, self.said.append)
        results.write({"rows": []})
        return found


def test_results_hold_settings_checkpoint_scores_and_counts(tmp_path):
    path = checkpoint(tmp_path / "a")
    out = tmp_path / "out"
    (result,) = Evaluation(out, [path]).run([make_task()], ["R"], seed=4)
    assert result["checkpoint"] == "a@7"
    assert (result["step"], result["task"], result["mode"]) == (7, "toy", "R")
    assert (result["method"], result["road"]) == ("generate", "direct")
    assert result["scores"] == {"accuracy": 50}
    assert result["settings"]["seed"] == 4
    assert result["counts"]["examples"] == 2
    written = json.loads((out / "results.json").read_text())
    assert written["results"] == [result]
    assert {"ul2", "jax", "python"} <= set(written["versions"])
    lines = (out / result["predictions"]).read_text().splitlines()
    assert json.loads(lines[1]) == {
        "inputs": "3 + 4",
        "mode": "R",
        "targets": "7",
        "tokens_cut": 0,
        "prediction": "6",
        "correct": False,
        "log_prob": -1.0,
    }
    assert not list(out.rglob("*.partial"))


def test_killed_evaluation_goes_on_where_it_stopped(tmp_path):
    paths = [checkpoint(tmp_path / name, name.encode()) for name in "ab"]
    tasks, modes = [make_task("one"), make_task("two")], ["R", None]
    whole = Evaluation(tmp_path / "whole", paths).run(tasks, modes)
    killed = Evaluation(tmp_path / "out", paths)
    with pytest.raises(KeyboardInterrupt):
        killed.run(tasks, modes, stop_after=5)
    assert len(read_results(tmp_path / "out" / "results.json")) == 5
    again = Evaluation(tmp_path / "out", paths)
    found = again.run(tasks, modes)
    # The first checkpoint is done, and is not even opened.
    assert again.opened == ["b@7"]
    assert again.evaluated == [("one", None), ("two", "R"), ("two", None)]
    assert [without_time(one) for one in found] == [without_time(one) for one in whole]


def without_time(result):
    return {name: value for name, value in result.items() if name != "seconds"}


def test_other_settings_or_another_checkpoint_are_evaluated_again(tmp_path):
    path = checkpoint(tmp_path / "a")
    one = Evaluation(tmp_path / "out", [path])
    one.run([make_task()], ["R"])
    one.run([make_task()], ["R"])
    assert len(one.evaluated) == 1
    one.run([make_task()], ["R"], batch_size=2)
    assert len(one.evaluated) == 1
    one.run([make_task()], ["R"], seed=1)
    assert len(one.evaluated) == 2
    (path / "checkpoint_7" / "checkpoint").write_bytes(b"others")
    one.run([make_task()], ["R"])
    assert len(one.evaluated) == 3
    assert len(read_results(tmp_path / "out" / "results.json")) == 3


def test_mode_that_does_not_fit_the_checkpoint_is_warned_of_once(tmp_path):
    one = Evaluation(None, [checkpoint(tmp_path / "a")])
    one.run([make_task(), make_task("two")], ["X"])
    warnings = [line for line in one.said if line.startswith("warning")]
    assert len(warnings) == 1
    assert (
        "a@7: mode X is given, but the checkpoint was trained with R, S"
        in (warnings[0])
    )
    # Whoever compares modes knows.
    one.said.clear()
    one.run([make_task()], ["X", None])
    one.run([make_task()], ["S"])
    assert not [line for line in one.said if line.startswith("warning")]


def test_lost_predictions_are_made_again(tmp_path):
    one = Evaluation(tmp_path / "out", [checkpoint(tmp_path / "a")])
    (result,) = one.run([make_task()], ["R"])
    (tmp_path / "out" / result["predictions"]).unlink()
    one.run([make_task()], ["R"])
    assert len(one.evaluated) == 2


def test_nothing_is_written_without_a_directory(tmp_path):
    path = checkpoint(tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))
    (result,) = Evaluation(None, [path]).run([make_task()], ["R"])
    assert result["scores"] == {"accuracy": 50}
    assert sorted(tmp_path.rglob("*")) == before


def test_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"no results\.json of ul2 eval"):
        Results(tmp_path)


def test_values_become_json_values():
    class Number:
        def __float__(self):
            return 2.5

    value = {"a": math.nan, "b": (1, Number()), 3: {"c": None}, "d": object}
    assert plain(value) == {
        "a": None,
        "b": [1, 2.5],
        "3": {"c": None},
        "d": str(object),
    }


def test_key_depends_on_everything():
    assert make_key({"a": 1, "b": 2}) == make_key({"b": 2, "a": 1})
    assert make_key({"a": 1}) != make_key({"a": 2})


def test_every_step_of_a_directory_is_a_candidate(tmp_path):
    for step in (20, 3, 100):
        checkpoint(tmp_path / "run", b"%d" % step, f"checkpoint_{step}")
    run = str(tmp_path / "run")
    assert steps_of(tmp_path / "run") == [3, 20, 100]
    assert [one.step for one in find_candidates([run])] == [100]
    assert [one.step for one in find_candidates([run], "all")] == [3, 20, 100]
    labels = [one.label for one in find_candidates([run], [20, 3])]
    assert labels == ["run@20", "run@3"]
    marks = {fingerprint(one) for one in find_candidates([run], "all")}
    assert len(marks) == 3


def test_best_step_is_the_one_that_training_found(tmp_path):
    for step in (2, 4, 6):
        (tmp_path / "run" / "checkpoints" / str(step)).mkdir(parents=True)
    best = {"metric": "loss", "step": 4, "value": 1.0}
    (tmp_path / "run" / "best.json").write_text(json.dumps(best))
    run = str(tmp_path / "run")
    assert [one.label for one in find_candidates([run], "best")] == ["run@4"]
    assert [one.step for one in find_candidates([run])] == [6]
    (tmp_path / "run" / "best.json").unlink()
    with pytest.raises(ValueError, match="best"):
        find_candidates([run], "best")


def test_checkpoints_of_equal_names_are_told_apart(tmp_path):
    paths = [str(checkpoint(tmp_path / name / "run")) for name in "ab"]
    labels = [one.label for one in find_candidates(paths)]
    assert labels == ["a/run@7", "b/run@7"]


def test_copy_has_the_same_fingerprint_and_other_bytes_another(tmp_path):
    first, copy = (checkpoint(tmp_path / name) for name in "ab")
    marks = [fingerprint(Candidate(path, 7, "x", False)) for path in (first, copy)]
    assert marks[0] == marks[1]
    (copy / "checkpoint_7" / "checkpoint").write_bytes(b"parameterz")
    assert fingerprint(Candidate(copy, 7, "x", False)) != marks[0]


def test_what_is_not_there_is_refused(tmp_path):
    run = str(checkpoint(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"--step=8: .* holds the steps \[7\]"):
        find_candidates([run], [8])
    with pytest.raises(ValueError, match="--checkpoint=nowhere does not exist"):
        find_candidates(["nowhere"])
    with pytest.raises(ValueError, match="run@7 is given twice"):
        find_candidates([run, run])
    (tmp_path / "hf").mkdir()
    with pytest.raises(ValueError, match="--step=all"):
        find_candidates([str(tmp_path / "hf")], "all")
    (one,) = find_candidates([str(tmp_path / "hf")])
    assert (one.step, one.label) == (None, "hf")


def test_scores_have_one_curve_per_task_and_mode():
    scores = {"boolq": {"R": {"accuracy": 50.0}}, "step": 3}
    assert dict(flatten(scores))["boolq/R/accuracy"] == 50
