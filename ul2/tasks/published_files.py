"""Readers of the file formats in which authors publish their data sets.

A reader yields one mapping per row and checks each against a shape, so that a broken
download is told by file and row, not by a KeyError far away:

    shape       {"question": str, "options": [str]}
    row         {"question": "2+2?", "options": ["3", 4]}
    error       aqua/test.json, row 7: options[1] is int, not str

Files are untrusted: nothing is evaluated, XML entities are refused, and memory is
bounded by the size of the file, which is bounded where it is read as a whole.
"""

import csv
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from ul2.tasks.packed_files import read_lines
from ul2.tasks.sources import too_long

Shape = type | tuple[type, ...] | list[Any] | dict[str, Any]

_MMLU_COLUMNS: Final = 6
NUMBER: Final = (int, float)
_MOST_BYTES: Final = 2**29


def read_json_lines(path: Path, shape: Shape) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file with a JSON object a line, empty lines aside."""
    with path.open("rb") as opened:
        for row, line in enumerate(read_lines(opened), start=1):
            if line is None:
                raise ValueError(f"{too_long(f'{path}, row {row}')}.")
            if line.strip():
                yield _checked(_parsed(line, path, row), shape, path, row)


def read_json_list(path: Path, shape: Shape) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file that is one JSON list."""
    rows = _parsed(_read_whole(path), path, None)
    if not isinstance(rows, list):
        raise ValueError(f"{path} is {_kind(rows)}, not a JSON list of rows.")
    for row, value in enumerate(rows, start=1):
        yield _checked(value, shape, path, row)


def read_xml_problems(path: Path, fields: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yields the `Problem` elements of an XML file: attributes and texts of children.

    <Problem ID="1"><Body>Two.</Body></Problem>  ->  {"ID": "1", "Body": "Two."}

    Args:
        path: the file.
        fields: attributes or children that every problem must have.
    """
    try:
        tree = ET.parse(path, ET.XMLParser(target=_BuilderWithoutDoctype()))
    # LookupError, ValueError: an encoding that does not exist, or is none of text.
    except (ET.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is not XML: {error}.") from None
    except _DoctypeError:
        message = "has a DOCTYPE, which may define entities; remove it"
        raise ValueError(f"{path} {message}.") from None
    shape = dict.fromkeys(fields, str)
    for row, problem in enumerate(tree.iter("Problem"), start=1):
        values = dict(problem.attrib)
        values |= {child.tag: (child.text or "").strip() for child in problem}
        yield _checked(values, shape, path, row)


def read_mmlu(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of one of MMLU's files: question, four choices, a letter.

    test/anatomy_test.csv: What beats?,Liver,Heart,Lung,Skin,B
    ->  {"subject": "anatomy", "question": "What beats?",
         "choices": ["Liver", "Heart", "Lung", "Skin"], "answer": "B"}
    """
    subject = path.stem.rpartition("_")[0]
    for row, values in _csv_rows(path):
        if len(values) != _MMLU_COLUMNS:
            message = f"{len(values)} columns, not {_MMLU_COLUMNS}"
            raise ValueError(f"{path}, row {row}: {message}.")
        question, *choices, answer = values
        if answer not in ("A", "B", "C", "D"):
            message = f"the answer is {answer[:20]!r}, not one of A, B, C, D"
            raise ValueError(f"{path}, row {row}: {message}.")
        yield {
            "subject": subject,
            "question": question,
            "choices": choices,
            "answer": answer,
        }


class _DoctypeError(Exception):
    """The XML file declares a document type."""


class _BuilderWithoutDoctype(ET.TreeBuilder):
    """Stops at a DOCTYPE: without one, XML has no entities that could expand."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        """Refuses. The parser calls this before it reads what the DOCTYPE declares."""
        del name, pubid, system
        raise _DoctypeError


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not empty, with their numbers; a row may have lines."""
    row = 0
    try:
        lines = io.StringIO(_read_whole(path).decode("utf-8"), newline="")
        for row, values in enumerate(csv.reader(lines), start=1):
            if values:
                yield row, values
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from None
    except csv.Error as error:
        raise ValueError(f"{path}, row {row + 1} is not CSV: {error}.") from None


def _read_whole(path: Path) -> bytes:
    """Returns the content of a file, all of which has to be in memory at once."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES:,} bytes; split it.")
    return path.read_bytes()


def _parsed(text: bytes, path: Path, row: int | None) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    # RecursionError: thousands of nested brackets. UnicodeDecodeError is a ValueError.
    except (ValueError, RecursionError) as error:
        place = f"{path}" if row is None else f"{path}, row {row}"
        raise ValueError(f"{place} is not JSON: {error}.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _checked(value: Any, shape: Shape, path: Path, row: int) -> Any:
    problem = _misfit(value, shape, "")
    if problem:
        raise ValueError(f"{path}, row {row}: {problem}.")
    return value


def _misfit(value: Any, shape: Shape, name: str) -> str | None:
    """Returns how a value differs from a shape, or None."""
    if isinstance(shape, dict):
        return _misfit_object(value, shape, name)
    if isinstance(shape, list):
        return _misfit_list(value, shape[0], name)
    types = shape if isinstance(shape, tuple) else (shape,)
    # True is an int for Python, but no number of a data set.
    if type(value) in types:
        return None
    allowed = " or ".join(kind.__name__ for kind in types)
    return f"{name} is {_kind(value)}, not {allowed}"


def _misfit_object(value: Any, shape: dict[str, Any], name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{name or 'the row'} is {_kind(value)}, not an object"
    for key, inner in shape.items():
        place = f"{name}.{key}" if name else key
        if key not in value:
            return f"{place} is missing"
        problem = _misfit(value[key], inner, place)
        if problem:
            return problem
    return None


def _misfit_list(value: Any, shape: Shape, name: str) -> str | None:
    if not isinstance(value, list):
        return f"{name} is {_kind(value)}, not a list"
    problems = (
        _misfit(item, shape, f"{name}[{index}]") for index, item in enumerate(value)
    )
    return next((problem for problem in problems if problem), None)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
