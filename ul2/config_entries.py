"""What a config comes to: every value, and who set it.

    MODEL_DIR/config.gin             every value that a run used
    MODEL_DIR/config_origins.json    {"SEED": ["--gin.SEED", "configs/runs/loop.gin:9"]}

Of a value that was set several times the last counts; it comes first, and those that it
stands over after it.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ul2 import json_files, run_files

ORIGINS: Final = "config_origins.json"
DEFAULT: Final = "default"


class Entry(NamedTuple):
    """A value.

    Attributes:
        value: as a gin file says it.
        set_by: `configs/runs/loop.gin:9`, `--gin.SEED` or `default`.
        over: who had set it before.
    """

    value: str
    set_by: str
    over: tuple[str, ...] = ()

    @property
    def is_macro(self) -> bool:
        """Whether it is what a macro is set to."""
        return self.value.startswith("%")


# By name: a macro, or MODULE.CALLABLE.PARAMETER.
Config = dict[str, Entry]


class Difference(NamedTuple):
    """A value that two configs do not have in common; None where one lacks it."""

    name: str
    before: Entry | None
    after: Entry | None


def origins_text(config_text: str, config: Config) -> str:
    """Returns what `config_origins.json` holds.

    Args:
        config_text: the operative config of the run.
        config: what it was read from.
    """
    names = run_files.statements(config_text)
    default = Entry("", DEFAULT)
    found = {name: config.get(name, default) for name in names}
    lines = {name: [one.set_by, *reversed(one.over)] for name, one in found.items()}
    return json.dumps(lines, indent=0) + "\n"


def traced(config: Config) -> Config:
    """Returns a config whose values out of a run's are set by whom that run says.

    runs/one/config.gin:14   ->   configs/runs/quickstart.gin:13

    A `config.gin` that was changed by hand since is itself who set them.
    """
    known: dict[str, dict[str, list[str]]] = {}

    def behind(name: str, place: str) -> list[str]:
        file = place.rpartition(":")[0]
        if Path(file).name != run_files.CONFIG:
            return [place]
        if file not in known:
            known[file] = _origins_beside(Path(file))
        return list(reversed(known[file].get(name) or [place]))

    found = {}
    for name, entry in config.items():
        places = [
            one for place in (*entry.over, entry.set_by) for one in behind(name, place)
        ]
        found[name] = Entry(entry.value, places[-1], tuple(places[:-1]))
    return found


def _origins_beside(config: Path) -> dict[str, list[str]]:
    """Returns who set what in a run's config; nothing where it is newer than they."""
    origins = config.with_name(ORIGINS)
    try:
        is_newer = config.stat().st_mtime_ns > origins.stat().st_mtime_ns
    except OSError:
        return {}
    return {} if is_newer else _read_origins(origins)


def read_run(model_dir: str | Path) -> Config:
    """Returns the config of a run, as its last start had it.

    Of a run from before origins were kept, all was set by its `config.gin`.

    Raises:
        ValueError: there is no run.
    """
    file = Path(model_dir) / run_files.CONFIG
    try:
        text = run_files.read_config(file)
    except (OSError, ValueError):
        raise ValueError(
            f"{model_dir} holds no run: {file} cannot be read; give a MODEL_DIR."
        ) from None
    origins = _read_origins(Path(model_dir) / ORIGINS)
    lines = {
        line.partition(" =")[0]: number
        for number, line in enumerate(text.splitlines(), 1)
    }
    config = {}
    for name, value in run_files.statements(text).items():
        set_by, *over = origins.get(name) or [f"{file}:{lines[name]}"]
        config[name] = Entry(_normal(value), set_by, tuple(reversed(over)))
    return config


def _read_origins(file: Path) -> dict[str, list[str]]:
    """Returns who set what; nothing where that is not known."""
    try:
        found = json_files.read_object(file)
    except (OSError, ValueError):
        return {}
    return {
        name: places
        for name, places in found.items()
        if isinstance(places, list) and all(isinstance(one, str) for one in places)
    }


def _normal(value: str) -> str:
    """Returns a value as Python writes it: a long one was broken into lines."""
    try:
        return repr(ast.literal_eval(value))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def differences(before: Config, after: Config) -> Iterator[Difference]:
    """Yields the values that two configs do not have in common.

    A parameter that a macro sets is told by its macro. A value that one config does not
    mention and the other leaves at its default is no difference; the report knows no
    defaults, and compares any number of runs: `ul2.report.configs.differences`.
    """
    old_values, new_values = (
        run_files.values({name: entry.value for name, entry in config.items()})
        for config in (before, after)
    )
    for name in in_order({**before, **after}):
        old, new = before.get(name), after.get(name)
        both = [one for one in (old, new) if one is not None]
        alone = len(both) == 1 and both[0].set_by == DEFAULT
        told = all(one.is_macro for one in both)
        if not (alone or told) and old_values.get(name) != new_values.get(name):
            yield Difference(name, old, new)


def in_order(config: Config) -> list[str]:
    """Returns the names: macros first, for they are what people set."""
    return sorted(config, key=lambda name: ("." in name, name))
