"""Where text is from, in few words: files of a store, or the folders they lie in."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

OTHERS: Final = "others"
_MOST_KINDS: Final = 8


def source_kinds(sources: Sequence[str]) -> dict[str, str]:
    """Returns what each source is called, at most eight names in all.

        wiki/part-0001.jsonl  wiki/part-0002.jsonl  books/a.txt  books/b.txt
        wiki/part             wiki/part             books/a      books/b

    Files that differ by a number are one source. Where that leaves too many, folders
    are; where these are too many as well, the largest have names.

    Args:
        sources: of examples, each as often as it has some; decides which are largest.
    """
    names: dict[str, str] = {}
    for named in (_stem, _folder):
        names = {source: named(source) for source in sources}
        if len(set(names.values())) <= _MOST_KINDS:
            break
    else:
        counts = Counter(names[source] for source in sources)
        kept = {name for name, _ in counts.most_common(_MOST_KINDS - 1)}
        names = {s: n if n in kept else OTHERS for s, n in names.items()}
    names = {s: n if n == OTHERS else _below(n, names) for s, n in names.items()}
    # The largest comes first, and what is left over last.
    counts = Counter(names[source] for source in sources)
    order = sorted(counts, key=lambda name: (name == OTHERS, -counts[name], name))
    return dict(sorted(names.items(), key=lambda pair: order.index(pair[1])))


def _below(name: str, names: Mapping[str, str]) -> str:
    """Returns a name without the folders that all have in common."""
    folders = [str(PurePosixPath(n).parent) for n in names.values() if n != OTHERS]
    common = os.path.commonpath(folders) if len(set(map(_root, folders))) == 1 else ""
    return str(PurePosixPath(name).relative_to(common)) if common else name


def _root(folder: str) -> str:
    """Returns what folders need to share to have anything in common."""
    return PurePosixPath(folder).parts[0] if PurePosixPath(folder).parts else ""


def _stem(source: str) -> str:
    """Returns a file without its endings, and without the number of a part."""
    path = PurePosixPath(source)
    stem = path.name.split(".")[0] or path.name
    stem = re.sub(r"[-_]?\d+([-_]?of[-_]?\d+)?$", "", stem) or stem
    return str(path.parent / stem)


def _folder(source: str) -> str:
    return str(PurePosixPath(source).parent)
