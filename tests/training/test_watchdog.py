import subprocess
import sys
import time

import pytest
from training_toys import ToyBatches, make_settings, run_train

from ul2.training import watchdog as module
from ul2.training.run_checkpoints import Checkpoints
from ul2.training.watchdog import DATA, EVALUATION, SAVE, Watchdog


class Told:
    """A watchdog of ten seconds whose clock, mouth and hand are ours."""

    def __init__(self):
        self.now, self.lines, self.ended = 0.0, [], 0
        self.dog = Watchdog(
            10, clock=lambda: self.now, say=self.lines.append, end=self._end
        )
        self.dog.moved(1)

    def _end(self):
        self.ended += 1

    def after(self, seconds):
        self.now += seconds
        self.dog.look()
        return len(self.lines), self.ended


def test_watchdog_speaks_once_and_then_ends_the_process():
    told = Told()
    told.dog.moved(2)
    told.dog.moved(3)
    assert told.after(9) == (0, 0)
    assert told.after(2) == (1, 0)
    assert told.after(2) == (1, 0)
    assert told.after(8) == (2, 1)
    assert "step has stood still for 11 seconds at step 3" in told.lines[0]
    assert "STALL_SECONDS=10" in told.lines[0]
    assert "test_watchdog.py" in told.lines[0]  # where this thread is
    assert "exit code 75" in told.lines[1]


def test_watchdog_is_quiet_while_something_moves():
    told = Told()
    for step in range(2, 9):
        told.dog.moved(step)
        assert told.after(9) == (0, 0)


def test_watchdog_counts_every_phase_anew_and_names_it():
    told = Told()
    told.dog.moved(2)
    for name in (DATA, SAVE):
        with told.dog.phase(name):  # the first time compiles
            assert told.after(39) == (len(told.lines), 0)
        with told.dog.phase(name):
            told.after(11)
            assert f"{name} has stood still" in told.lines[-1]
    assert told.after(9) == (2, 0)


def test_start_and_first_step_may_compile():
    told = Told()
    assert told.after(39) == (0, 0)
    told.dog.moved(2)
    assert told.after(11) == (1, 0)


def test_every_evaluation_may_decode():
    told = Told()
    for _ in range(2):
        with told.dog.phase(EVALUATION):
            assert told.after(39) == (0, 0)


def test_thread_looks_by_itself_and_stops_with_the_run():
    said = []
    with Watchdog(0.02, say=said.append, end=lambda: None):
        time.sleep(0.3)
    count = len(said)
    assert count >= 2
    time.sleep(0.1)
    assert len(said) == count


def test_zero_waits_forever(monkeypatch):
    monkeypatch.setattr(module.threading, "Thread", None)
    with Watchdog(0):
        pass


@pytest.fixture
def said(monkeypatch):
    """What the watchdog of a run says; it ends nothing."""
    said = []
    monkeypatch.setattr(Watchdog.__init__, "__kwdefaults__", {
        **Watchdog.__init__.__kwdefaults__, "say": said.append, "end": lambda: None
    })  # fmt: skip
    return said


def test_save_that_hangs_is_named(tmp_path, one_device, monkeypatch, said):
    save = Checkpoints.save

    def save_slowly(self, step, *args, **kwargs):
        time.sleep(0.0 if step < 4 else 0.8)
        save(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "save", save_slowly)
    settings = make_settings(eval_every_steps=0, save_every_steps=2, stall_seconds=0.4)
    run_train(tmp_path, mesh=one_device, settings=settings)
    assert any("save has stood still" in text and "at step 4" in text for text in said)


def test_host_that_waits_for_others_says_collective_and_what_they_told(monkeypatch):
    monkeypatch.setattr(module.jax, "process_count", lambda: 3)
    now, said, told = [0.0], [], []

    def exchange(line):
        told.append(line)
        return {"process 1 on b": "data at step 7", "process 2 on c": None}

    dog = Watchdog(
        10,
        clock=lambda: now[0],
        say=said.append,
        end=lambda: None,
        exchange=exchange,
    )
    for step in range(6, 9):
        with dog.phase(DATA):
            pass
        dog.moved(step)
    for seconds in (11, 10):
        now[0] += seconds
        dog.look()
    assert told == ["collective at step 8"] * 2
    dog.moved(9)
    dog.look()
    assert told[2:] == [""]  # what it told is no longer true
    assert "collective has stood still for 21 seconds at step 8" in said[-1]
    assert "(process 1 on b: data at step 7; process 2 on c: says nothing)" in said[-1]


def test_data_that_do_not_come_are_named(tmp_path, one_device, said):
    def on_next(index):
        if index == 4:
            time.sleep(1.0)

    settings = make_settings(eval_every_steps=0, stall_seconds=0.5)
    batches = ToyBatches(on_next=on_next)
    summary = run_train(tmp_path, mesh=one_device, settings=settings, batches=batches)
    assert summary.step == 6
    assert any("data has stood still" in text and "on_next" in text for text in said)


def test_negative_stall_seconds_are_refused():
    with pytest.raises(ValueError, match="set STALL_SECONDS"):
        make_settings(stall_seconds=-1)


def test_process_that_stands_still_really_ends(tmp_path):
    script = tmp_path / "still.py"
    script.write_text(
        "import time\n"
        "from ul2.training.watchdog import DATA, Watchdog\n"
        "with Watchdog(0.2) as dog, dog.phase(DATA):\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 75
    assert "process 0 of 1 on" in done.stderr and "still.py" in done.stderr
    assert "start the job again" in done.stderr.splitlines()[-1]
