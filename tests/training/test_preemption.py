"""Signals to a loop in this process: at any moment, once or twice."""

import json
import os
import signal

import pytest
from training_toys import ToyBatches, make_batch, make_settings, run_train

from ul2.training import preemption as module
from ul2.training import saving
from ul2.training.checkpoints import read_contract
from ul2.training.run_checkpoints import Checkpoints


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def signal_at(index, *numbers):
    def on_next(now):
        if now == index:
            send(*numbers)

    return ToyBatches(on_next=on_next)


def read_lines(model_dir, name):
    return [json.loads(line) for line in (model_dir / name).read_text().splitlines()]


@pytest.fixture(autouse=True)
def survives_what_nobody_listens_for():
    """A signal that the loop does not hear fails its test, and not all of them."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM),
    ],
)
def test_second_signal_does_no_harm(tmp_path, one_device, numbers):
    batches = signal_at(1, *numbers)
    summary = run_train(tmp_path, mesh=one_device, batches=batches)
    assert summary.preempted and read_contract(tmp_path).step == summary.step == 2


def test_second_ctrl_c_interrupts_and_the_run_goes_on_from_its_last_save(
    tmp_path, one_device
):
    with pytest.raises(KeyboardInterrupt):
        run_train(
            tmp_path,
            mesh=one_device,
            batches=signal_at(4, signal.SIGINT, signal.SIGINT),
        )
    assert read_contract(tmp_path).step == 3
    assert run_train(tmp_path, mesh=one_device).step == 6


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGINT,) * 3])
def test_signals_during_the_final_save_change_nothing(
    tmp_path, one_device, monkeypatch, numbers
):
    save = Checkpoints.save

    def save_disturbed(self, *args, **kwargs):
        send(*numbers)
        save(self, *args, **kwargs)
        send(*numbers)

    monkeypatch.setattr(Checkpoints, "save", save_disturbed)
    wait = Checkpoints.wait
    monkeypatch.setattr(Checkpoints, "wait", lambda self: (send(*numbers), wait(self)))
    batches = signal_at(1, signal.SIGTERM)
    summary = run_train(tmp_path, mesh=one_device, batches=batches)
    assert summary.preempted and read_contract(tmp_path).step == 2


def test_save_that_is_running_is_not_made_twice(tmp_path, one_device, monkeypatch):
    saved = []
    begin = saving.Attempt.__init__

    def begin_counted(self, folder, *args, **kwargs):
        saved.append(int(folder.name))
        send(signal.SIGTERM)
        begin(self, folder, *args, **kwargs)

    monkeypatch.setattr(saving.Attempt, "__init__", begin_counted)
    summary = run_train(tmp_path, mesh=one_device)
    assert summary.preempted and summary.step == 3
    assert saved == [3]


@pytest.mark.parametrize("stop", [3, 6])
def test_evaluation_is_cut_short_and_made_when_the_run_goes_on(
    tmp_path, one_device, stop
):
    """Also the last one: a run without it is not done."""
    scored = []

    def score(params, check):
        scored.append(len(scored))
        if scored[-1] + 1 == stop // 3:
            send(signal.SIGTERM)
        check()
        return {"f1": 1.0}

    def evaluated(model_dir, **changes):
        settings = make_settings(best_metric="loss")
        return run_train(model_dir, mesh=one_device, settings=settings, **changes)

    whole = evaluated(
        tmp_path / "whole", score_params=lambda params, check: {"f1": 1.0}
    )
    stopped = evaluated(tmp_path / "run", score_params=score)
    assert stopped.preempted and stopped.step == stop
    assert read_contract(tmp_path / "run").step == stop
    done = evaluated(tmp_path / "run", score_params=lambda params, check: {"f1": 1.0})
    assert not done.preempted and done.best == whole.best
    for name in ("eval.jsonl", "metrics.jsonl"):
        assert read_lines(tmp_path / "run", name) == read_lines(
            tmp_path / "whole", name
        )
    again = evaluated(tmp_path / "run")
    assert again.step == 6 and again.evaluation == {}


def test_evaluation_stops_between_two_batches(tmp_path, one_device):
    made = []

    def eval_batches():
        for seed in range(5):
            made.append(seed)
            if seed == 1:
                send(signal.SIGTERM)
            yield make_batch(seed=seed)

    summary = run_train(tmp_path, mesh=one_device, eval_batches=eval_batches)
    assert summary.preempted and summary.step == 3
    assert made == [0, 1]
    assert not (tmp_path / "eval.jsonl").read_text()


def test_nothing_listens_before_there_is_something_to_save(tmp_path, one_device):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    batches = signal_at(0, signal.SIGTERM)
    assert run_train(tmp_path, mesh=one_device, batches=batches).step == 6
    assert heard == [signal.SIGTERM]


def test_notice_of_jax_stops_the_run(tmp_path, one_device, monkeypatch):
    asked = []

    def reached(step):
        asked.append(step)
        return step == 4

    monkeypatch.setattr(module.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        module.multihost_utils, "reached_preemption_sync_point", reached
    )
    settings = make_settings(eval_every_steps=0)
    summary = run_train(tmp_path, mesh=one_device, settings=settings)
    assert summary.preempted and summary.step == 4
    assert sorted(set(asked)) == [1, 2, 3, 4]  # orbax asks, too
