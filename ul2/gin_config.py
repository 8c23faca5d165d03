"""Gin files, read strictly, and who set what.

gin ignores what nothing reads and stops at the first mistake. Here a binding that
nothing reads is refused, with the nearest name, and everything that is missing is
reported at once (`gin_checks`), with the file or the flag to set it in.

gin also imports whatever module a file names, and calls whatever is found in it, so
that a file can do what a program can. Here it reaches registered names alone: those of
this package that are in a table, and the modules that somebody named by hand.
"""

import ast
import contextlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import gin

from ul2 import is_ours, t5x_names
from ul2.gin_origins import ROOTS, setters, shown_path
from ul2.recipe import Recipe
from ul2.spelling import did_you_mean, nearest

Bindings = Sequence[tuple[str, str]]

# What gin files may name, by module.
_REGISTERED: Final = {
    "ul2.recipe": ("Recipe",),
    "ul2.training.guard": ("GuardSettings",),
    "ul2.training.loop": ("TrainSettings",),
    "ul2.training.optimizers": ("adafactor", "adamw"),
    "ul2.training.schedules": ("constant", "cosine", "inverse_square_root", "linear"),
    "ul2.denoising.mixture": ("from_rows", "named"),
    "ul2.denoising.moving": ("moving",),
    "ul2.denoising.ramps": ("constant", "cosine", "linear", "stages"),
    "ul2.data.task_mixture": ("TaskMixture",),
    "ul2.models.config": ("ModelConfig",),
    "ul2.models.decoder_only": ("DecoderOnly",),
    "ul2.models.encoder_decoder": ("EncoderDecoder",),
    # What `%NAME` stands for.
    "gin.config": ("macro", "_retrieve_constant"),
}
# Modules that `--import_module` named: what they define is registered, too.
_trusted: set[str] = set()
_MAX_FILE_BYTES: Final = 2**20
_MAX_INCLUDES: Final = 32
_MAX_MESSAGE: Final = 600
_NAME: Final = re.compile(r"[\w./]+")
_FLAG: Final = "--gin."
_PLAIN: Final = (int, float, str, bool, type(None), list, tuple, dict)
# How gin says in which file, or where on the command line, an error is.
_LOCATION: Final = re.compile(
    r'\s*In (?:file "(?P<file>[^"]*)", line (?P<line>\d+)|bindings string line)'
)
_NO_SUCH_NAME: Final = re.compile(r"No configurable matching '([^']*)'")
_NO_SUCH_PARAMETER: Final = re.compile(
    r"Configurable '([^']*)' doesn't have a parameter named '([^']*)'"
)
_NO_SUCH_FILE: Final = re.compile(r"Unable to open file: (.*?)\. Searched config")


class ConfigError(ValueError):
    """What is wrong with a configuration, all of it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class _Names(gin.config.ParseContext):
    """The names that one gin file may use: those that are registered."""

    def process_import(self, statement: Any) -> None:
        """Imports a module, if it is registered."""
        module = statement.module
        is_feature = statement.is_from and module.startswith("__gin__.")
        if not (is_feature or module in _REGISTERED or _is_trusted(module)):
            if t5x_names.is_module(module):
                raise ValueError(
                    f"a gin file may not import {module}: gin files of T5X do not run "
                    "here; start from one in configs/recipes, or compose "
                    "configs/models, objectives and runs."
                )
            known = ", ".join(name for name in _REGISTERED if name.startswith("ul2."))
            raise ValueError(
                f"a gin file may not import {module}, only {known}; name a module of "
                "your own with --import_module."
            )
        super().process_import(statement)

    def get_configurable(self, selector: str) -> Any:
        """Returns what a name stands for, if it is registered."""
        if self._dynamic_registration:
            named = self._resolve_selector(selector)[1][-1]
        else:
            found = gin.config._REGISTRY.get_match(selector)
            named = found and found.wrapped
        if named is not None and not _is_registered(named):
            raise ValueError(f"a gin file may not name {selector}: not registered.")
        return super().get_configurable(selector)


gin.config.ParseContext = _Names


def trust(module: str) -> None:
    """Lets gin files import a module, and name what is defined in it or below it."""
    _trusted.add(module)


def _is_trusted(module: str) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in _trusted)


def _is_registered(named: Any) -> bool:
    """Returns whether a gin file may name a function or a class."""
    module = str(getattr(named, "__module__", None))
    name = getattr(named, "__qualname__", None)
    return name in _REGISTERED.get(module, ()) or (
        callable(named) and _is_trusted(module)
    )


def _open(path: str) -> TextIO:
    """Opens a gin file, for gin.

    Raises:
        ValueError: it is too large, or one of too many that include each other.
    """
    if os.path.getsize(path) > _MAX_FILE_BYTES:
        raise ValueError(f"{path} is too large to be a gin file.")
    if len(gin.config._PARSE_CONTEXTS) > _MAX_INCLUDES:
        raise ValueError(
            f"gin files include each other {_MAX_INCLUDES} deep; does {path} include "
            "itself?"
        )
    return open(path, encoding="utf-8")


def make_recipe() -> Recipe:
    """Makes the recipe of the config that was parsed.

    Raises:
        ConfigError: a value was refused.
    """
    with plain_errors():
        recipe: Recipe = gin.get_configurable(Recipe)()
    return recipe


def operative_text() -> str:
    """Returns every value that was read since the config was parsed.

    Raises:
        ConfigError: bindings that nothing read, all of them.
    """
    dead = list(_dead_bindings())
    if dead:
        raise ConfigError(dead)
    text: str = gin.operative_config_str()
    return text


def _find(name: str) -> Path:
    """Returns the gin file of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    for root in (Path(), *ROOTS):
        if (root / name).is_file():
            return root / name
    raise ConfigError([_no_file(name)])


