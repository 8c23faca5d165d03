"""The external calculator of chain-of-thought prompting, without `eval`.

The chain-of-thought paper (arXiv 2201.11903) evaluates the equations of a written
rationale and carries right results forward by matching strings. So does `recompute`:

    3 + 4 * 2 = 14, and 14 - 1 = 12. The answer is 12.
    3 + 4 * 2 = 11, and 11 - 1 = 10. The answer is 10.

An equation is an expression with at least one operation, `=`, and one number after
which no expression goes on. The text is read from left to right:

1.  A number that an earlier equation got wrong is replaced by that equation's right
    result wherever it stands as a whole number further on: in equations, in words and
    in the final answer. A number that merely happens to be the same is replaced, too;
    that is what matching strings means.
2.  Then the expression is evaluated. Where the written result is wrong, the right one
    is written instead, and carried forward from there on. Once a later equation
    rightly has that number as its own result, it means itself again.

A result with decimals is right if it is the value rounded to as many; one without must
be exact. What cannot be evaluated stays as it is: divisions by zero, percentages, units
between the numbers, anything too long. A negative result that is wrong is put right but
not carried forward.

Arithmetic is exact (fractions). There are no exponents, and terms, digits and depth are
bounded, so the work is linear in the length of the text.
"""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

MAX_DIGITS: Final = 15
MAX_TERMS: Final = 64
MAX_DEPTH: Final = 8
# Decimals that are written of a result that needs more.
_DECIMALS: Final = 4

_TOKEN: Final = re.compile(
    r"""
      (?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
    | (?P<operator>[-+*/\u00d7\u00f7\u2212]|(?<=[0-9)\s])[xX](?=\s*[0-9.($]))
    | (?P<parenthesis>[()])
    | (?P<equals>=)
    | (?P<space>[ \t$]+)            # a dollar sign changes nothing
    | (?P<other>[^\W\d]\w*|.)       # ends an expression; a whole word at once
    """,
    re.VERBOSE | re.DOTALL,
)
_ORDINAL: Final = re.compile(r"(st|nd|rd|th)\b")
_MINUS: Final = "\u2212"
_ASCII: Final = str.maketrans(
    {"\u00d7": "*", "x": "*", "X": "*", "\u00f7": "/", _MINUS: "-"}
)
_PRECEDENCE: Final = {"+": 1, "-": 1, "*": 2, "/": 2}


class _Token(NamedTuple):
    """A piece of a text, and what it is."""

    kind: str
    text: str


class _Equation(NamedTuple):
    """Where an equation stands: `[start, equals)` is the expression."""

    start: int
    equals: int
    sign: int | None  # of the result, if it has one


def recompute(text: str) -> str:
    """Returns a rationale with its wrong equations put right; see the module."""
    tokens = _split(text)
    equations = dict(_equations(tokens))
    shown = [token.text for token in tokens]
    right: dict[Fraction, str] = {}
    for index, token in enumerate(tokens):
        number = _read(token.text) if token.kind == "number" else None
        if number is None or _is_ordinal(tokens, index):
            continue
        equation = equations.get(index)
        value = None
        if equation is not None:
            value = evaluate("".join(shown[equation.start : equation.equals]))
        if equation is None or value is None:
            shown[index] = right.get(number, token.text)
        elif _is_right(-number if equation.sign else number, token.text, value):
            right.pop(number, None)
        else:
            _correct(shown, index, equation.sign, value)
            right.pop(abs(value), None)
            if equation.sign is None:
                right[number] = shown[index]
    return "".join(shown)


def evaluate(expression: str) -> Fraction | None:
    """Returns the value of an expression, or None where it has none.

    1,000 + 2.5 * (3 - 1)   ->   1005

    Needs at least one operation on two numbers: a number alone is no expression.
    """
    tokens = [token for token in _split(expression) if token.kind != "space"]
    numbers = sum(token.kind == "number" for token in tokens)
    kinds = {token.kind for token in tokens}
    if not 2 <= numbers <= MAX_TERMS or not kinds <= {
        "number",
        "operator",
        "parenthesis",
    }:
        return None
    reader = _Reader([token.text.translate(_ASCII) for token in tokens])
    try:
        value = reader.sum(depth=0)
    except (ValueError, ZeroDivisionError):
        return None
    return value if reader.is_at_end else None


