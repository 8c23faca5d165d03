"""`ul2 plan`: what a run will take, before anything is paid for."""

import argparse
from typing import Any

from ul2.cli.command import (
    add_command,
    add_gin_files,
    add_import_module,
    check_at_least,
    import_modules,
    make_console,
    say,
)


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = (
        "Say what a run will take on hardware that is not here: memory by cause, "
        "whether it fits, communication, time."
    )
    command = add_command(commands, "plan", _run, text)
    add_gin_files(command)
    command.add_argument(
        "--topology",
        required=True,
        action="append",
        metavar="NAME",
        help="v5p:4x4x4, 2*v5e:16x16 (libtpu's compiler); cpu:8, h200:8 (the CPU's); "
        "several make one table",
    )
    command.add_argument(
        "--config",
        action="append",
        metavar="FILES",
        help="gin files, separated by commas, that are read after --gin_file; several "
        "--config make one table",
    )
    command.add_argument(
        "--search",
        action="store_true",
        help="try meshes, remat policies and microbatches, and rank those that fit",
    )
    command.add_argument(
        "--candidates",
        type=int,
        default=6,
        metavar="N",
        help="how many of the most promising --search compiles",
    )
    command.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="plan so many layers of each stack instead of the config's",
    )
    add_import_module(command)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    check_at_least(1, "candidates", options.candidates)
    check_at_least(1, "depth", options.depth)

    from ul2.planning import tables
    from ul2.planning.from_gin import plan_configs

    import_modules(options)
    configs = options.config or [""]
    reports = plan_configs(
        [[*options.gin_file, *filter(None, one.split(","))] for one in configs],
        options.bindings,
        options.topology,
        depth=options.depth,
        candidates=options.candidates if options.search else 0,
        say=say,
    )
    for index, report in enumerate(reports):
        report["config"] = configs[index % len(configs)] or None
    console = make_console(options)
    if len(reports) == 1:
        tables.print_plan(reports[0], console)
        return reports[0]
    tables.print_plans(reports, console)
    return {"plans": reports}
