"""Every command ends with the codes that `docs/exit_codes.md` says."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ul2 import cli, exit_codes
from ul2.cli.command import explain
from ul2.training import failures

PAGE = (Path(__file__).parents[1] / "docs" / "exit_codes.md").read_text()
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in cli._COMMANDS}
# The least that a command asks for.
NEEDED = {
    "tokenize": ("--text=a", "--out=b", "--train_vocab=9"),
    "infer": ("--checkpoint=a", "--text=b"),
    "eval": ("--checkpoint=a",),
    "convert": ("a", "--to=ul2", "--out=b"),
    "plan": ("--topology=cpu:8",),
    "report": ("a",),
    "completion": ("bash",),
}
# Patches a command, and runs it as a process that is its own.
PROCESS = """
import importlib, sys, time
from ul2 import cli
module = importlib.import_module(f"ul2.cli.{sys.argv[1]}")
def run(options):
    print("at work", file=sys.stderr, flush=True)
    BODY
    return {}
setattr(module, "run" if hasattr(module, "run") else "_run", run)
if hasattr(module, "run"):
    cli.train.run = run
raise SystemExit(cli.main())
"""


def replaced(monkeypatch, name, run):
    """Lets a command run another function; returns its shortest command line."""
    module = COMMANDS[name]
    monkeypatch.setattr(module, "run" if hasattr(module, "run") else "_run", run)
    return [name, *NEEDED.get(name, ())]


def raising(error):
    def run(options):
        raise error

    return run


def ours(message):
    """Returns an error of somebody's input, as this package raises it."""
    with pytest.raises(ValueError) as caught:
        cli.command.check_at_least(1, message, 0)
    return caught.value


def start(name, body):
    code = PROCESS.replace("BODY", body)
    return subprocess.Popen(
        [sys.executable, "-c", code, name, *NEEDED.get(name, ())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_page_lists_all_codes_and_all_commands():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE, re.MULTILINE)
    kept = {n: str(v) for n, v in vars(exit_codes).items() if type(v) is int}
    assert {name: code for code, name in rows} == kept
    table = PAGE.partition("| command |")[2]
    assert set(re.findall(r"`(\w+)`(?=[ `|\w]*\| 0)", table)) == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_done(name, capfd):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == exit_codes.DONE
    assert f"usage: ul2 {name}" in capfd.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_flag_that_is_not_there_is_usage_in_one_line(name, capfd):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, *NEEDED.get(name, ()), "--no_such_flag"])
    assert ended.value.code == exit_codes.USAGE
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: ul2 {name} has no --no_such_flag")


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_required_is_usage_in_one_line(name, capfd):
    with contextlib.suppress(SystemExit):
        assert cli.main([name]) == exit_codes.USAGE
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ours("batch_size"), exit_codes.USAGE),
        (KeyboardInterrupt(), exit_codes.FAILURE),
        (FloatingPointError("step 5: not finite"), exit_codes.FAILURE),
        (MemoryError("Unable to allocate 3.00 GiB for an array"), exit_codes.FAILURE),
        (failures.StorageError("no room"), exit_codes.STORAGE),
    ],
)
def test_error_has_the_same_code_in_every_command(
    name, error, code, monkeypatch, capfd
):
    assert cli.main(replaced(monkeypatch, name, raising(error))) == code
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_bug_keeps_its_traceback_in_every_command(name, monkeypatch):
    arguments = replaced(monkeypatch, name, raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(arguments)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("report", "code"),
    [
        ({}, exit_codes.DONE),
        ({"errors": ["wrong"]}, exit_codes.USAGE),
        ({"preempted": True}, exit_codes.RESTART),
    ],
)
def test_report_has_the_same_code_in_every_command(name, report, code, monkeypatch):
    arguments = replaced(monkeypatch, name, lambda options: report)
    assert cli.main(arguments) == code


@pytest.mark.parametrize("name", COMMANDS)
def test_sigterm_asks_for_a_restart_in_every_command(name):
    with start(name, "time.sleep(60)") as process:
        assert process.stderr.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        assert "start the same command again" in process.stderr.read()
    assert process.returncode == exit_codes.RESTART


def test_reader_that_went_away_is_no_error():
    with start("runs", "time.sleep(0.5); print('x' * 10**6)") as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == exit_codes.CLOSED_PIPE
    assert said == "at work\n"


def test_signal_of_a_closed_pipe_is_what_shells_call_it():
    assert exit_codes.CLOSED_PIPE == 128 + signal.SIGPIPE
    assert (exit_codes.RESTART, exit_codes.STORAGE) == (os.EX_TEMPFAIL, os.EX_IOERR)
    assert explain(RuntimeError()) is None
