"""What scripts/chaos.py kills: commands, what to aim at, what has to come out."""

import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_processes import run_apart

WORDS = (
    "the model reads every word of this long story before it writes a new line about "
    "rivers mountains birds and small towns where people talk of bread rain and music"
)
TINY = {
    "EMBED_DIM": 16,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "MLP_DIM": 32,
    "NUM_DECODER_LAYERS": 1,
    "INPUTS_LENGTH": 32,
    "TARGETS_LENGTH": 32,
    "BATCH_SIZE": 16,
    "MESH": "data=1",
    "SAVE_EVERY_STEPS": 4,
    "KEEP_CHECKPOINTS": 2,
    "EVAL_EVERY_STEPS": 12,
    "EVAL_BATCHES": 1,
    "BEST_METRIC": "loss",
    "LOG_EVERY_STEPS": 3,
}
# Of a line of metrics: what a clock measured.
TIMES = {
    "tokens_per_second",
    "examples_per_second",
    "steps_per_second",
    "data_wait_fraction",
    "mfu",
    "device_memory_bytes",
}


@dataclasses.dataclass(frozen=True)
class Aim:
    """When to kill: at some change in the files of a command.

    Attributes:
        name: of the moment.
        mark: a value read off the files; the moment is when it changes to another that
            is not None.
        most: it is waited for up to so many changes.
    """

    name: str
    mark: Callable[[Path], Any]
    most: int = 1


@dataclasses.dataclass(frozen=True)
class Command:
    """A command to be killed.

    Attributes:
        name: of it.
        share: of all kills.
        kills: at most, before a result is compared.
        arguments: returns them; it writes below a folder.
        is_done: whether its result is there.
        aims: moments to kill at.
        where: says what was being done, by what a kill left.
        read: returns the result as comparable values, by name.
    """

    name: str
    share: float
    kills: int
    arguments: Callable[[Path], list[str]]
    is_done: Callable[[Path], bool]
    aims: tuple[Aim, ...]
    where: Callable[[Path], str]
    read: Callable[[Path], dict[str, Any]]


# Files, as they are found while another process writes them.


