"""The best checkpoint by a metric is kept and named, also over a kill."""

import json

import pytest
from training_toys import ToyBatches, make_settings, run_train

from ul2.training.best import best_step

VALUES = (5.0, 3.0, 4.0, 2.5, 2.75, 6.0)


class StoppedError(Exception):
    """Stands for a kill."""


def settings(**changes):
    return make_settings(
        **{
            "eval_every_steps": 1,
            "save_every_steps": 2,
            "keep_checkpoints": 1,
            "best_metric": "f1",
            **changes,
        }
    )


def scorer(values=VALUES):
    """Returns a scorer whose n-th call measures the n-th value."""
    rest = iter(values)
    return lambda params, check: {"f1": next(rest)}


def saved(model_dir):
    return sorted(int(p.name) for p in (model_dir / "checkpoints").iterdir())


def recorded(model_dir):
    return json.loads((model_dir / "best.json").read_text())


def test_best_checkpoint_is_kept_however_old(tmp_path, one_device):
    summary = run_train(
        tmp_path,
        mesh=one_device,
        settings=settings(),
        score_params=scorer((1.0, 9.0, 4.0, 8.0, 2.0, 3.0)),
    )
    wanted = {"metric": "f1", "step": 2, "value": 9.0}
    assert summary.best == recorded(tmp_path) == wanted
    assert saved(tmp_path) == [2, 6]
    assert best_step(tmp_path) == 2


def test_best_is_saved_at_a_step_at_which_nothing_else_would_be(tmp_path, one_device):
    run_train(
        tmp_path,
        mesh=one_device,
        settings=settings(save_every_steps=0),
        score_params=scorer((1.0, 2.0, 9.0, 1.0, 1.0, 1.0)),
    )
    assert (saved(tmp_path), best_step(tmp_path)) == ([3, 6], 3)


def test_lower_loss_is_better_and_needs_no_scorer(tmp_path, one_device):
    run_train(tmp_path, mesh=one_device, settings=settings(best_metric="loss"))
    lines = (tmp_path / "eval.jsonl").read_text().splitlines()
    losses = {row["step"]: row["loss"] for row in map(json.loads, lines)}
    assert best_step(tmp_path) == min(losses, key=losses.get)
    assert recorded(tmp_path)["value"] == min(losses.values())


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_run_that_goes_on_keeps_the_record(tmp_path, one_device, stop):
    values = (1.0, 5.0, 4.0, 9.0, 2.0, 3.0)

    def stop_here(index):
        if index == stop:
            raise StoppedError

    whole = run_train(
        tmp_path / "whole",
        mesh=one_device,
        settings=settings(),
        score_params=scorer(values),
    )
    parts = tmp_path / "parts"
    with pytest.raises(StoppedError):
        run_train(
            parts,
            mesh=one_device,
            settings=settings(),
            batches=ToyBatches(on_next=stop_here),
            score_params=scorer(values),
        )
    newest = saved(parts)[-1]
    summary = run_train(
        parts,
        mesh=one_device,
        settings=settings(),
        score_params=scorer(values[newest:]),
    )
    assert summary.best == whole.best == {"metric": "f1", "step": 4, "value": 9.0}
    assert saved(parts) == saved(tmp_path / "whole") == [4, 6]


def test_record_forgets_steps_that_a_kill_took_away(tmp_path, one_device):
    """Step 3 was best, but it was never saved: its line is all that is left."""
    run_train(
        tmp_path,
        mesh=one_device,
        settings=settings(total_steps=2),
        score_params=scorer((1.0, 2.0)),
    )
    with (tmp_path / "eval.jsonl").open("a") as file:
        file.write('{"step": 3, "f1": 99.0, "denoisers": {}}\n{"step": 4, "f')
    (tmp_path / "best.json").write_text('{"metric": "f1", "step": 3, "value": 99.0}')
    with pytest.raises(ValueError, match="names step 3, of which there is no check"):
        best_step(tmp_path)
    summary = run_train(
        tmp_path,
        mesh=one_device,
        settings=settings(total_steps=4),
        score_params=scorer((1.5, 3.0)),
    )
    assert summary.best["step"] == best_step(tmp_path) == 4


def test_metric_that_is_not_measured_is_refused_with_those_that_are(
    tmp_path, one_device
):
    with pytest.raises(ValueError, match="BEST_METRIC='bleu' is not measured") as error:
        run_train(tmp_path, mesh=one_device, settings=settings(best_metric="bleu"))
    assert "loss, accuracy, sequence_accuracy" in str(error.value)


def test_run_without_a_record_says_so(tmp_path, one_device):
    with pytest.raises(ValueError, match=r"no best.json\); give a step, or train with"):
        best_step(tmp_path)
    (tmp_path / "best.json").write_text("[]")
    with pytest.raises(ValueError, match=r"best.json is damaged"):
        best_step(tmp_path)
    run_train(tmp_path / "run", mesh=one_device, eval_batches=None, settings=settings())
    assert not (tmp_path / "run" / "best.json").exists()
