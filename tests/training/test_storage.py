"""A disk that is full, slow or not ours any more: what is good stays, and is said."""

import errno
import json
import os
import threading

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from training_toys import make_settings, read_state

from ul2.cli.command import explain
from ul2.run_files import EVENTS
from ul2.sharding.processes import EXIT_STORAGE
from ul2.training import run_checkpoints, saving
from ul2.training.events import Events
from ul2.training.failures import StorageError
from ul2.training.saving import Attempt, one_line
from ul2.training.writers import JsonLines, TensorBoard

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/run/x")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(run_checkpoints, "FIRST_PAUSE", 0.0)


@pytest.fixture
def refuse(monkeypatch):
    """Lets some of the commits fail, by their number from 0."""

    def refuse(which, place="_commit"):
        commit, numbers = getattr(Attempt, place), iter(range(1000))

        def failing(self, *arguments):
            if which(next(numbers)):
                raise FULL
            return commit(self, *arguments)

        monkeypatch.setattr(Attempt, place, failing)

    return refuse


def names_in(model_dir):
    return sorted(path.name for path in (model_dir / "checkpoints").iterdir())


def said(caplog, words):
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]


@pytest.mark.parametrize(
    ("place", "on_cpus"),
    [
        ("_make_folders", True),
        ("_begin", True),
        ("_begin", False),  # as an accelerator's state is saved
        ("_commit", True),
    ],
)
def test_save_that_fails_is_made_again_while_training_goes_on(
    tmp_path, train_toy, programs, refuse, caplog, monkeypatch, place, on_cpus
):
    monkeypatch.setattr(run_checkpoints, "is_on_cpus", lambda trees: on_cpus)
    train_toy(tmp_path / "whole")
    refuse(lambda number: number in (0, 1), place)
    before = threading.active_count()
    assert train_toy(tmp_path / "run").step == 6
    assert threading.active_count() == before
    first, second = said(caplog, "could not be saved")
    assert first.startswith("checkpoint 3 could not be saved in")
    assert "No space left on device: /data/run/x; there is none yet" in first
    assert "SAVE_RETRY_SECONDS=1200" in first and "\n" not in first
    assert "checkpoint 3" not in second
    assert len(said(caplog, "all is well again")) == 1
    jax.tree.map(
        np.testing.assert_array_equal,
        *(read_state(tmp_path / name, programs) for name in ("whole", "run")),
    )
    # What the failures began to write is gone.
    assert all(name.isdecimal() for name in names_in(tmp_path / "run"))


def test_last_checkpoint_is_saved_again_until_it_is_there(tmp_path, train_toy, refuse):
    refuse(lambda number: 1 <= number < 4)
    assert train_toy(tmp_path).step == 6
    assert names_in(tmp_path) == ["3", "6"]


def test_run_ends_when_nothing_can_be_saved_and_keeps_what_it_had(
    tmp_path, train_toy, refuse
):
    settings = make_settings(
        save_every_steps=2, keep_checkpoints=1, save_retry_seconds=0
    )
    refuse(lambda number: number >= 1)
    with pytest.raises(StorageError) as error:
        train_toy(tmp_path, settings)
    text = str(error.value)
    assert "No space left on device" in text and "SAVE_RETRY_SECONDS=0" in text
    assert "the last good one is 2" in text and "\n" not in text
    assert names_in(tmp_path) == ["2"]
    assert explain(error.value) == (f"error: {text}", EXIT_STORAGE)


