"""Gin files, read strictly: the only module that imports gin.

gin ignores what nothing reads and stops at the first mistake. Here a binding that
nothing reads is refused, with the nearest name, and everything that is missing is
reported at once, with the file or the flag to set it in.

gin also imports whatever module a file names, and calls whatever is found in it, so
that a file can do what a program can. Here it reaches registered names alone: those of
this package that are in a table, and the modules that somebody named by hand.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import os
import re
import types
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import gin

from ul2 import is_ours
from ul2.recipe import Recipe

Bindings = Sequence[tuple[str, str]]

_PACKAGE: Final = Path(__file__).resolve().parent
# `configs` lies inside the package in a wheel, beside it in a checkout.
_ROOTS: Final = (_PACKAGE, _PACKAGE.parent)
_MODEL_FILE: Final = (
    "add --gin_file=configs/models/NAME.gin, or --gin.INITIAL_CHECKPOINT=DIR of one "
    "that says which model it is"
)
_WHERE: Final = {
    "model": _MODEL_FILE,
    "model_config": _MODEL_FILE,
    "mixture": "add --gin_file=configs/objectives/NAME.gin",
}
_RUN_FILE: Final = "add --gin_file=configs/runs/pretrain.gin"
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
    for root in (Path(), *_ROOTS):
        if (root / name).is_file():
            return root / name
    known = {
        str(path.relative_to(root))
        for root in _ROOTS
        for path in (root / "configs").rglob("*.gin")
    }
    raise ConfigError([f"no gin file {name!r}{_did_you_mean(name, known)}."])


def begin(gin_files: Sequence[str], bindings: Bindings) -> list[str]:
    """Forgets the last config, parses this one and returns what is wrong in bindings.

    Raises:
        ConfigError: a file is wrong; whatever comes after it would only add to that.
    """
    gin.clear_config()
    gin.config._LOCATION_PREFIXES[:] = ["", *map(str, _ROOTS)]
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
    problems = []
    for name, value in bindings:
        if not _NAME.fullmatch(name):
            problems.append(f"--gin.{_shown(name)}: this is no name of gin")
            continue
        try:
            gin.parse_config(f"{name} = {_literal(value)}")
        except Exception as error:
            problems.append(f"--gin.{name}={_shown(value)}: {_one_line(error)}")
    return problems


def _literal(value: str) -> str:
    """Returns a gin value; what is no literal, reference or macro is a string."""
    if value.startswith(("@", "%")):
        # Behind a line end, another statement would begin.
        return " ".join(value.splitlines())
    try:
        ast.literal_eval(value)
    # The last two: hundreds of brackets.
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return repr(os.path.expanduser(value))
    return value


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


def _used_macros() -> dict[str, str]:
    """Returns the macros that something refers to, and what does."""
    used = {}
    for (_, selector), values in gin.config._CONFIG.items():
        for name, value in values.items():
            for reference in gin.config.iterate_references(value):
                if reference.selector == "gin.macro":
                    macro = reference.scoped_selector.removesuffix("/gin.macro")
                    used[macro] = f"{selector}.{name}"
    return used


def circular_macros() -> list[str]:
    """Returns a line for every macro whose value comes back to itself."""
    refers = {
        name: {
            reference.scoped_selector.removesuffix("/gin.macro")
            for reference in gin.config.iterate_references(value)
            if reference.selector == "gin.macro"
        }
        for name, value in macro_values().items()
    }
    problems = []
    for name in sorted(refers):
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            found = refers.get(waiting.pop(), set()) - reached
            reached |= found
            waiting += found
        if name in reached:
            problems.append(f"{name} refers to itself: give it a value")
    return problems


def undefined_macros() -> set[str]:
    """Returns the macros that something refers to and nothing sets."""
    return _used_macros().keys() - macro_values().keys()


def missing() -> list[str]:
    """Returns everything that a recipe needs and nothing sets."""
    used = _used_macros()
    problems = [
        f"{name} is not set (for {used[name]}): add --gin.{name}=VALUE"
        for name in sorted(undefined_macros())
    ]
    bound = recipe_bindings()
    needed = [
        field.name
        for field in dataclasses.fields(Recipe)
        if field.default is dataclasses.MISSING
    ]
    if _value_of(bound.get("initial_checkpoint")) is None:
        # A checkpoint would say which model it holds.
        needed += ["model", "model_config"]
    unbound = [name for name in needed if name not in bound]
    cures: dict[str, list[str]] = {}
    for name in unbound:
        cures.setdefault(_WHERE.get(name, _RUN_FILE), []).append(name)
    return problems + [
        f"no {', '.join(names)}: {cure}" for cure, names in cures.items()
    ]


def _value_of(bound: Any) -> Any:
    """Returns what a binding comes to, where it is a value or names a macro."""
    if not isinstance(bound, gin.config.ConfigurableReference):
        return bound
    return macro_values().get(bound.scoped_selector.removesuffix("/gin.macro"))


def recipe_bindings() -> dict[str, Any]:
    """Returns what the fields of the recipe are bound to, as far as they are."""
    try:
        bound: dict[str, Any] = gin.get_bindings(Recipe, resolve_references=False)
    except ValueError:  # nothing names the recipe at all
        return {}
    return bound


def unread_macros(allowed: Collection[str] = ()) -> list[str]:
    """Returns a line for every macro that nothing refers to."""
    used = _used_macros().keys()
    known = {*used, *allowed}
    return [
        f"nothing reads {name}{_did_you_mean(name, known)}: remove it"
        for name in sorted(macro_values().keys() - used)
        if name not in allowed
    ]


def of_wrong_type() -> list[str]:
    """Returns a line for every number, text or flag that is of another type.

    `--gin.CAP_SPANS=no` is a text, and every text counts as true.
    """
    macros = macro_values()
    problems = set()
    for (_, selector), values in gin.config._CONFIG.items():
        if selector == "gin.macro":
            continue
        wanted = inspect.signature(gin.config._REGISTRY[selector].wrapped).parameters
        for parameter in values.keys() & wanted.keys():
            name, value = f"{selector}.{parameter}", values[parameter]
            if isinstance(value, gin.config.ConfigurableReference):
                name = value.scoped_selector.removesuffix("/gin.macro")
                value = macros.get(name, value)
            if isinstance(value, gin.config.ConfigurableReference):
                continue  # made by a function, or reported as missing
            kinds = _plain_types(wanted[parameter].annotation)
            if kinds and type(value) not in kinds:
                problems.add(_wrong_type(name, value, kinds))
    return sorted(problems)


def _wrong_type(name: str, value: Any, kinds: Sequence[type]) -> str:
    allowed = " or ".join(kind.__name__ for kind in kinds)
    quoted = f": add --gin.{name}=\"'{value}'\"" if kinds[0] is str else ""
    return f"{name} = {value!r} is no {allowed}{quoted}"


def _plain_types(annotation: Any) -> tuple[type, ...]:
    """Returns the types that an annotation allows, if it names plain ones alone.

    float | None   ->   (float, NoneType, int)
    """
    union = isinstance(annotation, types.UnionType)
    kinds = annotation.__args__ if union else (annotation,)
    if not set(kinds) <= {int, float, str, bool, types.NoneType}:
        return ()
    return (*kinds, int) if float in kinds and int not in kinds else kinds


def _dead_bindings() -> Iterator[str]:
    """Yields a line for every parameter that is bound and was never asked for."""
    read_values = gin.config._OPERATIVE_CONFIG
    for key, values in gin.config._CONFIG.items():
        _, selector = key
        if selector == "gin.macro":
            continue
        for name in values.keys() - read_values.get(key, {}).keys():
            yield f"{selector}.{name} is dead, nothing calls {selector}: remove it"


def _did_you_mean(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


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
    for picture in ("In bindings string line", "In call to configurable"):
        text = text.split(picture)[0]
    lines = (line.strip(" ^") for line in text.splitlines())
    return " ".join(line for line in lines if line)[:_MAX_MESSAGE]
