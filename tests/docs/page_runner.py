"""Runs the blocks of a page in one directory, as a reader would, at a toy's scale."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from children import xla_flags
from command_server import CLIENT
from doc_names import ROOT
from pages import Block, PageError

HERE: Final = Path(__file__).parent
# What a checkout has, and pages name.
_LINKED: Final = ("configs", "scripts", "benchmarks", "examples", "docker")
# What every page finds: some text, a store of it, and a run of two updates.
_PREPARE: Final = """
ul2 tokenize --text 'corpus/*.jsonl' --train_vocab 500 --num_sentinels 40 \\
  --held_out 0.2 --num_workers 1 --out stores/mine
ul2 train --gin_file=configs/models/enc_dec_tiny.gin \\
  --gin_file=configs/objectives/ul2.gin --gin_file=configs/runs/pretrain.gin \\
  --gin_file=toy/enc_dec.gin --gin_file=toy/batch.gin --gin.SAVE_EVERY_STEPS=1 \\
  --gin.DATA=stores/mine --gin.MODEL_DIR=runs/one --gin.TOTAL_STEPS=2
"""


class BlockError(AssertionError):
    """A block that did not do what its page says."""


@dataclasses.dataclass
class Workplace:
    """A process that runs commands, and the directory every page starts from."""

    folder: Path
    socket: str
    environment: dict[str, str]

    def page(self, name: str) -> Path:
        """Returns the directory of a page: what every page finds."""
        folder = self.folder / "pages" / name
        shutil.copytree(self.folder / "start", folder, symlinks=True)
        return folder

    def run(self, block: Block, folder: Path) -> None:
        """Runs a block, or does what its page says instead.

        Raises:
            BlockError: it failed, or ended with another exit code.
        """
        if block.title:
            _write(block, folder)
            return
        is_read = block.instead == "syntax" or not all(
            importlib.util.find_spec(name) for name in block.needs
        )
        if block.language == "bash":
            _check_paths(block)
            done = self._bash(block, folder, "-n" if is_read else "-euo", "pipefail")
        elif is_read:
            compile(block.to_run, "block", "exec")
            return
        else:
            done = self._python(block, folder)
        if done[0] != block.exit_code:
            raise BlockError(
                f"line {block.line}: exit code {done[0]}, not {block.exit_code}\n"
                f"{block.to_run}\n{done[1]}"
            )
        if block.says not in done[1]:
            raise BlockError(f"line {block.line}: not {block.says!r}, but:\n{done[1]}")

    def _bash(self, block: Block, folder: Path, *options: str) -> tuple[int, str]:
        flags = options[:1] if options[0] == "-n" else options
        environment = {
            **self.environment,
            "UL2_DOCS_TOYS": json.dumps(block.toys),
            "UL2_DOCS_INSTEAD": block.instead,
        }
        done = subprocess.run(
            ["bash", *flags, "-c", block.to_run],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def _python(self, block: Block, folder: Path) -> tuple[int, str]:
        answer = self.ask("block", [block.to_run], folder)
        return answer["code"], answer["out"] + answer["err"]

    def ask(self, program: str, arguments: list[str], folder: Path) -> dict[str, Any]:
        """Runs one command, and returns what it wrote and its exit code."""
        request = {
            "program": program,
            "arguments": arguments,
            "cwd": str(folder),
            "environment": self.environment,
        }
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(self.socket)
            server.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(server.makefile().readline())
        return answer


def _write(block: Block, folder: Path) -> None:
    """Writes the file that a block is."""
    path = folder / block.title
    if path.is_symlink() or ".." in path.parts:
        raise PageError(f"line {block.line}: {block.title} is not the page's to write.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.to_run)
    if block.language == "python":
        compile(block.to_run, block.title, "exec")


def _check_paths(block: Block) -> None:
    """Refuses a script or config that this checkout does not have."""
    named = r"(?<![\w/.])(?:scripts|docker|examples|benchmarks)/[\w.-]+"
    for path in re.findall(named, block.to_run):
        if not (ROOT / path).exists():
            raise BlockError(f"line {block.line}: there is no {path}.")


@contextlib.contextmanager
def open_workplace(folder: Path) -> Iterator[Workplace]:
    """Starts the process and makes what every page finds."""
    from text_toys import train_foreign
    from wiring_toys import write_corpus

    path = str(folder / "commands")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", HERE))),
        # One device, as most readers have.
        "XLA_FLAGS": xla_flags(),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    (folder / "bin").mkdir()
    for program in ("ul2", "python"):
        client = folder / "bin" / program
        client.write_text(
            CLIENT.format(python=sys.executable, socket=path, program=program)
        )
        client.chmod(0o755)
    start = folder / "start"
    (start / "corpus").mkdir(parents=True)
    write_corpus(start / "corpus" / "one.jsonl")
    train_foreign(start / "spiece.model")  # as T5's: neither sentinels nor modes
    for name in _LINKED:
        if (ROOT / name).exists():
            (start / name).symlink_to(ROOT / name)
    (start / "toy").symlink_to(HERE / "toy")
    with subprocess.Popen(
        [sys.executable, HERE / "command_server.py", path],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        workplace = Workplace(folder, path, environment)
        try:
            workplace.run(Block(0, "bash", "", _PREPARE), start)
            yield workplace
        finally:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(b"\n")
