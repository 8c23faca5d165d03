r"""`read_examples`: the examples of a task, by its name, few-shot prompts included.

    read_examples("super_glue_boolq", "validation", shots=1)
    TextExample(inputs="boolq passage: ... True\n\nboolq passage: ...", targets=...)

Rows come from TFDS, from files as their authors publish them, or from a user's seqio
task. The order is the data set's, so a number stands for the same example every time.
Files need no TensorFlow.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ul2.tasks import registry
from ul2.tasks.few_shot import Exemplars, add_exemplars
from ul2.tasks.text_task import Files, Function, Row, Seqio, TextExample, TextTask
from ul2.tasks.tfds_rows import make_plain, read_tfds

DATA_DIR_VARIABLE: Final = "UL2_DATA_DIR"
# Exemplars are drawn from so many training examples, the first: TFDS has shuffled them,
# and half a million need not be read for five.
_EXEMPLAR_POOL: Final = 10_000


def read_examples(
    name: str | TextTask,
    split: str,
    *,
    shots: int = 0,
    seed: int = 0,
    limit: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    shots_per: str = "task",
    infill: bool = False,
) -> Iterator[TextExample]:
    """Returns the examples of a split, in order.

    Args:
        name: of the task, or the task itself.
        split: train, validation or test.
        shots: exemplars from the training split in front of each example.
        seed: of the exemplars.
        limit: the first so many examples; None for all.
        data_dir: where data sets lie; None for TFDS's own place and UL2_DATA_DIR.
        shots_per: "task" draws the exemplars once, "example" for each example anew.
        infill: end the inputs with a blank, which decoding turns into a sentinel.

    Raises:
        ValueError: there is no such task or split, its data is not there, or, while
            reading, a row does not fit.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"{limit=} must be at least 1 (--limit).")
    task = registry.find(name) if isinstance(name, str) else name
    _check_split(task, split, "--split")
    place = None if data_dir is None else Path(data_dir)
    exemplars = None
    if shots:
        _check_split(task, "train", f"exemplars: --shots={shots}")
        pool = itertools.islice(_read(task, "train", place), _EXEMPLAR_POOL)
        share = task.exemplars_share
        exemplars = Exemplars(pool, shots, seed, shots_per, share)
    examples = itertools.islice(_read(task, split, place), limit)
    return add_exemplars(examples, exemplars, infill=infill)


def _check_split(task: TextTask, split: str, wanted_by: str) -> None:
    """Refuses a split that a task does not have."""
    if split not in task.source.splits:
        raise ValueError(
            f"task {task.name!r} has no split {split!r}, only "
            f"{', '.join(task.source.splits)} ({wanted_by})."
        )


def _read(task: TextTask, split: str, data_dir: Path | None) -> Iterator[TextExample]:
    """Returns the examples of all rows of a split; its data is looked for now."""
    return _make_examples(task, split, _read_rows(task, split, data_dir))


def _make_examples(
    task: TextTask, split: str, rows: Iterator[Row]
) -> Iterator[TextExample]:
    """Yields the examples of rows."""
    for number, row in enumerate(rows, 1):
        try:
            yield from list(task.examples_of(row, split))
        except KeyError as error:
            raise _misfit(
                task, split, number, f"no field {error}, only {list(row)[:12]}"
            ) from None
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise _misfit(task, split, number, str(error)) from None


def _misfit(task: TextTask, split: str, number: int, problem: str) -> ValueError:
    problem = problem.rstrip(".")
    return ValueError(
        f"task {task.name!r}, split {split!r}, row {number} does not fit the task: "
        f"{problem}."
    )


def _read_rows(task: TextTask, split: str, data_dir: Path | None) -> Iterator[Row]:
    """Yields the rows of a split."""
    source = task.source
    if isinstance(source, Files):
        return _read_files(task.name, source, split, data_dir)
    if isinstance(source, Function):
        return iter(source.read(source.splits[split]))
    if isinstance(source, Seqio):
        # seqio is there: the task was found in its registry.
        from ul2.tasks.seqio_text import read_rows

        return map(make_plain, read_rows(source.name, source.splits[split]))
    return read_tfds(source, split, data_dir)


def _read_files(
    name: str, source: Files, split: str, data_dir: Path | None
) -> Iterator[Any]:
    """Returns the rows of the files of a split, in the order of their names."""
    root = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    wanted = f"{source.folder}/{source.splits[split]}"
    if not root:
        raise ValueError(
            f"task {name!r} reads {wanted} below the folder of data sets; get it from "
            f"{source.home} and set {DATA_DIR_VARIABLE} (--data_dir)."
        )
    folder = Path(root) / source.folder
    files = sorted(path for path in folder.glob(source.splits[split]) if path.is_file())
    if not files:
        raise ValueError(
            f"task {name!r}: no file {Path(root) / wanted}; get it from {source.home}."
        )
    return itertools.chain.from_iterable(_read_file(source, path) for path in files)


def _read_file(source: Files, path: Path) -> Iterator[Any]:
    """Yields the rows of a file."""
    try:
        yield from source.read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from None
