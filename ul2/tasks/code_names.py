"""`docstring_to_name`: what a function is called, given its documentation.

    inputs      name this function: Return the largest of the given numbers.
    targets     find maximum

Real text that every machine has: the functions of the libraries that ul2 itself needs.
Their files are parsed, never imported. Whole modules are held out, by a hash of their
name; what remains identical in both parts is left out of the held-out one. Content
depends on the versions of the libraries alone.

The name is written as its words. One whose name stands in its documentation is left
out: copying is not the task.
"""

import ast
import collections
import functools
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ul2.tasks import registry
from ul2.tasks.text_task import Function, Row, TextExample, TextTask

# Folders of the libraries that `pip install ul2` brings, and none that it does not.
PACKAGES: Final = (
    *("absl", "flax", "gin", "grain", "jax", "jaxtyping", "numpy", "optax", "orbax"),
    *("rich", "sentencepiece", "tensorboard"),
)
_SPLITS: Final = ("train", "validation")
_HELD_OUT_PERCENT: Final = 10
_MIN_WORDS: Final = 4
_MAX_CHARACTERS: Final = 400
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def read_rows(split: str) -> tuple[Row, ...]:
    """Returns the functions of a split, in the order of their files and lines.

    Raises:
        ValueError: the libraries are installed without their source files.
    """
    return _read(Path(sysconfig.get_path("purelib")))[split]


# Some seconds of parsing, for every split and every run that asks.
@functools.cache
def _read(root: Path) -> dict[str, tuple[Row, ...]]:
    """Reads the functions of all libraries below `root`."""
    found: dict[str, list[Row]] = {split: [] for split in _SPLITS}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            module = file.relative_to(root).as_posix()
            found[_split_of(module)] += _functions(file, module)
    if not all(found.values()):
        raise ValueError(
            f"docstring_to_name needs the source files of the installed libraries, and "
            f"{root} has none."
        )
    known = {row["documentation"] for row in found["train"]}
    held_out = [r for r in found["validation"] if r["documentation"] not in known]
    return {
        "train": tuple(_once(found["train"])),
        "validation": tuple(_once(held_out)),
    }


def _split_of(module: str) -> str:
    """Returns the split of a module."""
    digest = hashlib.blake2b(module.encode(), digest_size=8).digest()
    held_out = int.from_bytes(digest, "little") % 100 < _HELD_OUT_PERCENT
    return "validation" if held_out else "train"


def _once(rows: Iterable[Row]) -> Iterator[Row]:
    """Yields the rows that are not repeated."""
    seen = set()
    for row in rows:
        key = row["documentation"], row["name"]
        if key not in seen:
            seen.add(key)
            yield row


def _functions(file: Path, module: str) -> Iterator[Row]:
    """Yields the documented functions of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for node in sorted(nodes, key=lambda node: node.lineno):
        words = words_of(node.name)
        text = _first_paragraph(node)
        if node.name.startswith("__") or not words or len(text.split()) < _MIN_WORDS:
            continue
        if node.name.strip("_").lower() in text.lower():
            continue
        yield {
            "name": " ".join(words),
            "documentation": text,
            "source": f"{module}:{node.lineno}",
        }


def words_of(name: str) -> list[str]:
    """Returns the words of a name: get_HTTPServer2 -> get http server 2."""
    return [word.lower() for word in _WORD.findall(name)]


def _first_paragraph(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Returns the first paragraph of a docstring as one line."""
    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
    return " ".join(text.split("\n\n")[0].split())[:_MAX_CHARACTERS]


def _to_examples(row: Row) -> Iterator[TextExample]:
    yield TextExample(
        inputs=f"name this function: {row['documentation']}",
        targets=row["name"],
        meta={"source": row["source"]},
    )


def _exact_match(
    targets: Sequence[Any], predictions: Sequence[Any]
) -> dict[str, float]:
    """Returns how many names are right in every word."""
    hits = [target == found for target, found in zip(targets, predictions, strict=True)]
    return {"exact_match": 100 * sum(hits) / len(hits)}


def _word_f1(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Returns the F1 of the words of a name, on average."""
    scores = []
    for target, found in zip(targets, predictions, strict=True):
        wanted, given = (collections.Counter(text.split()) for text in (target, found))
        shared = sum((wanted & given).values())
        total = sum(wanted.values()) + sum(given.values())
        scores.append(2 * shared / total)
    return {"word_f1": 100 * sum(scores) / len(scores)}


DOCSTRING_TO_NAME: Final = TextTask(
    name="docstring_to_name",
    source=Function(splits={split: split for split in _SPLITS}, read=read_rows),
    to_examples=_to_examples,
    metrics=(_exact_match, _word_f1),
    validation_metric="word_f1",
    inputs_length=128,
    targets_length=16,
)
# Not among the tasks that are there by themselves: what it holds depends on what is
# installed. `--import_module=ul2.tasks.code_names` makes it known.
registry.register(DOCSTRING_TO_NAME)
