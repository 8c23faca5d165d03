"""`ul2 train` in several processes that talk by gloo, as on several hosts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from children import free_port, xla_flags
from tolerances import REORDERED_SUM_ATOL, REORDERED_SUM_RTOL
from wiring_toys import flags, make_store

from ul2 import cli

ROOT = Path(__file__).parents[1]
HEARTBEAT_SECONDS = 10
# In which the others are to end when a process dies.
END_SECONDS = HEARTBEAT_SECONDS + 15
COMMAND = "import sys; from ul2.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("several_processes"))


def recipe(store, model_dir, **macros):
    small = {"EVAL_BATCHES": 0, "EVAL_EVERY_STEPS": 0, "SAVE_EVERY_STEPS": 2}
    macros = {"MODEL_DIR": model_dir, **small, **macros}
    return ["train", *flags(store, model="dec_only_tiny", **macros)]


def start(count, *arguments, code=COMMAND):
    """Starts the processes of a job, all with the same flags or each with its own."""
    job = {
        **os.environ,
        "XLA_FLAGS": xla_flags(),
        "UL2_COORDINATOR": f"127.0.0.1:{free_port()}",
        "UL2_NUM_PROCESSES": str(count),
        "UL2_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments[index % len(arguments)]],
            cwd=ROOT,
            env={**job, "UL2_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes, timeout=120):
    """Returns the exit codes, and what was said on standard output and error."""
    said = [process.communicate(timeout=timeout) for process in processes]
    codes = [process.returncode for process in processes]
    return codes, [out for out, _ in said], [errors for _, errors in said]


def train(count, arguments):
    codes, outputs, errors = finish(start(count, arguments))
    assert codes == [0] * count, "\n".join(errors)
    return outputs, errors


def read_lines(run):
    return [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]
    ]


def assert_same_curve(run, alone):
    ours, theirs = read_lines(run), read_lines(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("loss", "accuracy", "target_tokens", "grad_norm"):
            np.testing.assert_allclose(
                mine[name],
                other[name],
                rtol=REORDERED_SUM_RTOL,
                atol=REORDERED_SUM_ATOL,
                err_msg=f"{name} of step {mine['step']}",
            )
        tokens = {name: row["tokens"] for name, row in mine["denoisers"].items()}
        assert tokens == {n: row["tokens"] for n, row in other["denoisers"].items()}


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory):
    """Six updates in one process, the one that runs the tests."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert cli.main(recipe(store, run, TOTAL_STEPS=6)) == 0
    return run


@pytest.mark.slow
def test_four_then_two_then_one_process_go_on_with_one_curve(store, tmp_path, alone):
    run = tmp_path / "run"
    four = recipe(store, run, TOTAL_STEPS=2, MESH="data=2,fsdp=2")
    outputs, errors = train(4, four)
    # One process speaks for all, but each says who it is.
    assert not any("step" in text for text in outputs)
    for index, text in enumerate(errors):
        assert f"process {index} of 4 on " in text
        assert ("step 1/2 " in text) == ("is at step 2" in text) == (index == 0)
    train(2, recipe(store, run, TOTAL_STEPS=4, MESH="fsdp=2"))
    train(1, recipe(store, run, TOTAL_STEPS=6, MESH="data=1"))
    assert_same_curve(run, alone)


@pytest.mark.slow
def test_tensor_axis_across_processes_trains_as_one(store, tmp_path, alone):
    # Both processes hold half of every matrix, and read the same rows.
    run = tmp_path / "run"
    train(2, recipe(store, run, TOTAL_STEPS=6, MESH="tensor=2"))
    assert_same_curve(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_death_of_a_process_ends_the_other_and_the_job_goes_on(store, tmp_path, victim):
    run = tmp_path / "run"
    job = recipe(store, run, TOTAL_STEPS=10_000, MESH="fsdp=2")
    processes = start(2, job)
    while not (run / "checkpoints" / "2").is_dir():
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.02)
    processes[victim].kill()
    killed = time.monotonic()
    codes, _, errors = finish(processes)
    assert time.monotonic() - killed < END_SECONDS
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 75)
    saved = max(
        int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit()
    )
    last = errors[1 - victim].strip().splitlines()[-1]
    assert "lost" in last and "process" in last
    assert f"it goes on from step {saved} (exit code 75)" in last
    assert "stack trace" not in errors[1 - victim]
    assert "Traceback" not in errors[1 - victim]
    if victim == 1:
        steps = saved + 2
        train(2, recipe(store, run, TOTAL_STEPS=steps, MESH="fsdp=2"))
        whole = tmp_path / "whole"
        assert cli.main(recipe(store, whole, TOTAL_STEPS=steps)) == 0
        assert_same_curve(run, whole)


