"""The table of readers: a valid input of each, and how all of it is read."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Toys that make valid inputs stand beside the tests of what they are of.
for folder in ("", "data", "interop", "evaluation"):
    sys.path.append(str(TESTS / folder))

ROOT = TESTS.parent


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of foreign input.

    Attributes:
        name: of the reader.
        make: writes a valid input into an empty folder.
        read: reads all of it, as the package does.
        repair: makes checksums fit again, so that what they cover is read, too.
        share: inputs of a campaign, as a multiple of those of a slow reader.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], None]
    repair: Callable[[Path], None] | None = None
    share: int = 1


READERS: dict[str, Reader] = {}


def reader(
    name: str,
    make: Callable[[Path], None],
    *,
    repair: Callable[[Path], None] | None = None,
    share: int = 1,
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Registers what follows as a reader."""

    def register(read: Callable[[Path], None]) -> Callable[[Path], None]:
        READERS[name] = Reader(name, make, read, repair, share)
        return read

    return register


def json_of(file: Path) -> dict[str, object] | None:
    if not is_small(file):
        return None
    try:
        tree = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def is_small(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_size < 2**20
    except (OSError, ValueError):  # a name that is too long, or holds a zero
        return False


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
