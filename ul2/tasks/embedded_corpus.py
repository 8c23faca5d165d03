"""Real English that every machine has: the documentation inside Python itself.

About two megabytes for a first run without a network: the docstrings of the standard
library, one document per module and per class, and the language reference that
`help('topics')` shows. The files are parsed, never imported. Order and content depend
on the Python version alone.
"""

import ast
import functools
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_SKIPPED_DIRECTORIES: Final = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
)
_TOPICS: Final = "pydoc_data/topics.py"
# Shorter ones are a name and half a sentence.
_MIN_CHARACTERS: Final = 200

_Definition = ast.FunctionDef | ast.AsyncFunctionDef


class Passage(NamedTuple):
    """One document of the corpus: its text, and the file and line it comes from."""

    text: str
    file: str
    line: int


def read_embedded_corpus() -> tuple[Passage, ...]:
    """Returns the documents in the order of their files and lines.

    Raises:
        ValueError: this Python ships without its source files.
    """
    return _read(Path(sysconfig.get_path("stdlib")))


# Two seconds of parsing, for every epoch and every split that asks.
@functools.cache
def _read(root: Path) -> tuple[Passage, ...]:
    """Reads the corpus from the source tree at `root`."""
    return tuple(_passages(root))


def _passages(root: Path) -> Iterator[Passage]:
    """Yields the documents of the source tree at `root`."""
    files = sorted(
        file.relative_to(root).as_posix()
        for file in root.rglob("*.py")
        if _SKIPPED_DIRECTORIES.isdisjoint(file.relative_to(root).parts)
    )
    if not files:
        raise ValueError(
            f"the embedded corpus needs the source files of Python, and {root} has "
            "none; name text files of your own with --text."
        )
    for file in files:
        tree = _parse(root / file)
        if tree is None:
            continue
        passages = _topics(tree) if file == _TOPICS else _module(tree, file)
        for text, line in passages:
            if len(text) >= _MIN_CHARACTERS:
                yield Passage(text, file, line)


def _parse(file: Path) -> ast.Module | None:
    """Returns the syntax tree of a file; none for one that is no valid Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return None


def _topics(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yields the texts of the dictionary that `help('topics')` reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value.strip("\n"), value.lineno


def _module(tree: ast.Module, file: str) -> Iterator[tuple[str, int]]:
    """Yields a module's document, then those of its classes."""
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    yield _describe(name, tree), 1
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield _describe(f"{name}.{node.name}", node), node.lineno


def _describe(title: str, node: ast.Module | ast.ClassDef) -> str:
    """Returns the docstring of a module or class and those of its functions.

    Empty where nothing is documented.
    """
    parts = [_docstring(node)]
    for child in node.body:
        if isinstance(child, _Definition) and (text := _docstring(child)):
            parts.append(f"{child.name}({ast.unparse(child.args)})\n\n{text}")
    documented = [part for part in parts if part]
    return "\n\n".join([title, *documented]) if documented else ""


def _docstring(node: ast.Module | ast.ClassDef | _Definition) -> str:
    """Returns a docstring without its doctests."""
    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph
        for paragraph in paragraphs
        if not paragraph.lstrip().startswith(">>>")
    ).strip("\n")
