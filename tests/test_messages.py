"""A message may quote a foreign file, and is one line on any terminal all the same."""

import json

import pytest

from ul2 import cli
from ul2.cli.command import explain, one_line
from ul2.interop import safetensors


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a name", "a name"),
        ("a\nname\r\n of two", "a name of two"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("Grüße 🙂", "Grüße 🙂"),
        ("half \ud800", "half \\ud800"),
        ("x" * 3000, "x" * 2000 + " ..."),
    ],
)
def test_line_is_printable_and_has_an_end(text, line):
    assert one_line(text) == line


def test_name_in_a_file_does_not_reach_the_terminal_as_it_is(tmp_path, capfd):
    header = json.dumps({"evil\n\x1b]0;owned\x07": {"dtype": "F32"}}).encode()
    content = len(header).to_bytes(8, "little") + header
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="evil") as caught:
        safetensors.read_index(tmp_path)
    line, code = explain(caught.value)
    assert code == 2
    assert "evil \\x1b]0;owned\\x07 has no shape" in line
    assert line.isprintable()
    config = {"model_type": "t5", "vocab_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["convert", str(tmp_path), "--to=ul2", f"--out={tmp_path}/o"]) == 2
    assert "\x1b" not in capfd.readouterr().err