def gin_files() -> list[str]:
    """Returns the gin files that come with the package, as `--gin_file` takes them."""
    found = {
        str(path.relative_to(root))
        for root in ROOTS
        for path in (root / "configs").rglob("*.gin")
    }
    return sorted(found)


def _no_file(name: str) -> str:
    """Says that there is no such gin file, and which there is.

    ul2.gin   ->   no gin file 'ul2.gin' (did you mean 'configs/objectives/ul2.gin'?).
    """
    known = gin_files()
    alike = [one for one in known if Path(one).stem == Path(name).stem]
    near = nearest(name, alike or known)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no gin file {name!r}{hint}."


def begin(gin_files: Sequence[str], bindings: Bindings) -> list[str]:
    """Forgets the last config, parses this one and returns what is wrong in bindings.

    Raises:
        ConfigError: a file is wrong; whatever comes after it would only add to that.
    """
    gin.clear_config()
    setters.forget()
    gin.config._LOCATION_PREFIXES[:] = ["", *map(str, ROOTS)]
    # Files alone: gin's other reader looks a file up among the Python packages, and
    # fails at `configs/` wherever that is on the path.
    gin.config._FILE_READERS[:] = [(_open, os.path.isfile)]
    for name in gin_files:
        path = _find(name)
        try:
            gin.parse_config_file(str(path))
        # gin passes on whatever an imported module or a bad value raises.
        except Exception as error:
            raise ConfigError([_one_line(error)]) from None
    return parse(bindings)


def parse(bindings: Bindings) -> list[str]:
    """Parses bindings one by one, and returns what is wrong with any."""
    global _flag
    problems = []
    for name, value in bindings:
        if not _NAME.fullmatch(name):
            problems.append(f"{_FLAG}{_shown(name)}: this is no name of gin")
            continue
        setters.flag, setters.typed[name] = f"{_FLAG}{name}", value
        try:
            gin.parse_config(f"{name} = {_literal(value)}")
        except Exception as error:
            instead = t5x_names.instead_of_parameter(name)
            said = f"T5X's name; set {instead}" if instead else _one_line(error)
            problems.append(f"{_FLAG}{name}={_shown(value)}: {said}")
    return problems


def _literal(value: str) -> str:
    """Returns a gin value; what is no literal, reference or macro is a string.

    1e-3 -> 1e-3; None -> None; [1, 2] -> [1, 2]; data=2,fsdp=4 -> 'data=2,fsdp=4';
    10,000 -> '10,000', for a tuple has brackets
    """
    if value.startswith(("@", "%")):
        # Behind a line end, another statement would begin.
        return " ".join(value.splitlines())
    try:
        read = ast.literal_eval(value.strip())
    # The last two: hundreds of brackets.
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return repr(os.path.expanduser(value))
    bare = isinstance(read, tuple) and not value.strip().startswith("(")
    if bare or not isinstance(read, _PLAIN):
        return repr(value)
    return repr(read)


def bind_typed(macro: str) -> None:
    """Binds a macro that a flag set to the very text that was typed."""
    with gin.unlock_config():
        gin.bind_parameter((macro, "gin.macro", "value"), setters.typed[macro])


