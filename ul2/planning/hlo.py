"""Compiled HLO as text, read into instructions and how often each of them runs.

XLA's own cost analysis counts a loop's body once. Here every computation knows how
often it runs: the entry once, a loop's body as often as the loop turns, whatever is
called (fusions, branches, asynchronous computations) as often as its callers.

    while(%t), condition=%c, body=%b     %b runs 32 times as often as the caller if
                                         %c says i < 32, i starts at 0 and %b adds 1
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

_HEADER: Final = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION: Final = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE: Final = re.compile(r" ([a-z][\w\-]*)\(")
_NAME: Final = re.compile(r"%([\w.\-]+)")
_ARRAY: Final = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED: Final = re.compile(
    r"\b(?:calls|to_apply|true_computation|false_computation|called_computations"
    r"|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_WHILE: Final = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS: Final = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LITERAL: Final = re.compile(r" constant\((-?\d+)\)")
_INDEX: Final = re.compile(r"\bindex=(\d+)")
_SAME: Final = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
_SIZES: Final = {"pred": 1, "c64": 8, "c128": 16, "token": 0, "opaque": 0}


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.dims) * dtype_bytes(self.dtype)


@functools.cache
def dtype_bytes(dtype: str) -> int:
    """Returns the bytes of one element; four-bit types count as whole bytes.

    bf16 -> 2, s32 -> 4, f8e4m3fn -> 1
    """
    if dtype in _SIZES:
        return _SIZES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return max(1, int(bits[1]) // 8) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without the percent sign.
        opcode: such as `all-gather-start`.
        is_root: whether it is what its computation returns.
        line: all of it.
        start: where the opcode stands in the line.
    """

    name: str
    opcode: str
    is_root: bool
    line: str
    start: int

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its result, in order."""
        shape = self.line[self.line.index(" = ") + 3 : self.start]
        return [
            Array(dtype, tuple(map(int, dims.split(","))) if dims else ())
            for dtype, dims in _ARRAY.findall(shape)
        ]

    @property
    def operands(self) -> list[str]:
        """Names of what it reads."""
        depth = 0
        first = self.line.index("(", self.start)
        for place in range(first, len(self.line)):
            depth += {"(": 1, ")": -1}.get(self.line[place], 0)
            if not depth:
                return _NAME.findall(self.line[first:place])
        return []

    @property
    def op_name(self) -> str:
        """What in the program it was made from."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """Computations that run once each time it runs."""
        if self.opcode.endswith(("-done", "-update")):
            return []  # what was started runs once
        names = []
        for several, one in _CALLED.findall(self.line):
            names += [one] if one else re.findall(r"[\w.\-]+", several)
        return names


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions."""

    name: str
    is_entry: bool
    instructions: list[Instruction]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Finds an instruction."""
        return {one.name: one for one in self.instructions}

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(one for one in reversed(self.instructions) if one.is_root)

    def resolve(self, name: str) -> Instruction | None:
        """Returns what a value really is, looking through copies of it."""
        found = self.by_name.get(name)
        while found is not None and found.opcode in _SAME:
            found = self.by_name.get(found.operands[0])
        return found

    def literal(self, name: str) -> int | None:
        """Returns the number that a value is, if it is one."""
        found = self.resolve(name)
        literal = _LITERAL.search(found.line) if found else None
        return int(literal[1]) if literal else None

    def element(self, name: str) -> int | None:
        """Returns which element of the computation's argument a value is."""
        found = self.resolve(name)
        if found is None or found.opcode != "get-tuple-element":
            return None
        index = _INDEX.search(found.line)
        return int(index[1]) if index else None


class Module:
    """A compiled program.

    Attributes:
        computations: by name, callees first.
        runs: how often each runs when the program runs once.
        unread_loops: names of loops whose number of turns is not known; they count
            once.
    """

    def __init__(self, text: str) -> None:
        self.computations = {one.name: one for one in _read(text)}
        self.unread_loops: list[str] = []
        self.runs: dict[str, int] = collections.Counter()
        self.fused: set[str] = set()
        # Callees stand above their callers, so from below every caller is known.
        for computation in reversed(list(self.computations.values())):
            runs = 1 if computation.is_entry else self.runs[computation.name]
            self.runs[computation.name] = runs
            if runs:
                self._count_calls(computation, runs)

    def _count_calls(self, computation: Computation, runs: int) -> None:
        for one in computation.instructions:
            if one.opcode == "while":
                loop = _WHILE.search(one.line)
                assert loop, one.line[:200]
                turns = self.turns(computation, one)
                if turns is None:
                    self.unread_loops.append(one.name)
                for name in loop.groups():
                    self.runs[name] += runs * (1 if turns is None else turns)
                continue
            for name in one.called:
                self.runs[name] += runs
                if one.opcode == "fusion":
                    self.fused.add(name)

    def turns(self, computation: Computation, loop: Instruction) -> int | None:
        """Returns how often a loop turns; None where nothing says so.

        CPU and GPU compilers write it down; TPU's leaves it to the condition.
        """
        known = _TRIPS.search(loop.line)
        if known:
            return int(known[1])
        names = _WHILE.search(loop.line)
        assert names
        bound = _bound(self.computations[names[1]])
        if bound is None:
            return None
        index, limit = bound
        first = _first(computation, loop, index)
        step = _step(self.body(loop), index)
        if first is None or step is None:
            return None
        return max(0, -(-(limit - first) // step))

    def body(self, loop: Instruction) -> Computation:
        """Returns what a loop does each time it turns."""
        names = _WHILE.search(loop.line)
        assert names
        return self.computations[names[2]]

    def instructions(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yields every instruction that runs, where it stands, and how often."""
        for computation in self.computations.values():
            runs = self.runs[computation.name]
            if runs:
                for one in computation.instructions:
                    yield computation, one, runs


def _read(text: str) -> Iterator[Computation]:
    """Yields the computations of a module's text."""
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if not line or line[0] == "}":
            current = None
        elif line[0] != " ":
            header = _HEADER.match(line)
            if header:
                current = []
                yield Computation(header[2], header[1] is not None, current)
        elif current is not None:
            head = _INSTRUCTION.match(line)
            opcode = _OPCODE.search(line, head.end() - 1) if head else None
            if head and opcode:
                root, name = head[1] is not None, head[2]
                current.append(Instruction(name, opcode[1], root, line, opcode.start()))


def _bound(condition: Computation) -> tuple[int, int] | None:
    """Returns (element, limit) of `element < limit`."""
    root = condition.root
    if root.opcode != "compare":
        return None
    left, right = root.operands
    if "direction=GT" in root.line:
        left, right = right, left
    elif "direction=LT" not in root.line:
        return None
    index, limit = condition.element(left), condition.literal(right)
    return None if index is None or limit is None else (index, limit)


def _first(computation: Computation, loop: Instruction, index: int) -> int | None:
    """Returns what an element of a loop's state is at first."""
    state = computation.resolve(loop.operands[0])
    if state is None or state.opcode != "tuple":
        return None
    return computation.literal(state.operands[index])


def _step(body: Computation, index: int) -> int | None:
    """Returns what a turn adds to an element of a loop's state."""
    root = body.root
    if root.opcode != "tuple":
        return None
    added = body.resolve(root.operands[index])
    if added is None or added.opcode != "add":
        return None
    return _increment(body, added.operands, index)


def _increment(body: Computation, terms: Sequence[str], index: int) -> int | None:
    """Returns the number among the terms of a sum; its other term is the element."""
    for term, other in (terms, terms[::-1]):
        number = body.literal(term)
        if number and body.element(other) == index:
            return number
    return None
