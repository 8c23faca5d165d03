"""Kills commands at random, starts them again, and compares what comes out.

scripts/chaos.sh --kills 60 --seed 0

A tiny model is trained, a corpus tokenized, a file answered and a checkpoint converted,
once undisturbed. Then again and again, with SIGKILL at random instants and at aimed
ones: while a checkpoint is being written, as it is committed, while an old one is being
deleted, as a line is written. After every kill the very same command is started, until
it has done its work; the result has to be that of the undisturbed one, to the last bit:

    train       parameters, optimizer state, place in the data, every line of
                metrics.jsonl and eval.jsonl but for its times, the best step
    tokenize    the files of the store
    infer       the file of answers
    convert     the files of the export

Exit code 1, with both values, where anything differs. The instants of the aimed kills
depend on the machine; the aims, delays and order on `--seed` alone.
"""

import argparse
import collections
import dataclasses
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chaos_commands import Command, make_commands, write_inputs
from chaos_processes import POLL_SECONDS, end, finish, fork, run_apart

ROOT = Path(__file__).resolve().parents[1]
# Undisturbed, the longest of the commands takes a tenth of that.
PATIENCE_SECONDS = 300.0
ANYWHERE = "any instant"


def start(command: Command, folder: Path) -> int:
    """Starts a command; returns the number of its process."""

    def work() -> int:
        from ul2 import cli

        sys.argv = ["ul2", *command.arguments(folder)]
        return cli.main()

    return fork(work, folder / f"{command.name}.log")


@dataclasses.dataclass
class Chaos:
    """Kills commands, and counts.

    Attributes:
        work: where everything is.
        chance: all random choices.
        kills: that are left.
        deadline: no kill after it.
    """

    work: Path
    chance: random.Random
    kills: int
    deadline: float

    def __post_init__(self) -> None:
        self.fell: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.compared: collections.Counter[str] = collections.Counter()
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, Any]] = {}

    def run_undisturbed(self, command: Command) -> None:
        """Notes what comes out, and how long it takes."""
        folder = self.work / "undisturbed"
        began = time.monotonic()
        self._complete(command, folder)
        self.seconds[command.name] = time.monotonic() - began
        self.expected[command.name] = command.read(folder)

    def disturb(self, command: Command) -> list[str]:
        """Kills a command some times; returns what differs once it is done."""
        folder = self.work / f"{command.name}-{self.compared[command.name]}"
        folder.mkdir()
        for _ in range(min(command.kills, self.kills)):
            if time.monotonic() > self.deadline or not self._kill_once(command, folder):
                break
        if not command.is_done(folder):
            began = time.monotonic()
            self._complete(command, folder)
            # Now that all programs are compiled; kills fall within that time.
            took = time.monotonic() - began
            self.seconds[command.name] = min(self.seconds[command.name], took)
        found = command.read(folder)
        self.compared[command.name] += 1
        differences = list(compare(self.expected[command.name], found))
        if not differences:
            shutil.rmtree(folder)
        return [f"{folder}: {line}" for line in differences]

    def _complete(self, command: Command, folder: Path) -> None:
        """Starts a command, and waits until it has done its work."""
        folder.mkdir(exist_ok=True)
        child = start(command, folder)
        code = finish(child, time.monotonic() + PATIENCE_SECONDS)
        if code is None:
            end(child)
        if code != 0:
            log = (folder / f"{command.name}.log").read_text()
            raise SystemExit(f"{command.name} ended with {code}:\n{log[-4000:]}")

    def _kill_once(self, command: Command, folder: Path) -> bool:
        """Starts a command and kills it; returns whether it is to be started again."""
        aim = self.chance.choice((None, *command.aims))
        seconds = self.chance.uniform(0, self.seconds[command.name])
        count = self.chance.randint(1, aim.most) if aim else 0
        delay = self.chance.choice((0.0, self.chance.uniform(0, 0.02)))
        child = start(command, folder)
        began = time.monotonic()
        last = aim.mark(folder) if aim else None
        while True:
            code = finish(child, time.monotonic() + POLL_SECONDS)
            if code is not None:
                break
            now = time.monotonic() - began
            if aim is None and now >= seconds:
                break
            if aim is not None:
                mark = aim.mark(folder)
                count -= mark is not None and mark != last
                last = mark
                if count <= 0:
                    break
            if now > PATIENCE_SECONDS:
                raise SystemExit(f"{command.name} stands still in {folder}.")
        if code is not None:
            if code != 0:
                log = (folder / f"{command.name}.log").read_text()
                raise SystemExit(f"{command.name} ended with {code}:\n{log[-4000:]}")
            return False
        time.sleep(delay)
        if not end(child):
            return not command.is_done(folder)
        self.kills -= 1
        where = command.where(folder)
        self.fell[command.name, where, aim.name if aim else ANYWHERE] += 1
        return not command.is_done(folder)


def compare(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """Yields what differs, with both values."""
    for name in {**expected, **found}:
        one, other = expected.get(name, "nothing"), found.get(name, "nothing")
        if one != other:
            yield f"{name}: undisturbed {one!r}, after kills {other!r}"


def print_table(chaos: Chaos) -> None:
    """Prints where the kills fell."""
    print(f"{'command':10} {'what it was doing':36} {'aimed at':36} kills")
    for (command, where, aim), count in sorted(chaos.fell.items()):
        print(f"{command:10} {where:36} {aim:36} {count:5}")
    total = sum(chaos.fell.values())
    print(f"{total} kills; {sum(chaos.compared.values())} results compared.")


def run(chaos: Chaos, commands: tuple[Command, ...], chosen: list[str]) -> list[str]:
    """Returns what differs."""
    differences: list[str] = []
    for command in commands:
        if command.name in chosen or command.name in ("tokenize", "train"):
            chaos.run_undisturbed(command)
            print(f"{command.name}: {chaos.seconds[command.name]:.1f} s undisturbed")
    active = [command for command in commands if command.name in chosen]
    while chaos.kills > 0 and time.monotonic() < chaos.deadline:
        command = min(
            active,
            key=lambda one: (
                sum(n for key, n in chaos.fell.items() if key[0] == one.name)
                / one.share,
                chaos.compared[one.name],
            ),
        )
        differences += chaos.disturb(command)
        total = sum(chaos.fell.values())
        print(f"{total} kills, {len(differences)} differences", flush=True)
    return differences


def main() -> int:
    """Kills; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Kill commands, compare their results."
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="no kill after it")
    parser.add_argument("--steps", type=int, default=60, help="updates of training")
    parser.add_argument("--model", default="enc_dec_tiny", help="in configs/models")
    parser.add_argument("--keep", action="store_true", help="keep all files")
    parser.add_argument(
        "--commands", default="tokenize,train,infer,convert", help="which to kill"
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    work = Path(tempfile.mkdtemp(prefix="ul2-chaos-"))
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = ""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(work / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Once, for all processes.
    run_apart(lambda: write_inputs(work))
    chaos = Chaos(
        work,
        random.Random(options.seed),
        options.kills,
        time.monotonic() + options.seconds,
    )
    differences = run(
        chaos,
        make_commands(work, options.model, options.steps),
        options.commands.split(","),
    )
    print_table(chaos)
    for line in differences:
        print(f"DIFFERS: {line}")
    if options.keep or differences:
        print(f"files: {work}")
    else:
        shutil.rmtree(work)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