class _Reader:
    """Evaluates an expression while reading it: precedence climbing."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces
        self._next = 0

    @property
    def is_at_end(self) -> bool:
        """Whether everything was read."""
        return self._next == len(self._pieces)

    def sum(self, *, depth: int, above: int = 0) -> Fraction:
        """Reads operands joined by operators that bind more tightly than `above`."""
        value = self._operand(depth)
        while (binding := _PRECEDENCE.get(self._peek(), 0)) > above:
            operator = self._take()
            other = self.sum(depth=depth, above=binding)
            value = _apply(operator, value, other)
        return value

    def _operand(self, depth: int) -> Fraction:
        """Reads a number, a sign before an operand, or parentheses."""
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        piece = self._take()
        if piece in "+-" and piece:
            value = self._operand(depth + 1)
            return -value if piece == "-" else value
        if piece == "(":
            value = self.sum(depth=depth + 1)
            if self._take() != ")":
                raise ValueError("not closed")
            return value
        number = _read(piece)
        if number is None:
            raise ValueError("no number")
        return number

    def _peek(self) -> str:
        return "" if self.is_at_end else self._pieces[self._next]

    def _take(self) -> str:
        piece = self._peek()
        self._next += 1
        return piece


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """Returns the result of one operation."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def _split(text: str) -> list[_Token]:
    """Returns the pieces of a text; joined, they are the text."""
    return [
        _Token(str(match.lastgroup), match.group()) for match in _TOKEN.finditer(text)
    ]


def _equations(tokens: Sequence[_Token]) -> Iterator[tuple[int, _Equation]]:
    """Yields the index of each equation's result, and where the equation stands."""
    for equals, token in enumerate(tokens):
        if token.kind != "equals":
            continue
        sign = None
        result = _skip_spaces(tokens, equals + 1)
        if _text(tokens, result) in ("-", _MINUS):
            sign, result = result, _skip_spaces(tokens, result + 1)
        if _kind(tokens, result) == "number" and not _goes_on(tokens, result + 1):
            start = _start_of_expression(tokens, equals)
            yield result, _Equation(start, equals, sign)


def _start_of_expression(tokens: Sequence[_Token], equals: int) -> int:
    """Returns where the expression before an `=` starts.

    An operator in front of a space is no sign: at the start of a line it is a bullet,
    and after a word ("5 apples - 3 + 4 =") the expression is no whole one.
    """
    start = equals
    inside = ("number", "operator", "parenthesis", "space")
    while start > 0 and tokens[start - 1].kind in inside:
        start -= 1
        # Longer ones are refused anyway.
        if equals - start > 8 * MAX_TERMS:
            return equals
    first = _skip_spaces(tokens, start)
    if _kind(tokens, first) != "operator" or _kind(tokens, first + 1) != "space":
        return start
    starts_line = start == 0 or tokens[start - 1].text == "\n"
    return first + 1 if starts_line else equals


def _goes_on(tokens: Sequence[_Token], index: int) -> bool:
    """Returns whether an operation follows: the number before it is no result."""
    operator = _skip_spaces(tokens, index)
    operand = _skip_spaces(tokens, operator + 1)
    return _kind(tokens, operator) == "operator" and (
        _kind(tokens, operand) == "number" or _text(tokens, operand) == "("
    )


def _skip_spaces(tokens: Sequence[_Token], index: int) -> int:
    return index + (_kind(tokens, index) == "space")


def _kind(tokens: Sequence[_Token], index: int) -> str:
    return tokens[index].kind if index < len(tokens) else ""


def _text(tokens: Sequence[_Token], index: int) -> str:
    return tokens[index].text if index < len(tokens) else ""


def _is_ordinal(tokens: Sequence[_Token], index: int) -> bool:
    """Returns whether letters make a number an ordinal: 1st, 22nd."""
    return _ORDINAL.match(_text(tokens, index + 1)) is not None


def _read(text: str) -> Fraction | None:
    """Returns a number, or None where it is none, or too long."""
    digits = text.replace(",", "")
    if not digits or not digits[-1].isdecimal() or len(digits) > MAX_DIGITS:
        return None
    return Fraction(digits)


def _is_right(number: Fraction, text: str, value: Fraction) -> bool:
    """Returns whether a written result is the value, as far as its decimals go."""
    decimals = len(text.partition(".")[2])
    if not decimals:
        return number == value
    return abs(number - value) <= Fraction(1, 2 * 10**decimals)


def _correct(shown: list[str], index: int, sign: int | None, value: Fraction) -> None:
    """Writes the right result, as the wrong one was written: 1,400 -> 1,300."""
    separator = "," if "," in shown[index] else ""
    rounded = round(abs(value), _DECIMALS)
    whole, rest = divmod(rounded, 1)
    decimals = f"{int(rest * 10**_DECIMALS):0{_DECIMALS}d}".rstrip("0")
    text = f"{int(whole):{separator}}" + ("." + decimals if decimals else "")
    if sign is not None:
        shown[sign] = ""
    shown[index] = "-" + text if value < 0 else text
