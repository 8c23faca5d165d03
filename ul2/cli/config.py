"""`ul2 config`: what a config comes to, and who set each value."""

import argparse
from typing import Any

from ul2.cli.command import add_command, add_gin_files, add_import_module, make_console
from ul2.config_entries import DEFAULT, Config, Difference, Entry


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "Say what a run's config, or that of gin files, comes to, and who set what."
    command = add_command(commands, "config", _run, text)
    command.epilog = (
        "Of two runs, or a run and gin files, it says what differs. A value is set by "
        "FILE:LINE, by a flag, or by nobody (default)."
    )
    command.add_argument(
        "run_directory", nargs="*", metavar="RUN", help="a MODEL_DIR; two: what differs"
    )
    command.add_argument(
        "--own",
        action="store_true",
        help="leave out defaults, and what the files in configs/ set",
    )
    add_gin_files(command)
    add_import_module(command)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ul2 import config_entries

    errors: list[str] = []
    configs = [config_entries.read_run(path) for path in options.run_directory]
    if options.gin_file or options.bindings:
        configs.append(_of_gin_files(options, errors))
    if len(configs) not in (1, 2):
        raise ValueError(
            f"{len(configs)} configs; give one RUN, or --gin_file and "
            "--gin.NAME=VALUE, or two of these to see what differs."
        )
    console = make_console(options)
    report: dict[str, Any] = {"errors": errors}
    if len(configs) == 2:
        different = list(config_entries.differences(*configs))
        for one in different:
            _print_difference(one, console)
        report["differences"] = [_difference_to_json(one) for one in different]
    else:
        config = {
            name: configs[0][name]
            for name in config_entries.in_order(configs[0])
            if not options.own or _is_own(configs[0][name])
        }
        _print_config(config, console)
        report["config"] = {name: _to_json(one) for name, one in config.items()}
    for problem in errors:
        console.print(f"error: {problem}", style="red", soft_wrap=True, markup=False)
    return report


def _of_gin_files(options: argparse.Namespace, errors: list[str]) -> Config:
    """Returns the config of the flags; adds what is wrong with it to `errors`."""
    from ul2 import config_entries, gin_checks, gin_config, gin_origins
    from ul2.cli.command import import_modules

    import_modules(options)
    errors += gin_config.begin(options.gin_file, options.bindings)
    gin_checks.take_texts()
    errors += gin_checks.problems()
    return config_entries.traced(gin_origins.entries())


def _is_own(entry: Entry) -> bool:
    return entry.set_by != DEFAULT and not entry.set_by.startswith("configs/")


def _print_config(config: Config, console: Any) -> None:
    """Prints values as a gin file would say them, each with who set it.

    A parameter that a macro sets is told by its macro.
    """
    for name, entry in config.items():
        if not entry.is_macro:
            _print_entry("", name, entry, console)


def _print_difference(difference: Difference, console: Any) -> None:
    """Prints the lines of a `diff`."""
    for sign, entry in (("- ", difference.before), ("+ ", difference.after)):
        if entry is not None:
            _print_entry(sign, difference.name, entry, console)


def _print_entry(sign: str, name: str, entry: Entry, console: Any) -> None:
    from rich.text import Text

    over = f", over {', '.join(reversed(entry.over))}" if entry.over else ""
    styles = {"- ": "red", "+ ": "green"}
    line = Text(f"{sign}{name} = {entry.value}", styles.get(sign, ""))
    console.print(
        line.append(f"  # {entry.set_by}{over}", "dim"), soft_wrap=True, highlight=False
    )


def _to_json(entry: Entry) -> dict[str, Any]:
    return entry._asdict() | {"over": list(entry.over)}


def _difference_to_json(difference: Difference) -> dict[str, Any]:
    sides = {"before": difference.before, "after": difference.after}
    return {
        "name": difference.name,
        **{side: entry and _to_json(entry) for side, entry in sides.items()},
    }
