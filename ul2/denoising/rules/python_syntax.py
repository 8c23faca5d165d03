"""Subtrees of Python's syntax, as in AST-T5 (2401.03003): no span cuts an expression.

    ul2 train --import_module=ul2.denoising.rules.python_syntax ...
    ('syntax', 'X', 5, 0.25, 'python_syntax', 1)

Spans are the largest subtrees of at most so many tokens, a number drawn from 5 to 100
for each text. A window of text begins and ends anywhere, so what does not parse as a
whole is tried line by line; what is no Python then stays as it is. Where the number is
small, spans run out before tokens do: that text is masked less.
"""

import ast
import itertools
import re
import warnings
from collections.abc import Iterator

import numpy as np

from ul2.denoising.span_rules import Budget, Spans, Text, span_rule

# Where a statement that is not indented begins.
_STATEMENT = re.compile(r"(?m)^(?![\s)\]}]|(?:else|elif|except|finally)\b)")


@span_rule("python_syntax")
def python_syntax(text: Text, budget: Budget, rng: np.random.Generator) -> Spans:
    """Returns the largest subtrees below a size, in any order."""
    del budget
    most = int(rng.integers(5, 101))
    whole = text.cover(_nodes(text.string))
    small = whole[whole[:, 1] - whole[:, 0] <= most]
    # Outer ones come before those inside them, so the first to cover a token is it.
    outer, covered = [], np.zeros(len(text.tokens), bool)
    for first, last in small[np.argsort(small[:, 0] - small[:, 1], kind="stable")]:
        if not covered[first:last].any():
            covered[first:last] = True
            outer.append((first, last))
    return rng.permutation(np.array(outer, np.int64).reshape(-1, 2))


def _nodes(string: str) -> Iterator[tuple[int, int]]:
    """Yields the characters of every node of whatever parses."""
    starts = [match.start() for match in _STATEMENT.finditer(string)]
    for first, last in itertools.pairwise([0, *starts, len(string)]):
        found = _parse(string[first:last], first)
        for line in () if found else re.finditer(r"\S.*", string[first:last]):
            at = first + line.start()
            # The first line of a compound statement needs something in it.
            found += _parse(line[0], at) or _parse(line[0], at, body=" pass")
        yield from found


def _parse(code: str, at: int, body: str = "") -> list[tuple[int, int]]:
    """Returns the characters of every node, if this is Python; it begins at `at`."""
    end = at + len(code)
    code = code.replace("\r", " ") + body
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    lines = code.split("\n")
    starts = list(itertools.accumulate((len(line) + 1 for line in lines), initial=at))

    def place(line: int, column: int) -> int:
        # Columns are bytes of UTF-8.
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    # Before Python 3.12, places inside an f-string are not those of the file.
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inside = {id(node) for one in strings for node in ast.walk(one) if node is not one}
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt | ast.expr) and id(node) not in inside
    ]
    found = [
        (
            place(node.lineno, node.col_offset),
            place(node.end_lineno or node.lineno, node.end_col_offset or 0),
        )
        for node in nodes
    ]
    return [(first, last) for first, last in found if last <= end]