@pytest.mark.slow
def test_preempted_hosts_save_the_same_step_and_ask_to_be_started_again(
    store, tmp_path
):
    run = tmp_path / "run"
    rare = {"SAVE_EVERY_STEPS": 100_000, "TOTAL_STEPS": 100_000, "MESH": "fsdp=2"}
    processes = start(2, recipe(store, run, **rare))
    while not (run / "metrics.jsonl").is_file() or not read_lines(run):
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.02)
    for process in processes * 2:  # some launchers are in a hurry
        process.terminate()
    codes, _, errors = finish(processes)
    assert codes == [75, 75], "\n".join(errors)
    (saved,) = (run / "checkpoints").iterdir()
    assert int(saved.name) == read_lines(run)[-1]["step"]
    assert "the same command goes on from here" in errors[0]
    assert not (run / ".lock").exists()


@pytest.mark.slow
def test_process_that_hangs_is_named_by_the_one_that_waits_for_it(
    store, tmp_path, monkeypatch
):
    # jax would otherwise miss its heartbeat first.
    monkeypatch.setitem(globals(), "HEARTBEAT_SECONDS", 100)
    run = tmp_path / "run"
    # Saving is waiting for others, too, but another phase.
    endless = {"TOTAL_STEPS": 100_000, "SAVE_EVERY_STEPS": 0, "MESH": "fsdp=2"}
    waiting, hanging = start(2, recipe(store, run, STALL_SECONDS=8, **endless))
    while not (run / "metrics.jsonl").is_file() or len(read_lines(run)) < 4:
        assert waiting.poll() is None and hanging.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{hanging.pid}/task/{hanging.pid}/children")
    os.kill(int(children.read_text()), signal.SIGSTOP)
    codes, _, errors = finish([waiting])
    hanging.kill()
    finish([hanging])
    assert codes == [75]
    who = socket.gethostname()
    last = errors[0].strip().splitlines()[-1]
    assert f"error: process 0 of 2 on {who}: collective has stood still" in last
    assert f"(process 1 on {who}: says nothing); the process ends" in last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ({"MESH": "data=3"}, "error: mesh 'data=3' holds"),
        ({"MESH": "fsdp=2", "DATA": "nowhere"}, "error: "),
    ],
)
def test_wrong_flag_ends_all_processes_with_the_same_line(
    store, tmp_path, macros, message
):
    job = start(2, recipe(store, tmp_path / "run", **macros))
    codes, _, errors = finish(job)
    assert codes == [2, 2], errors
    last = [text.strip().splitlines()[-1].partition(": ")[2] for text in errors]
    assert last[0] == last[1] and last[0].startswith(message)


@pytest.mark.slow
def test_directory_that_hosts_do_not_share_is_refused(store, tmp_path):
    folders = [recipe(store, tmp_path / name, MESH="fsdp=2") for name in "ab"]
    codes, _, errors = finish(start(2, *folders))
    assert codes == [2, 2], errors
    for text in errors:
        assert "process 1 of 2 does not see what process 0 wrote to" in text
        assert "choose a MODEL_DIR on storage that all hosts share" in text


@pytest.mark.slow
def test_signal_before_the_loop_listens_is_not_lost():
    code = (
        "import time; from ul2.sharding import processes; processes.join()\n"
        "print('joined', flush=True); time.sleep(60)"
    )
    job = start(2, [], code=code)
    for process in job:
        while process.stdout.readline() != "joined\n":
            assert process.poll() is None
    for process in job:
        process.terminate()
    assert finish(job)[0] == [-signal.SIGTERM] * 2


def test_half_an_environment_is_refused_before_anything_starts(
    store, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("UL2_NUM_PROCESSES", "2")
    assert cli.main(recipe(store, tmp_path / "run")) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: UL2_COORDINATOR and UL2_PROCESS_ID must be set")
    assert not (tmp_path / "run").exists()
