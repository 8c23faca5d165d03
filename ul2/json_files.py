"""JSON that may come from anywhere: small, whole, of the kind that is wanted.

Python's reader raises three kinds of errors at damaged text (one of them at a thousand
brackets) and reads a file of any size. Here all are a `ValueError` in one line.
"""

import json
from pathlib import Path
from typing import Any, Final

# Of files that say what others are; what holds data has its own limits.
MOST_BYTES: Final = 2**24


def parse(content: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
        ValueError: it is no JSON; says where.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error.reason})") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})") from None


def read(file: Path, *, most_bytes: int = MOST_BYTES) -> Any:
    """Returns the value in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or larger than such files are; does not name it.
    """
    if file.stat().st_size > most_bytes:
        raise ValueError(f"it has more than {most_bytes:,} bytes")
    return parse(file.read_bytes())


def read_object(file: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: as of `read`, or it holds something else.
    """
    found = read(file, most_bytes=most_bytes)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """Returns the object in a line; None for half a line, or anything else."""
    try:
        found = parse(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
