"""Who set each value of a config: a line of a gin file, a flag, or nobody.

gin forgets it. Here the statements that it reads are watched on their way.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import gin

from ul2.config_entries import DEFAULT, Config, Entry

_PACKAGE: Final = Path(__file__).resolve().parent
# `configs` lies inside the package in a wheel, beside it in a checkout.
ROOTS: Final = (_PACKAGE, _PACKAGE.parent)
_MACRO: Final = "gin.macro"
_RECIPE: Final = "ul2.recipe.Recipe"


def shown_path(path: str) -> str:
    """Returns a path as `--gin_file` takes it, from wherever it was found."""
    for root in ROOTS:
        if Path(path).is_relative_to(root):
            return str(Path(path).relative_to(root))
    return path


class Place(NamedTuple):
    """Who set a value: a line of a gin file, or a flag.

    Attributes:
        file: as a person would name it; empty for a flag.
        line: in the file, from 1.
        flag: such as `--gin.SEED`; empty for a file.
    """

    file: str
    line: int
    flag: str

    def __str__(self) -> str:
        return self.flag or f"{self.file}:{self.line}"


# A value that was set, as `gin.config._CONFIG` names it.
Key = tuple[tuple[str, str], str]


class _Setters:
    """Who set what, since the config was begun.

    Attributes:
        places: of the values, all who set them, the last of whom won.
        typed: what the flags gave to names, as it was typed.
        flag: whose value is being parsed; empty while a file is.
    """

    def __init__(self) -> None:
        self.places: dict[Key, list[Place]] = {}
        self.typed: dict[str, str] = {}
        self.flag = ""

    def forget(self) -> None:
        """Begins anew."""
        self.places.clear()
        self.typed.clear()

    def note(self, bound: Any) -> None:
        """Notes who made a binding that gin has just taken."""
        scope, selector, name, _, location = bound
        if name:
            key = gin.config.ParsedBindingKey.parse((scope, selector, name)).config_key
        else:
            name = "value"
            key = (f"{scope}/{selector}" if scope else selector, "gin.macro")
        file = shown_path(location.filename) if location.filename else ""
        flag = "" if file else self.flag
        place = Place(file, location.line_num, flag)
        self.places.setdefault((key, name), []).append(place)


setters = _Setters()


class _Statements(gin.config_parser.ConfigParser):
    """The statements of a gin file; notes where each value was set."""

    _bound: Any = None

    def __next__(self) -> Any:
        if self._bound is not None:
            setters.note(self._bound)
        self._bound = None
        statement = super().__next__()
        if isinstance(statement, gin.config_parser.BindingStatement):
            self._bound = statement
        return statement


gin.config.config_parser.ConfigParser = _Statements


def place_of_macro(name: str) -> Place | None:
    """Returns who set a macro; None where nobody did."""
    places = setters.places.get(((name, _MACRO), "value"), [])
    return places[-1] if places else None


def entries() -> Config:
    """Returns every value of the config that was parsed, and who set it.

    Macros, and the parameters of whatever the recipe refers to; of those that nobody
    set, their defaults.
    """
    found: Config = {}
    for (scope, selector), bound in gin.config._CONFIG.items():
        if selector == _MACRO:
            found[scope] = _entry(((scope, _MACRO), "value"), bound["value"])
    for scope, selector in _reached():
        for key, name, value in _parameters(scope, selector):
            found[f"{_short(*key)}.{name}"] = _entry((key, name), value)
    return found


def _entry(key: Key, value: Any) -> Entry:
    *over, last = [str(place) for place in setters.places.get(key, ())] or [DEFAULT]
    return Entry(repr(value), last, tuple(over))


def _is_literal(value: Any) -> bool:
    """Returns whether a value can be written in a gin file."""
    try:
        ast.literal_eval(repr(value))
    except (ValueError, SyntaxError):
        return False
    return True


def _reached() -> Iterator[tuple[str, str]]:
    """Yields the scope and the full name of whatever the recipe leads to, once."""
    waiting, seen = [("", _RECIPE)], set()
    while waiting:
        scope, selector = here = waiting.pop()
        if here in seen or not gin.config._REGISTRY.matching_selectors(selector):
            continue
        seen.add(here)
        if selector != _MACRO:
            yield here
        for _, _, value in _parameters(scope, selector):
            for reference in gin.config.iterate_references(value):
                inner = reference.scoped_selector.rpartition("/")[0]
                waiting.append((inner, reference.configurable.selector))


def _parameters(
    scope: str, selector: str
) -> Iterator[tuple[tuple[str, str], str, Any]]:
    """Yields the parameters of a function or class that have a value.

    Yields:
        The scope and the full name that the value is bound under, the parameter and
        the value.
    """
    bound = {}
    for within in dict.fromkeys(("", scope)):
        for name, value in gin.config._CONFIG.get((within, selector), {}).items():
            bound[name] = ((within, selector), value)
    wrapped = gin.config._REGISTRY.get_match(selector).wrapped
    for name, parameter in inspect.signature(wrapped).parameters.items():
        if name in bound:
            yield bound[name][0], name, bound[name][1]
        elif parameter.default is not parameter.empty and _is_literal(
            parameter.default
        ):
            yield ("", selector), name, parameter.default


def _short(scope: str, selector: str) -> str:
    """Returns a name as gin files write it: loop.TrainSettings."""
    name = ".".join(selector.split(".")[-2:])
    return f"{scope}/{name}" if scope else name
