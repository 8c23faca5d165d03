"""What shells offer at TAB, by the words and by the shells themselves."""

import os
import shutil
import subprocess
import sys

import pytest

from ul2 import cli
from ul2.cli import completion

# `ul2` as a command, though it may not be installed.
UL2 = f'#!/bin/sh\nexec {sys.executable} -c "from ul2.cli import main; raise SystemExit(main())" "$@"\n'  # noqa: E501


def words(line, capfd):
    capfd.readouterr()
    assert cli.main(["completion", "words", "--", line]) == 0
    return capfd.readouterr().out.splitlines()


@pytest.fixture
def path(tmp_path):
    """A PATH with `ul2` on it."""
    (tmp_path / "ul2").write_text(UL2)
    (tmp_path / "ul2").chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ul2 tra", ["train"]),
        ("ul2 --v", ["--version"]),
        ("ul2 train --gin.MES", ["--gin.MESH="]),
        ("ul2 train --gin_f", ["--gin_file"]),
        ("ul2 train --gin.MODE=a", ["--gin.MODE=auto"]),
        ("ul2 check --gin_file configs/meshes/a", ["configs/meshes/auto.gin"]),
        (
            "ul2 check --gin_file=configs/objectives/ul2r",
            ["--gin_file=configs/objectives/ul2r.gin"],
        ),
        ("ul2 infer --task super_glue_b", ["super_glue_boolq"]),
        ("ul2 convert a --to hug", ["huggingface"]),
        ("ul2 convert a --to=hug", ["--to=huggingface"]),
        ("ul2 runs --state ru", ["running"]),
        ("ul2 completion f", ["fish"]),
        ("ul2 runs --gin.S", []),
        ("ul2 infer --checkpoint ru", []),
        ("ul2 nothing ", []),
        ("ul2 infer --text 'an open quo", []),
        ("", sorted([*(m.__name__.rpartition(".")[2] for m in cli._COMMANDS), "--help",
                     "--version"])),
    ],
)  # fmt: skip
def test_last_word_is_completed(line, found, capfd):
    assert words(line, capfd) == found


def test_flags_of_a_command_are_all_there(capfd):
    found = words("ul2 tokenize --", capfd)
    assert {"--text", "--train_vocab", "--json", "--help", "--gin."} <= set(found)


def test_asking_is_quick_to_start(path):
    code = (
        "import sys; from ul2 import cli; "
        "assert cli.main(['completion', 'words', '--', 'ul2 train --gin.M']) == 0; "
        "assert not {'jax', 'gin', 'rich', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def complete(shell, script, path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = [shell, "-c", script]
    if shell != "fish":  # without anybody's own settings
        command.insert(1, "--norc" if shell == "bash" else "-f")
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "typed", "found"),
    [
        ("ul2 train --gin.MES", ["ul2", "train", "--gin.MES"], ["--gin.MESH="]),
        (
            "ul2 convert a --to=hug",
            ["ul2", "convert", "a", "--to", "=", "hug"],
            ["huggingface"],
        ),
    ],
)
def test_bash_completes(line, typed, found, path):
    script = (
        'eval "$(ul2 completion bash)"\n'
        f"COMP_LINE={line!r} COMP_POINT={len(line)}\n"
        f"COMP_WORDS=({' '.join(typed)}) COMP_CWORD={len(typed) - 1}\n"
        '_ul2; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert complete("bash", script, path) == found


def test_zsh_completes(path):
    # compadd works inside of a completion alone.
    script = (
        "compdef() { :; }; compadd() { print -l -- ${@:#-*}; print -l -- $@ }\n"
        'eval "$(ul2 completion zsh)"\n'
        "LBUFFER='ul2 train --gin.MES'; _ul2"
    )
    assert "--gin.MESH=" in complete("zsh", script, path)


def test_fish_completes(path):
    script = "ul2 completion fish | source; complete -C 'ul2 train --gin.MES'"
    assert complete("fish", script, path) == ["--gin.MESH="]


def test_every_shell_has_a_script():
    assert completion._SCRIPTS.keys() == {"bash", "zsh", "fish"}
    for script in completion._SCRIPTS.values():
        assert "ul2 completion words -- " in script
