"""`docs/errors.md` is what the commands really say.

UL2_WRITE_DOCS=1 pytest tests/test_errors_page.py      writes it anew
"""

import os
import shlex
from pathlib import Path

import gin
import jax
import pytest
from common_mistakes import MISTAKES, VALUES, expand, make_folder, train_one

from ul2 import cli, gin_config

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
MISTAKE_COLUMNS = ("mistake", "command", "what it says")
VALUE_COLUMNS = ("typed", "is")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two stores, a run, and gin files."""
    folder = tmp_path_factory.mktemp("mistakes")
    make_folder(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        train_one()
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def compiled():
    """The durations of whatever XLA compiles in a test."""
    durations = []

    def listen(event, duration, **fields):
        if event.endswith("backend_compile_duration"):
            durations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield durations
    jax.monitoring.unregister_event_duration_listener(listen)


def _said(command, capfd):
    """Runs a command that must be refused, and returns what it says."""
    name, *words = shlex.split(command)
    assert name == "ul2"
    capfd.readouterr()
    try:
        code = cli.main(expand(words))
    except SystemExit as error:
        code = error.code
    assert code == 2, command
    captured = capfd.readouterr()
    lines = (captured.out + captured.err).splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors, f"{command} gives no reason: {lines}"
    assert "Traceback" not in captured.err
    return errors


def _table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _code(text):
    """Returns a text as Markdown shows it as it is, inside a table."""
    assert "|" not in text and "``" not in text
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _values():
    gin.clear_config()
    for text in VALUES:
        assert gin_config.parse([("SEED", text)]) == [], text
        value = gin_config.macro_values()["SEED"]
        home = os.path.expanduser("~")
        shown = str(value) if text.startswith("%") else repr(value)
        yield _code(text) if text else "", _code(shown.replace(home, "/home/you"))


def _replace(page, name, table):
    """Returns the page with a table between its marks."""
    before, _, rest = page.partition(f"<!-- table: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    assert end
    return f"{before}<!-- table: {name} -->\n{table}{end}{after}"


def _compare(name, table):
    kept = PAGE.read_text()
    page = _replace(kept, name, table)
    if os.environ.get("UL2_WRITE_DOCS"):
        PAGE.write_text(page)
    else:
        assert kept == page, "run UL2_WRITE_DOCS=1 pytest tests/test_errors_page.py"


def test_page_says_what_the_commands_say(folder, monkeypatch, capfd, compiled):
    monkeypatch.chdir(folder)
    rows = []
    for what, command in MISTAKES:
        errors = _said(command, capfd)
        assert not compiled, f"{command} compiles something"
        rows.append((what, _code(command), "<br>".join(map(_code, errors))))
    _compare("mistakes", _table(MISTAKE_COLUMNS, rows))


def test_page_says_how_values_are_read():
    _compare("values", _table(VALUE_COLUMNS, _values()))