def names(folder: Path) -> list[str]:
    """Returns what is in a folder; nothing where there is none."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def size(file: Path) -> int | None:
    """Returns the bytes of a file; None where there are none."""
    try:
        return file.stat().st_size or None
    except OSError:
        return None


def size_of(file: str) -> Callable[[Path], int | None]:
    """Returns the mark that is the size of a file."""
    return lambda folder: size(folder / file)


def names_in(place: str) -> Callable[[Path], list[str] | None]:
    """Returns the mark that is what a folder holds."""
    return lambda folder: names(folder / place) or None


def steps(folder: Path) -> list[str]:
    """Returns the checkpoints of a run that have their names."""
    return [name for name in names(folder / "run/checkpoints") if name.isdecimal()]


def half_written(folder: Path) -> str | None:
    """Returns what is in the folder of a checkpoint that has no name yet."""
    checkpoints = folder / "run/checkpoints"
    begun = [name for name in names(checkpoints) if not name.isdecimal()]
    return f"{begun[0]} {names(checkpoints / begun[0])}" if begun else None


def half_deleted(folder: Path) -> str | None:
    """Returns which checkpoint lacks something."""
    checkpoints = folder / "run/checkpoints"
    whole = max((len(names(checkpoints / step)) for step in steps(folder)), default=0)
    for step in steps(folder):
        if len(names(checkpoints / step)) < whole:
            return step
    return None


def training_left(folder: Path) -> str:
    """Says where a kill of `ul2 train` fell."""
    if not (folder / "run/.lock").exists():
        return "start or end"
    if half_written(folder):
        return "checkpoint half written"
    if half_deleted(folder):
        return "checkpoint half deleted"
    if size(folder / "run/metrics.jsonl") is None:
        return "before the first line"
    return "restoring, compiling or updating"


def tokenizing_left(folder: Path) -> str:
    """Says where a kill of `ul2 tokenize` fell."""
    if (folder / "store").exists():
        return "store committed"
    partial = names(folder / ".store.partial")
    if "manifest.json" in partial:
        return "store about to be committed"
    return "store half written" if partial else "before the first document"


def answering_left(folder: Path) -> str:
    """Says where a kill of `ul2 infer` fell."""
    if (folder / "out.jsonl").exists():
        return "answers committed"
    if (folder / "out.jsonl.partial.sorted").exists():
        return "answers being put in order"
    begun = size(folder / "out.jsonl.partial")
    return "answers half written" if begun else "before the first answer"


def converting_left(folder: Path) -> str:
    """Says where a kill of `ul2 convert` fell."""
    if (folder / "export").exists():
        return "export committed"
    partial = names(folder / ".export.partial")
    if not partial:
        return "before the first array"
    return "export half written" if ".plan.json" in partial else "as it is committed"


# Results.


def read_files(folder: Path) -> dict[str, Any]:
    """Returns a hash of every file below a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def read_lines(file: Path) -> dict[str, Any]:
    """Returns the lines of a file of measurements, without their times."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {
        f"{file.name} line {number}": {k: v for k, v in line.items() if k not in TIMES}
        for number, line in enumerate(lines, start=1)
    }


def read_run(folder: Path) -> dict[str, Any]:
    """Returns all that a run ends with; in a process of its own, for it needs jax."""
    return run_apart(lambda: _read_run(folder / "run"))


def _read_run(run: Path) -> dict[str, Any]:
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from ul2.training.checkpoints import read_contract, step_dir

    contract = read_contract(run)
    found: dict[str, Any] = {
        "step": contract.step,
        "data position": contract.data_position,
        "best": json.loads((run / "best.json").read_text()),
        "checkpoints": names(run / "checkpoints"),
    }
    for item in ("params", "train_state"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.restore(step_dir(run, contract.step) / item)
        for path, leaf in jax.tree.leaves_with_path(tree):
            array = np.asarray(leaf)
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            name = f"{item}{jax.tree_util.keystr(path)}"
            found[name] = f"{array.dtype}{array.shape} {digest} {array.flat[:2]}"
    for name in ("metrics.jsonl", "eval.jsonl"):
        found |= read_lines(run / name)
    return found


def make_commands(work: Path, model: str, train_steps: int) -> tuple[Command, ...]:
    """Returns the commands; all but the first use what others made undisturbed."""
    ready = work / "undisturbed"
    macros = {"DATA": ready / "store", "TOTAL_STEPS": train_steps, **TINY}
    if model.startswith("enc_dec"):
        macros["NUM_ENCODER_LAYERS"] = 1
    files = (f"models/{model}", "objectives/ul2", "runs/pretrain")
    recipe = [f"--gin_file=configs/{name}.gin" for name in files]
    recipe += [f"--gin.{name}={value}" for name, value in macros.items()]

    def answer(folder: Path) -> list[str]:
        source = ("--checkpoint", ready / "run", "--input", work / "questions.jsonl")
        sizes = ("--batch_size", 4, "--max_tokens", 8, "--max_inputs", 16)
        return [
            str(one)
            for one in ("infer", *source, "--output", folder / "out.jsonl", *sizes)
        ]

    return (
        Command(
            name="tokenize",
            share=0.15,
            kills=3,
            arguments=lambda folder: [
                "tokenize",
                f"--text={work / 'corpus.jsonl'}",
                f"--vocab={work / 'tokenizer.model'}",
                f"--out={folder / 'store'}",
                "--num_workers=2",
            ],
            is_done=lambda folder: (folder / "store").exists(),
            aims=(
                Aim(
                    "as a shard grows", lambda f: names(f / ".store.partial") or None, 9
                ),
                Aim(
                    "as it is committed",
                    size_of(".store.partial/manifest.json"),
                ),
            ),
            where=tokenizing_left,
            read=lambda folder: read_files(folder / "store"),
        ),
        Command(
            name="train",
            share=0.5,
            kills=6,
            arguments=lambda folder: [
                "train",
                *recipe,
                f"--gin.MODEL_DIR={folder / 'run'}",
            ],
            is_done=lambda folder: False,
            aims=(
                Aim("while a checkpoint is written", half_written, 9),
                Aim("as a checkpoint is committed", lambda f: steps(f) or None, 3),
                Aim("while an old checkpoint is deleted", half_deleted, 2),
                Aim("as metrics are written", size_of("run/metrics.jsonl"), 9),
                Aim(
                    "as an evaluation is written",
                    size_of("run/eval.jsonl"),
                    2,
                ),
            ),
            where=training_left,
            read=read_run,
        ),
        Command(
            name="infer",
            share=0.2,
            kills=4,
            arguments=answer,
            is_done=lambda folder: (folder / "out.jsonl").exists(),
            aims=(
                Aim("as answers are written", size_of("out.jsonl.partial"), 6),
                Aim(
                    "as they are committed",
                    lambda f: (f / "out.jsonl.partial.sorted").exists() or None,
                ),
            ),
            where=answering_left,
            read=lambda folder: {"out.jsonl": (folder / "out.jsonl").read_text()},
        ),
        Command(
            name="convert",
            share=0.15,
            kills=3,
            arguments=lambda folder: [
                "convert",
                str(ready / "run"),
                "--to=t5x",
                f"--out={folder / 'export'}",
            ],
            is_done=lambda folder: (folder / "export").exists(),
            aims=(
                Aim(
                    "as an array is done",
                    size_of(".export.partial/.done"),
                    9,
                ),
                Aim("as it begins", names_in(".export.partial"), 3),
            ),
            where=converting_left,
            read=lambda folder: read_files(folder / "export"),
        ),
    )


def write_inputs(work: Path) -> dict[str, Any]:
    """Writes a corpus, questions, and a tokenizer."""
    from ul2.tasks.tokenizer import train_tokenizer

    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS.split(), k=40)) for _ in range(3000)]
    with (work / "corpus.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    with (work / "questions.jsonl").open("w") as file:
        for text in texts[:40]:
            file.write(json.dumps({"inputs": text[: chance.randint(10, 60)]}) + "\n")
    train_tokenizer(texts, 500, 40, work / "tokenizer.model")
    return {}
