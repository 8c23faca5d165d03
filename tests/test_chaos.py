"""A few of the kills of scripts/chaos.sh, which kills sixty times."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.slow
def test_killed_commands_end_with_the_bits_of_undisturbed_ones():
    flags = ["--kills", "2", "--seed", "7", "--commands", "train"]
    flags += ["--model", "dec_only_tiny", "--steps", "16"]  # compiles fastest
    done = subprocess.run(
        [sys.executable, SCRIPTS / "chaos.py", *flags],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 kills; ")
    assert "DIFFERS" not in done.stdout


def test_any_difference_is_shown_with_both_values(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("chaos", SCRIPTS / "chaos.py")
    chaos = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chaos", chaos)
    spec.loader.exec_module(chaos)
    expected = {"loss": {"a": 1}, "step": 3, "gone": 1}
    assert list(chaos.compare(expected, {"loss": {"a": 2}, "step": 3})) == [
        "loss: undisturbed {'a': 1}, after kills {'a': 2}",
        "gone: undisturbed 1, after kills 'nothing'",
    ]
