"""What a written answer says: a number, a letter, yes or no.

    "So he has 3 + 4 = 7. The answer is $7.00."   extract_number   "7"
    "Both are even. The answer is (B)."           extract_choice   "B"
    "Bees fly. So the answer is yes."             extract_yes_no   "yes"

The rule is that of the chain-of-thought papers: the first one after the first "the
answer is". What a model goes on to write after its answer, often another question with
another answer, does not count. Where nothing follows those words or they are missing,
the last one in the text counts.

Numbers come back in one spelling each, so equal strings are equal values: 1,234.50 is
"1234.5", 6.0 is "6", 2/4 is "0.5", 1/3 is "1/3". Currency signs, percent signs and
units are left out. Arithmetic is exact, and its size is bounded.
"""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Final, TypeGuard

# Digits of the longest number that is read, before and behind the point together.
MAX_DIGITS: Final = 40

_MARKER: Final = re.compile(r"the\s+answer\s+is", re.IGNORECASE)
_NUMBER: Final = re.compile(
    r"""
    (?<![A-Za-z_0-9])                   # not from the middle of a word or number
    (?:
        (?<![)\]])(?P<minus>[-\u2212])  # after a bracket, a minus subtracts
        (?P<open>\((?=[0-9./]+\)))?     # -(1/3)
    )?
    (?:[$\u20ac\u00a3](?P<inner_minus>[-\u2212])?)?
    (?P<top>
        (?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?
        | \.[0-9]+
    )
    (?:/(?P<bottom>[1-9][0-9]{0,39})(?!\.?[0-9]))?
    (?(open)\))
    """,
    re.VERBOSE,
)
# Where an answer begins: "b", "(b)", "B) 25", "b.".
_OPENING_CHOICE: Final = re.compile(
    r"\s*:?\s*\(?([A-Za-z])(?:\)|\s*[.:]?\s*(?:\n|$))",
)
# Behind "the answer is" alone: elsewhere, "A" may begin a sentence.
_CAPITAL_CHOICE: Final = re.compile(r"\s*:?\s*([A-Z])\b(?!')")
_MARKED_CHOICE: Final = re.compile(r"\(([A-Za-z])\)|\b([A-Z])(?=\s*(?:[).:,;]|$))")
_YES_NO: Final = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def extract_number(text: str) -> str | None:
    """Returns the number that a text answers with, in its one spelling, or None."""
    for said in _after_marker(text):
        for number in _numbers(said):
            return number
    last = None
    for number in _numbers(text):
        last = number
    return last


def extract_choice(text: str, letters: str = "ABCDE") -> str | None:
    """Returns the letter of the option that a text answers with, or None.

    A letter counts where it opens the answer, in parentheses, or as a capital before
    `)`, punctuation or the end; the "a" of "a car" does not.

    Args:
        text: "The answer is (B).", "b", "C) 25", "The answer is C because ...".
        letters: the options, in capitals.
    """
    for said in _after_marker(text):
        opening = _OPENING_CHOICE.match(said) or _CAPITAL_CHOICE.match(said)
        for found in (opening, *_MARKED_CHOICE.finditer(said)):
            if _is_choice(found, letters):
                return _letter(found)
    opening = _OPENING_CHOICE.match(text)
    if _is_choice(opening, letters):
        return _letter(opening)
    marked = [_letter(found) for found in _MARKED_CHOICE.finditer(text)]
    named = [letter for letter in marked if letter in letters]
    return named[-1] if named else None


def extract_yes_no(text: str) -> str | None:
    """Returns the `yes` or `no` that a text answers with, or None.

    Without "the answer is", a text that begins with one of them answers at once.
    """
    for said in _after_marker(text):
        found = _YES_NO.search(said)
        if found:
            return found[1].lower()
    first = _YES_NO.match(text.lstrip())
    if first:
        return first[1].lower()
    words = _YES_NO.findall(text)
    return words[-1].lower() if words else None


def number_alone(text: str) -> str | None:
    """Returns the number that is the whole text, in its one spelling, or None."""
    found = _NUMBER.fullmatch(text.strip())
    return _spelling(found) if found else None


def spell_number(value: float) -> str | None:
    """Returns the one spelling of a number of a data set; None if it is not finite."""
    if not math.isfinite(value) or abs(value) >= 10**MAX_DIGITS:
        return None
    # The shortest decimals that mean this float: 0.1 is one tenth.
    return _spell(Fraction(repr(value)))


def _after_marker(text: str) -> Iterator[str]:
    """Yields what follows the first "the answer is", if it is there."""
    marker = _MARKER.search(text)
    if marker:
        yield text[marker.end() :]


def _numbers(text: str) -> Iterator[str]:
    for found in _NUMBER.finditer(text):
        spelling = _spelling(found)
        if spelling is not None:
            yield spelling


def _spelling(found: re.Match[str]) -> str | None:
    top = found["top"].replace(",", "")
    bottom = found["bottom"] or "1"
    if len(top) > MAX_DIGITS:
        return None
    value = Fraction(top) / int(bottom)
    negative = bool(found["minus"]) != bool(found["inner_minus"])
    return _spell(-value if negative else value)


def _spell(value: Fraction) -> str:
    """Returns decimals where they end, a reduced fraction where they do not."""
    decimals = 0
    scaled = value
    while scaled.denominator % 2 == 0 or scaled.denominator % 5 == 0:
        scaled *= 10
        decimals += 1
    if scaled.denominator != 1:
        return str(value)
    digits = str(abs(scaled.numerator)).zfill(decimals + 1)
    point = len(digits) - decimals
    sign = "-" if value < 0 else ""
    fraction = f".{digits[point:]}" if decimals else ""
    return f"{sign}{digits[:point]}{fraction}"


def _is_choice(found: re.Match[str] | None, letters: str) -> TypeGuard[re.Match[str]]:
    return found is not None and _letter(found) in letters


def _letter(found: re.Match[str]) -> str:
    return next(letter for letter in found.groups() if letter).upper()
