"""`ul2 runs`: what files say of runs."""

import json
import os
import subprocess
import sys

import pytest

from ul2 import cli, lock, run_states
from ul2.lock import Lock

NOW = 1_800_000_000.0
CONFIG = "TOTAL_STEPS = 100\nloop.TrainSettings.total_steps = %TOTAL_STEPS\n"


def make_run(folder, *, steps=(), saved=(), events=(), history=(), total=CONFIG):
    """Makes the files of a run that measured, and saved, some steps."""
    for step in saved:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
        os.utime(folder / "checkpoints" / str(step), (NOW - 30, NOW - 30))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.gin").write_text(total)
    for name, lines in (
        ("metrics", [measurement(step) for step in steps]),
        ("events", events),
        ("history", history),
    ):
        if lines:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{name}.jsonl").write_text(text)
            os.utime(folder / f"{name}.jsonl", (NOW - 60, NOW - 60))
    return folder


def measurement(step):
    return {
        "step": step,
        "loss": 1 + 1 / step,
        "tokens_per_second": 5e4,
        "steps_per_second": 0.5,
    }


def leave_lock(folder, **fields):
    """Leaves the lock of a process that is gone."""
    holder = {
        "machine": lock._this_machine(),
        "host": "gpu7",
        "pid": 17,
        "since": "2026-11-22 10:00:00 UTC",
        "token": "a",
        "beats": 3,
    }
    (folder / ".lock").write_text(json.dumps(holder | fields))


def state_of(folder):
    return run_states.read_state(folder, NOW).state


def hold(folder):
    return Lock(folder / ".lock", what="it", instead="wait")


def test_numbers_are_those_of_the_last_line(tmp_path):
    run = run_states.read_state(make_run(tmp_path / "a", steps=(10, 20), saved=(20,)))
    assert (run.step, run.total_steps, run.saved_step) == (20, 100, 20)
    assert (run.loss, run.tokens_per_second) == (1.05, 5e4)
    run = run_states.read_state(tmp_path / "a", NOW)
    assert (run.measured_seconds_ago, run.saved_seconds_ago) == (60, 30)


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"steps": (50, 100), "saved": (50, 100)}, "finished"),
        ({"steps": (50, 100), "saved": (50,)}, "stopped"),
        ({"steps": (50, 63), "saved": (50, 63)}, "preempted"),
        ({"steps": (50, 70), "saved": (50,)}, "stopped"),
        ({}, "new"),
        (
            {"steps": (50,), "saved": (50,), "events": [{"event": "stop", "step": 50}]},
            "stopped",
        ),
        (
            {"steps": (50,), "saved": (50,), "events": [{"event": "stop", "step": 9}]},
            "preempted",
        ),
        (
            {"steps": (50,), "history": [{"event": "end", "how": "stopped"}]},
            "preempted",
        ),
        (
            {
                "steps": (5,),
                "saved": (5,),
                "history": [{"event": "end", "how": "OSError"}],
            },
            "stopped",
        ),
    ],
)
def test_end_is_read_off_the_files(tmp_path, files, state):
    assert state_of(make_run(tmp_path / "a", **files)) == state


def test_who_is_gone_without_a_word_has_crashed(tmp_path):
    run = make_run(tmp_path / "a", steps=(50,), saved=(50,))
    leave_lock(run)
    assert state_of(run) == "crashed"
    assert (run / ".lock").exists()


def test_who_works_has_measured_something_or_waits(tmp_path):
    run = make_run(tmp_path / "a", steps=(50,), saved=(50,))
    with hold(run):
        os.utime(run / "metrics.jsonl", (1, 1))
        assert state_of(run) == "waiting"
        os.utime(run / "metrics.jsonl")
        found = run_states.read_state(run)
        assert found.state == "running"
        assert found.seconds_left == 50 / 0.5
        assert f"process {os.getpid()}" in found.holder
        # Looking took nothing away.
        with pytest.raises(ValueError, match="in use"):
            lock_again = Lock(run / ".lock", what="it", instead="wait", dying=0)
            lock_again.__enter__()
    assert state_of(run) == "preempted"


def test_holder_elsewhere_lives_while_it_writes(tmp_path):
    run = make_run(tmp_path / "a")
    leave_lock(run, machine="another")
    assert state_of(run) == "waiting"
    os.utime(run / ".lock", (1, 1))
    assert state_of(run) == "crashed"


def test_only_the_end_of_a_long_file_is_read(tmp_path):
    run = make_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("wb") as file:
        file.truncate(2**40)
        file.seek(2**40)
        file.write(b"\n" + json.dumps(measurement(70)).encode() + b'\n{"step": 8')
    assert run_states.read_state(run).step == 70


@pytest.mark.parametrize(
    "damage", [b"", b"\x00" * 100, b'{"step": "x"}\n', b'{"loss": NaN, "step": 1}\n']
)
def test_damaged_files_are_a_run_all_the_same(tmp_path, damage):
    run = make_run(tmp_path / "a", total="loop.TrainSettings.total_steps = %A\n")
    for name in ("metrics.jsonl", "events.jsonl", "history.jsonl"):
        (run / name).write_bytes(damage)
    found = run_states.read_state(run)
    assert found.total_steps is None
    assert found.step in (0, 1)
    assert json.dumps(found.to_json(), allow_nan=False)


def test_runs_are_found_below_and_not_in_each_other(tmp_path, capfd):
    make_run(tmp_path / "x" / "one", steps=(100,), saved=(100,))
    make_run(tmp_path / "x" / "one" / "trials" / "R", steps=(5,))
    make_run(tmp_path / "two", steps=(5,))
    make_run(tmp_path / ".hidden", steps=(5,))
    assert cli.main(["runs", str(tmp_path), str(tmp_path / "two"), "--json"]) == 0
    runs = json.loads(capfd.readouterr().out)["runs"]
    names = [(run["path"].rpartition("/")[2], run["state"]) for run in runs]
    assert names == [("one", "finished"), ("two", "stopped")]


def test_table_names_each_run_and_state(tmp_path, capfd):
    make_run(tmp_path / "one", steps=(100,), saved=(100,))
    make_run(tmp_path / "two", steps=(5,))
    assert cli.main(["runs", str(tmp_path)]) == 0
    _, one, two = capfd.readouterr().out.splitlines()
    assert "finished" in one and " 100 " in one and "1.0100" in one
    assert "stopped" in two and "never" in two
    assert cli.main(["runs", str(tmp_path), "--state", "running"]) == 0
    assert "no running runs" in capfd.readouterr().err
    assert cli.main(["runs", str(tmp_path / "none")]) == 2


def test_listing_needs_no_jax(tmp_path):
    make_run(tmp_path / "one", steps=(100,), saved=(100,))
    code = (
        "import sys; from ul2 import cli; "
        f"assert cli.main(['runs', {str(tmp_path)!r}]) == 0; "
        "assert not {'jax', 'numpy', 'gin', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
