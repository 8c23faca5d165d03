"""What is evaluated: checkpoints, their steps, and a fingerprint of each."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ul2.training import run_directory
from ul2.training.best import best_step
from ul2.training.checkpoints import checkpoints_dir, is_step_dir, step_dir, steps_in

# Bytes of each file that a fingerprint reads: parameters of 20B are 40 GB.
_HEAD: Final = 4096
_T5X: Final = re.compile(r"checkpoint_(\d+)")


class Candidate(NamedTuple):
    """A checkpoint to evaluate.

    Attributes:
        path: as the user gave it.
        step: which of several; None for the newest, or the only one.
        label: what tables call it.
        is_run: it is a run of ours, so its scores go beside its training curves.
    """

    path: Path
    step: int | None
    label: str
    is_run: bool


def find_candidates(
    paths: Sequence[str], steps: Sequence[int] | str | None = None
) -> list[Candidate]:
    """Returns the checkpoints to evaluate, in order.

    Args:
        paths: of runs of ours, T5X or Hugging Face directories.
        steps: of each; "all", "best" by the run's own evaluations, or None for the
            newest.

    Raises:
        ValueError: there is nothing at a path, or not that step.
    """
    found = []
    for given in paths:
        path = Path(given).expanduser()
        if not path.exists():
            raise ValueError(f"--checkpoint={given} does not exist.")
        is_run = run_directory.has_checkpoint(path)
        found += [
            Candidate(path, step, _label(path, step, paths), is_run)
            for step in _choose_steps(path, steps)
        ]
    labels = [one.label for one in found]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is given twice by --checkpoint.")
    return found


def _choose_steps(path: Path, steps: Sequence[int] | str | None) -> list[int | None]:
    """Returns which checkpoints of a path are meant.

    Raises:
        ValueError: one of them is not there.
    """
    there = steps_of(path)
    if steps is None:
        return [there[-1] if there else None]
    if steps == "best":
        return [best_step(checkpoints_dir(path).parent)]
    chosen = there if isinstance(steps, str) else steps
    if not chosen or not set(chosen) <= set(there):
        wanted = ",".join(map(str, chosen)) or "all"
        raise ValueError(
            f"--step={wanted}: {path} holds the steps {there or 'of no run'}."
        )
    return [*chosen]


def steps_of(path: Path) -> list[int]:
    """Returns the steps of which there are checkpoints: ours, or T5X's."""
    if is_step_dir(path) or run_directory.has_checkpoint(path):
        return steps_in(path)
    matches = (
        [_T5X.fullmatch(one.name) for one in path.iterdir()] if path.is_dir() else []
    )
    return sorted(int(match[1]) for match in matches if match)


def fingerprint(candidate: Candidate) -> str:
    """Returns a hash of the files of a checkpoint: names, sizes and first bytes.

    Another checkpoint gets another hash; a copy of this one gets the same.
    """
    digest = hashlib.sha256()
    folder = _folder(candidate)
    for file in _files(folder):
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
        name = file.relative_to(folder).as_posix() if file != folder else file.name
        digest.update(f"{name}\0{file.stat().st_size}\0".encode() + head)
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    yield from sorted(file for file in folder.rglob("*") if file.is_file())


def _folder(candidate: Candidate) -> Path:
    """Returns where the files of one checkpoint are."""
    if candidate.is_run:
        assert candidate.step is not None
        return step_dir(candidate.path, candidate.step)
    of_step = candidate.path / f"checkpoint_{candidate.step}"
    return of_step if of_step.exists() else candidate.path


def _label(path: Path, step: int | None, paths: Sequence[str]) -> str:
    """Returns the shortest end of a path that no other path ends in, and the step."""
    mine = path.resolve()
    if is_step_dir(mine):
        mine = mine.parents[1]
    others = {Path(other).expanduser().resolve() for other in paths} - {path.resolve()}
    parts = mine.parts
    name = next(
        (
            "/".join(parts[-size:])
            for size in range(1, len(parts))
            if not any(other.parts[-size:] == parts[-size:] for other in others)
        ),
        str(mine),
    )
    return name if step is None else f"{name}@{step}"
