"""Two writers, one place: on one machine, and on two that share a disk."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ul2 import lock as module
from ul2.lock import Lock

HOLD = """
import sys, time
from ul2.lock import Lock
with Lock(sys.argv[1], what="runs/one", instead="x", heartbeat=0.05):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / ".lock"


def make(path, **changes):
    fields = {"heartbeat": 0.05, "stale": 0.6, "dying": 0.6}
    return Lock(
        path, what="runs/one", instead="choose another", **{**fields, **changes}
    )


def hold(path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    return holder


def end(holder):
    holder.kill()
    holder.communicate()


@pytest.fixture
def no_kernel_locks(monkeypatch):
    """A file system that keeps no locks."""

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def locks_of_each_machine_alone(monkeypatch):
    """A file system that shows no machine the locks of another."""
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)


def test_lock_is_there_while_held_and_says_who_holds_it(path):
    with make(path):
        record = json.loads(path.read_text())
        assert record["pid"] == os.getpid()
    assert os.listdir(path.parent) == []
    with make(path):
        pass


def test_second_process_is_refused_at_once_and_told_who_holds_it(path):
    holder = hold(path)
    try:
        began = time.monotonic()
        with pytest.raises(ValueError) as refused, make(path, dying=60):
            pass
        assert time.monotonic() - began < 10
        line = str(refused.value)
        assert line.startswith(f"runs/one is in use by process {holder.pid} on ")
        assert "UTC); wait for it or end it, or choose another." in line
        assert "\n" not in line
    finally:
        end(holder)


def test_lock_is_free_at_once_after_a_kill(path):
    holder = hold(path)
    end(holder)
    assert path.exists()
    began = time.monotonic()
    with make(path, stale=60, dying=60):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < 1


def test_start_while_the_killed_one_is_dying_waits_for_it(path):
    holder = hold(path)
    holder.send_signal(signal.SIGSTOP)  # gives no sign of life, and is not gone
    timer = threading.Timer(0.3, end, [holder])
    timer.start()
    with make(path, dying=60):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    timer.join()


def test_suspended_holder_of_this_machine_keeps_its_lock(path):
    holder = hold(path)
    try:
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(ValueError, match="is in use by"), make(path):
            pass
    finally:
        end(holder)


@pytest.mark.parametrize("kernel", ["no_kernel_locks", "locks_of_each_machine_alone"])
def test_live_holder_on_another_machine_is_seen_by_its_heartbeat(path, kernel, request):
    request.getfixturevalue(kernel)
    with (
        make(path, machine="a"),
        pytest.raises(ValueError, match="is in use by"),
        make(path, machine="b", stale=60),
    ):
        pass


@pytest.mark.parametrize("kernel", ["no_kernel_locks", "locks_of_each_machine_alone"])
def test_dead_holder_on_another_machine_is_waited_for_and_replaced(
    path, kernel, request, capfd
):
    request.getfixturevalue(kernel)
    with make(path, machine="a"):
        record = path.read_bytes()
    path.write_bytes(record)  # as a kill leaves it
    began = time.monotonic()
    with make(path, machine="b"):
        assert time.monotonic() - began >= 0.6
        assert json.loads(path.read_text())["machine"] == "b"
    assert "whether that still lives" in capfd.readouterr().err


def test_lock_that_a_server_keeps_for_a_dead_machine_is_replaced(path):
    holder = hold(path)
    try:
        holder.send_signal(signal.SIGSTOP)
        with make(path, machine="b"):
            assert json.loads(path.read_text())["machine"] == "b"
    finally:
        end(holder)


def test_holder_that_was_taken_for_dead_ends(path, capfd):
    ended = threading.Event()
    with make(path, end=lambda code: ended.set() if code == 2 else None):
        other = {**json.loads(path.read_text()), "token": "other", "host": "b"}
        path.write_text(json.dumps(other))
        assert ended.wait(10)
    assert "runs/one was taken over by process" in capfd.readouterr().err
    assert path.exists()  # it is the other's


def test_lock_that_its_holder_gives_back_while_it_is_opened_is_not_taken(
    path, monkeypatch
):
    """Whoever locks a file that is no longer there has locked nothing."""
    opened, real = [], fcntl.flock

    def flock(file, how):
        if not opened:
            path.unlink()
        opened.append(file)
        real(file, how)

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with make(path):
        assert len(opened) == 2 and path.exists()


def test_place_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"cannot write .*; choose another\."),
        make(tmp_path / "file" / ".lock"),
    ):
        pass
