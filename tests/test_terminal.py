"""One line on a terminal, and none anywhere else."""

import io
import re

import pytest
from rich.console import Console

from ul2.terminal import LiveLine

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LONG = "loss 2.3456  123,456 tokens/s  " + "x_64_50 3.183  " * 9


def shown(monkeypatch, environment, *, width=80, is_terminal=True, **options):
    """Returns what a line at 3 of 10 writes."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=width)
    with LiveLine("train", 10, console=console, **options) as line:
        line.update(3, LONG)
        is_live = line.is_live
    return is_live, stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_line_is_one_whatever_there_is_to_say(monkeypatch, width):
    terminal = {"TERM": "xterm-256color"}
    is_live, text = shown(monkeypatch, terminal, width=width, transient=False)
    last = ESCAPES.sub("", text).replace("\r", "\n").strip().splitlines()[-1]
    assert is_live
    assert "3/10" in last and "loss 2.3456" in last
    assert len(last) <= width
    assert ESCAPES.sub("", text).count("train") <= text.count("\x1b[2K") + 1


@pytest.mark.parametrize(
    ("environment", "is_terminal", "show"),
    [
        ({"TERM": "xterm"}, False, True),
        ({"TERM": "dumb"}, True, True),
        ({"TERM": "xterm"}, True, False),
    ],
)
def test_nothing_is_written_where_no_line_can_change(
    monkeypatch, environment, is_terminal, show
):
    found = shown(monkeypatch, environment, is_terminal=is_terminal, show=show)
    assert found == (False, "")


def test_colours_are_off_where_nobody_wants_them(monkeypatch):
    colour = re.compile(r"\x1b\[[0-9;]*(3[0-7]|38;5;\d+)[0-9;]*m")
    terminal = {"TERM": "xterm-256color"}
    assert colour.search(shown(monkeypatch, terminal)[1])
    assert not colour.search(shown(monkeypatch, {**terminal, "NO_COLOR": "1"})[1])