def typed() -> dict[str, str]:
    """Returns what the flags gave to names, as it was typed."""
    return dict(setters.typed)


def _shown(text: str) -> str:
    """Returns the beginning of what was typed, for a message."""
    return " ".join(text.split())[:80]


def macro_values() -> dict[str, Any]:
    """Returns the macros that are set."""
    return {
        scope: values["value"]
        for (scope, selector), values in gin.config._CONFIG.items()
        if selector == "gin.macro"
    }


def used_macros() -> dict[str, str]:
    """Returns the macros that something refers to, and what does."""
    used = {}
    for (_, selector), values in gin.config._CONFIG.items():
        for name, value in values.items():
            for reference in gin.config.iterate_references(value):
                if reference.selector == "gin.macro":
                    macro = reference.scoped_selector.removesuffix("/gin.macro")
                    used[macro] = f"{selector}.{name}"
    return used


def undefined_macros() -> set[str]:
    """Returns the macros that something refers to and nothing sets."""
    return used_macros().keys() - macro_values().keys()


def recipe_bindings() -> dict[str, Any]:
    """Returns what the fields of the recipe are bound to, as far as they are."""
    try:
        bound: dict[str, Any] = gin.get_bindings(Recipe, resolve_references=False)
    except ValueError:  # nothing names the recipe at all
        return {}
    return bound


def _dead_bindings() -> Iterator[str]:
    """Yields a line for every parameter that is bound and was never asked for."""
    read_values = gin.config._OPERATIVE_CONFIG
    for key, values in gin.config._CONFIG.items():
        _, selector = key
        if selector == "gin.macro":
            continue
        for name in values.keys() - read_values.get(key, {}).keys():
            yield f"{selector}.{name} is dead, nothing calls {selector}: remove it"


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Takes off what gin adds to the errors of what it calls.

    Raises:
        ConfigError: a value was refused, or one that has no default was not given.
    """
    try:
        yield
    except ValueError as error:
        if not is_ours(error):
            raise
        raise ConfigError([_one_line(error)]) from None
    except TypeError as error:
        if "required" not in str(error):
            raise
        raise ConfigError([_one_line(error)]) from None


def _one_line(error: BaseException) -> str:
    """Returns an error of gin's, which draws pictures, as one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        if "Failed to parse token" in text:
            return _no_value(error)
        # Python shortens the path to the name of the file.
        text = f"{error.msg} ({error.filename}, line {error.lineno})"
    text = text.split("In call to configurable")[0]
    where = ""
    if found := _LOCATION.search(text):
        text = text[: found.start()]
        if found["file"]:
            where = f"{shown_path(found['file'])}, line {found['line']}: "
    lines = (line.strip(" ^") for line in text.splitlines())
    return (where + _cure(" ".join(line for line in lines if line)))[:_MAX_MESSAGE]


def _no_value(error: SyntaxError) -> str:
    """Says which word of a gin file is no value, and what to write.

    DATA = stores/mine   ->   ... a text needs quotes: DATA = 'stores/mine'
    """
    name, _, value = str(error.text).split("#")[0].partition("=")
    name, value = name.strip(), value.strip()
    where = f"{shown_path(str(error.filename))}, line {error.lineno}"
    if (word := value.capitalize()) in ("True", "False", "None"):
        return f"{where}: {value} is no value: write {name} = {word}"
    return f"{where}: {value} is no value; a text needs quotes: {name} = {value!r}"


def _cure(text: str) -> str:
    """Adds to an error of gin's what to write instead."""
    if found := _NO_SUCH_FILE.match(text):
        return _no_file(found[1])
    if found := _NO_SUCH_PARAMETER.match(text):
        selector, name = found.groups()
        known = _parameters(selector)
        return f"{text.rstrip('. ')}{did_you_mean(name, known)}."
    if found := _NO_SUCH_NAME.search(text):
        return f"{text.rstrip('. ')}{did_you_mean(found[1], _callables())}."
    return text


def _parameters(selector: str) -> list[str]:
    """Returns what can be set of a registered function or class."""
    wrapped = gin.config._REGISTRY.get_match(selector).wrapped
    return list(inspect.signature(wrapped).parameters)


def _callables() -> list[str]:
    """Returns the functions and classes that gin files may set something of."""
    return [
        f"{module.rpartition('.')[2]}.{name}"
        for module, names in _REGISTERED.items()
        for name in names
        if module.startswith("ul2.")
    ]
