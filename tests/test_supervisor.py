"""The parent of one of several processes, with children that need no jax."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

DEATH = """\
E1121 17:08:15.3 1 coordination_service.cc:1549] [1] Use error polling to propagate: \
UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
The tasks have crashed. Check the task logs for an earlier error. ['']
F1121 17:08:15.3 1 client.h:80] Terminating process because the JAX distributed \
service detected fatal errors. UNAVAILABLE: The following tasks are unhealthy \
(stopped sending heartbeats):
1
The tasks have crashed.

RPC: /xla.coordination.CoordinationService/PollForError ['']
*** Check failure stack trace: ***
    @     0x7f748ee40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
LEADER = """\
F1121 17:08:21.4 2 client.h:80] Terminating process because the JAX distributed \
service detected fatal errors. absl::Status: UNAVAILABLE: Failed to send RPC to \
coordination service. Either the leader task was preempted
Additional GRPC error information from remote target coordination_service while
:UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}
*** Check failure stack trace: ***
"""
TORN = LEADER.replace("Check", "step 7\nCheck").rstrip("\n")
NEVER_MET = """\
F1121 17:16:52.2 2 client.h:80] Terminating process because the JAX distributed \
service detected fatal errors. absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded

RPC: /xla.coordination.CoordinationService/RegisterTask
*** Check failure stack trace: ***
"""


def start(tmp_path, work):
    """Starts a command that splits, and does some work in the child."""
    script = tmp_path / "command.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from ul2.cli import supervisor\n"
        "notes = supervisor.split()\n"
        "notes.write(index=0, count=2, hosts=['a', 'b'])\n"
        f"notes.write(model_dir={str(tmp_path)!r})\n" + textwrap.dedent(work)
    )
    return subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(tmp_path, work):
    command = start(tmp_path, work)
    out, errors = command.communicate(timeout=60)
    return command.returncode, out, errors


def test_child_that_ends_by_itself_is_only_passed_on(tmp_path):
    code, out, errors = run(
        tmp_path, "print('result'); sys.stderr.write('a\\nb'); sys.exit(2)"
    )
    assert (code, out, errors) == (2, "result\n", "a\nb")


@pytest.mark.parametrize(
    ("death", "said"),
    [
        (DEATH, "lost process 1 on b: no sign of life any more"),
        (LEADER, "lost process 0 on a: it has gone"),
        (TORN, "lost process 0 on a: it has gone"),
        (NEVER_MET, "did not meet all the others in time"),
    ],
)
def test_death_in_jaxs_words_becomes_one_line(tmp_path, death, said):
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    (tmp_path / "checkpoints" / "8").mkdir()
    (tmp_path / "checkpoints" / "16.orbax-checkpoint-tmp").mkdir()
    work = f"os.write(2, {('before' + chr(10) + death).encode()!r}); os.abort()"
    code, _, errors = run(tmp_path, work)
    assert code == 75
    before, line = errors.splitlines()
    assert before == "before"
    assert line.startswith("error: process 0 of 2 on ") and said in line
    assert line.endswith("start the job again, it goes on from step 12 (exit code 75).")


def test_child_that_speaks_while_jax_ends_it_is_heard(tmp_path):
    said = LEADER + "process 0 of 2: error: lost another\n" + "*** Check failure\n"
    work = f"os.write(2, {said.encode()!r}); os._exit(75)"
    code, _, errors = run(tmp_path, work)
    assert code == 75
    assert errors.startswith("process 0 of 2: error: lost another\n")


def test_other_deaths_keep_what_was_said(tmp_path):
    code, _, errors = run(tmp_path, "os.write(2, b'F1121 check failed'); os.abort()")
    assert code == 75
    assert "F1121 check failed" in errors
    assert "was ended by SIGABRT" in errors and "goes on from its start" in errors
    code, _, errors = run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 75
    assert "was ended by SIGKILL, from outside" in errors


def test_signals_reach_the_child_and_its_answer_counts(tmp_path):
    command = start(
        tmp_path,
        """
        def stop(number, frame):
            sys.exit(7)
        signal.signal(signal.SIGTERM, stop)
        print("ready", flush=True)
        time.sleep(60)
        """,
    )
    assert command.stdout.readline() == "ready\n"
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=30)
    assert command.returncode == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the child")
def test_child_does_not_outlive_its_parent(tmp_path):
    command = start(tmp_path, "print(os.getpid(), flush=True); time.sleep(60)")
    child = int(command.stdout.readline())
    command.kill()
    command.wait()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        with open(f"/proc/{child}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                break
        time.sleep(0.05)
    else:
        pytest.fail("the child is still there")
    command.stdout.close()
    command.stderr.close()


def test_notes_add_up_and_are_empty_at_first():
    from ul2.cli.supervisor import Notes

    notes = Notes()
    assert notes.read() == {}
    notes.write(a=[1], b="x")
    notes.write(b="longer than before")
    assert json.loads(json.dumps(notes.read())) == {"a": [1], "b": "longer than before"}
