"""What is wrong with a config that was parsed, all of it, and what to write instead."""

import dataclasses
import inspect
import re
import types
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import gin

from ul2 import gin_config, t5x_names
from ul2.gin_config import macro_values, recipe_bindings, used_macros
from ul2.gin_origins import place_of_macro
from ul2.recipe import Recipe
from ul2.spelling import did_you_mean

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
# What a type is called in Python, which gin follows, and what to write for it.
_WORDS: Final = {
    int: ("int", "a whole number"),
    float: ("float", "a number"),
    str: ("str", "a text"),
    bool: ("bool", "True or False"),
    types.NoneType: ("None", "None"),
}
_NUMBER: Final = re.compile(
    r"(-?(?:\d{1,3}(?:[,_]\d{3})+|\d+)(?:\.\d*)?(?:e-?\d+)?)([kmb]?)"
)
_THOUSANDS: Final = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")


def problems() -> list[str]:
    """Returns a line for everything that keeps a recipe from being made."""
    return missing() + unread_macros() + of_wrong_type() + circular_macros()


def take_texts() -> None:
    """Takes what flags gave as text, where nothing but a text is wanted.

    --gin.MODEL_DIR=2026   is a directory, though `2026` is a number
    """
    kinds: dict[str, list[tuple[type, ...]]] = {}
    for name, _, macro, allowed in _bindings():
        kinds.setdefault(macro or name, []).append(allowed)
    values = macro_values()
    for macro in gin_config.typed().keys() & kinds.keys() & values.keys():
        wants_text = all(
            set(one) <= {str, types.NoneType} and one for one in kinds[macro]
        )
        if wants_text and not isinstance(values[macro], str | bool | types.NoneType):
            gin_config.bind_typed(macro)


def _bindings() -> Iterator[tuple[str, Any, str, tuple[type, ...]]]:
    """Yields the parameters that are bound to a value, or to a macro that is.

    Yields:
        The parameter, its value, the macro that holds that or "", and the types that
        it may be of; none where these are not plain.
    """
    macros = macro_values()
    for (_, selector), values in gin.config._CONFIG.items():
        if selector == "gin.macro":
            continue
        wanted = inspect.signature(gin.config._REGISTRY[selector].wrapped).parameters
        for parameter in values.keys() & wanted.keys():
            value, macro = values[parameter], ""
            if isinstance(value, gin.config.ConfigurableReference):
                macro = value.scoped_selector.removesuffix("/gin.macro")
                value = macros.get(macro, value)
            if isinstance(value, gin.config.ConfigurableReference):
                continue  # made by a function, or reported as missing
            kinds = _plain_types(wanted[parameter].annotation)
            yield f"{selector}.{parameter}", value, macro, kinds


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


def missing() -> list[str]:
    """Returns everything that a recipe needs and nothing sets."""
    used = used_macros()
    problems = [
        f"{name} is not set (for {used[name]}): add --gin.{name}=VALUE"
        for name in sorted(gin_config.undefined_macros())
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


def unread_macros(allowed: Collection[str] = ()) -> list[str]:
    """Returns a line for every macro that nothing refers to."""
    used = used_macros().keys()
    known = {*used, *allowed}
    return [
        _unread(name, known)
        for name in sorted(macro_values().keys() - used)
        if name not in allowed
    ]


def _unread(name: str, known: Collection[str]) -> str:
    """Says that nothing reads a macro, where it is set, and what may be meant."""
    place = place_of_macro(name)
    where = f" ({place})" if place and place.file else ""
    instead = t5x_names.instead_of_macro(name)
    if instead is not None:
        return f"nothing reads {name}{where}: T5X's name; set {instead}"
    return f"nothing reads {name}{where}{did_you_mean(name, known)}: remove it"


def of_wrong_type() -> list[str]:
    """Returns a line for every number, text or flag that is of another type.

    `--gin.CAP_SPANS=no` is a text, and every text counts as true.
    """
    problems = {
        _wrong_type(macro or name, value, kinds)
        for name, value, macro, kinds in _bindings()
        if kinds and type(value) not in kinds
    }
    return sorted(problems)


def _wrong_type(name: str, value: Any, kinds: Sequence[type]) -> str:
    allowed = " or ".join(_WORDS[kind][0] for kind in kinds)
    better = _in_kind(value, kinds) or _WORDS[kinds[0]][1]
    return f"{name} = {value!r} is no {allowed}: write {better}"


def _in_kind(value: Any, kinds: Sequence[type]) -> str:
    """Returns how a value is written as one of some types, if it can be.

    1e5, int -> 100000; 10k, int -> 10000; yes, bool -> True; null, None -> None
    """
    text = str(value).strip().casefold()
    if types.NoneType in kinds and text in ("none", "null", ""):
        return "None"
    if bool in kinds and text in (*_TRUE, *_FALSE):
        return str(text in _TRUE)
    if str in kinds and type(value) in (int, float):
        return f"'{value}'"
    if {int, float} & {*kinds} and (number := _NUMBER.fullmatch(text)):
        exact = float(re.sub(r"[,_]", "", number[1])) * _THOUSANDS[number[2]]
        return str(int(exact)) if exact.is_integer() else str(exact) * (float in kinds)
    return ""


def _plain_types(annotation: Any) -> tuple[type, ...]:
    """Returns the types that an annotation allows, if it names plain ones alone.

    float | None   ->   (float, NoneType, int)
    """
    union = isinstance(annotation, types.UnionType)
    kinds = annotation.__args__ if union else (annotation,)
    if not set(kinds) <= {int, float, str, bool, types.NoneType}:
        return ()
    return (*kinds, int) if float in kinds and int not in kinds else kinds