def test_tries_come_further_and_further_apart_until_the_limit(
    tmp_path, train_toy, refuse, monkeypatch, caplog
):
    """1, 2, 4, 8, 16, 32 and 60 seconds: 123 of them are within 130."""
    now = [0.0]
    monkeypatch.setattr(run_checkpoints, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(
        run_checkpoints.time,
        "sleep",
        lambda seconds: now.__setitem__(0, now[0] + seconds),
    )
    checkpoints = run_checkpoints.Checkpoints
    monkeypatch.setattr(
        "ul2.training.loop.Checkpoints",
        lambda *arguments, **names: checkpoints(
            *arguments, **names, clock=lambda: now[0]
        ),
    )
    refuse(lambda number: True)
    with pytest.raises(StorageError):
        train_toy(tmp_path, make_settings(save_every_steps=0, save_retry_seconds=130.0))
    lines = said(caplog, "again in")
    pauses = [line.split(" s, until")[0].split()[-1] for line in lines]
    assert pauses == ["1", "2", "4", "8", "16", "32", "60"]


def test_best_checkpoint_is_the_best_only_once_it_is_there(tmp_path, train_toy, refuse):
    refuse(lambda number: number == 1)
    values = iter((5.0, 9.0, 4.0, 6.0, 1.0, 1.0))
    summary = train_toy(
        tmp_path,
        make_settings(eval_every_steps=1, save_every_steps=0, best_metric="score"),
        score_params=lambda params, check: {"score": next(values)},
    )
    assert summary.best["step"] in (1, 4)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == summary.best and str(best["step"]) in names_in(tmp_path)


def test_old_checkpoint_that_cannot_be_removed_stops_nothing(
    tmp_path, train_toy, monkeypatch, caplog
):
    def remove(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    settings = make_settings(save_every_steps=1, keep_checkpoints=1)
    with monkeypatch.context() as patched:
        patched.setattr(saving, "remove", remove)
        train_toy(tmp_path, settings)
    assert len(said(caplog, "cannot remove")) == 5
    assert names_in(tmp_path) == ["1", "2", "3", "4", "5", "6"]


def test_slow_storage_is_named(tmp_path, train_toy, monkeypatch, caplog):
    ticks = iter(range(0, 10_000, 15))
    checkpoints = run_checkpoints.Checkpoints
    monkeypatch.setattr(
        "ul2.training.loop.Checkpoints",
        lambda *arguments, **names: checkpoints(
            *arguments, **names, clock=lambda: float(next(ticks))
        ),
    )
    # The save before is still on its way when the next one is due.
    monkeypatch.setattr(Attempt, "is_running", lambda self: True)
    train_toy(tmp_path, make_settings(save_every_steps=2))
    assert "step 4 waited 15 seconds for checkpoint 2" in said(caplog, "waited")[0]
    assert "SAVE_EVERY_STEPS" in said(caplog, "waited")[0]


class FullDisk:
    """Takes `room` bytes, then no more until there is room again."""

    def __init__(self, monkeypatch, room):
        self.room, self.write = room, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, file, content):
        if self.room <= 0:
            raise FULL
        taken = self.write(file, content[: self.room])
        self.room -= taken
        return taken


def test_metrics_wait_for_room_and_no_half_line_stays(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path, 0)
    writer.write({"step": 1})
    disk = FullDisk(monkeypatch, room=5)
    for step in (2, 3):
        writer.write({"step": step})
        assert path.read_text() == '{"step": 1}\n'
    disk.room = 1000
    writer.write({"step": 4})
    writer.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert len(said(caplog, "No space left")) == len(said(caplog, "again;")) == 1


def test_metrics_that_are_lost_are_counted(tmp_path, monkeypatch, caplog):
    writer = JsonLines(tmp_path / "metrics.jsonl", 0)
    FullDisk(monkeypatch, room=0)
    writer.write({"step": 1})
    writer.write({"step": 2})
    writer.close()
    assert "lacks its last 2 records" in caplog.records[-1].getMessage()


def test_events_outlive_half_a_line_a_damaged_one_and_a_full_disk(
    tmp_path, monkeypatch
):
    path = tmp_path / EVENTS
    skip, stop = ({"event": name, "step": 3, "batch": 2} for name in ("skip", "stop"))
    path.write_text(f'{json.dumps(skip)}\n{{"step": \n{json.dumps(stop)[:9]}')
    events = Events(tmp_path)
    disk = FullDisk(monkeypatch, room=0)
    for event in (skip, stop):
        events.add(event)
    disk.room = 1000
    events.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [skip, stop]


def test_tensorboard_reads_on_behind_a_full_disk(tmp_path, monkeypatch):
    writer = TensorBoard(tmp_path, "train", 0)
    disk = FullDisk(monkeypatch, room=30)
    writer.write({"step": 1, "loss": 2.0})
    disk.room = 1000
    writer.write({"step": 2, "loss": 1.0})
    writer.close()
    [path] = tmp_path.iterdir()
    events = EventFileLoader(str(path)).Load()
    assert [e.step for e in events if e.summary.value] == [1, 2]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FULL, "No space left on device: /data/run/x"),
        (
            ValueError(
                'RESOURCE_EXHAUSTED: Error writing "a" in OCDBT database at local file '
                '"/r/": Error writing local file "/r/d/b": Failed to fsync: Disk quota '
                "exceeded [tensorstore_spec='{}'] [source locations='a.cc:1\nb.cc:2']"
            ),
            "Disk quota exceeded: /r/d/b",
        ),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("x" * 1000), "x" * 297 + "..."),
    ],
)
def test_error_is_one_line(error, line):
    assert one_line(error) == line
