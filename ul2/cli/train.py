"""`ul2 train`: a run, from its start or from where it stopped.

On several hosts the same command is started once on each; see `ul2.sharding.processes`.
"""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

from ul2.cli import signals, supervisor
from ul2.cli.command import (
    add_command,
    add_gin_files,
    add_import_module,
    explain,
    import_modules,
    make_console,
    say,
)
from ul2.sharding import processes
from ul2.sharding.processes import EXIT_RESTART
from ul2.training import failures

# How long a process that ends by an error waits for others that end by the same, and
# how much longer process 0 stays.
_PATIENCE_SECONDS: Final = 5.0
_LAST_SECONDS: Final = 1.0


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    command = add_command(commands, "train", run, "Train, or go on with a run.")
    command.epilog = (
        "On several hosts start it on each: by SLURM, GKE or on a TPU VM they find "
        "each other; elsewhere set UL2_COORDINATOR=HOST:PORT, UL2_NUM_PROCESSES and "
        "UL2_PROCESS_ID. Exit code 75: start it again, it goes on."
    )
    add_gin_files(command)
    add_import_module(command)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Trains; in a process that a parent watches over, where it is one of several."""
    if not processes.may_be_several():
        signals.listen_while_compiling()
        return _train(options)
    notes = supervisor.split()
    signals.listen_while_compiling()
    try:
        joined = processes.join()
        if joined is not None:
            notes.write(index=joined.index, count=joined.count, hosts=joined.hosts)
            say(f"{joined.name}: {joined.devices}.")
        return _train(options, notes)
    except BaseException as error:
        _leave(error, notes.read())


def _train(
    options: argparse.Namespace, notes: supervisor.Notes | None = None
) -> dict[str, Any]:
    """Trains; process 0 alone says how it ended."""
    import dataclasses

    import jax

    from ul2 import inspection, launch

    import_modules(options)
    recipe = launch.read(options.gin_file, options.bindings)
    if notes is not None:
        notes.write(model_dir=recipe.model_dir)
    summary = launch.train(recipe)
    report = dataclasses.asdict(summary)
    if jax.process_index():
        options.json = False
        return report
    report["evaluation"] = report["evaluation"] or _last_evaluation(recipe.model_dir)
    console = make_console(options)
    inspection.print_modes(summary.modes, console)
    say(f"{recipe.model_dir} is at step {summary.step}.")
    inspection.print_evaluation(report["evaluation"], console)
    if summary.best is not None:
        best = summary.best
        say(f"best {best['metric']}: {best['value']:.4g} at step {best['step']}.")
    return report


def _leave(error: BaseException, notes: dict[str, Any]) -> NoReturn:
    """Ends one of several processes after an error.

    Python's own way out would wait: jax meets all processes when it shuts down, and the
    others may stand in a collective that this one will never enter.
    """
    lost = failures.lost_process(error)
    explained = explain(error)
    if lost is not None:
        after = supervisor.what_to_do(notes.get("model_dir"))
        explained = f"error: lost another process: {lost}; {after}.", EXIT_RESTART
    line, code = explained or ("".join(traceback.format_exception(error)).rstrip(), 1)
    say(f"{supervisor.name(notes)}: {line}")
    # An error that all make, as of a wrong flag, is to be said by all. Process 0 goes
    # last: without it jax ends the others before they can say anything.
    if lost is None:
        processes.wait_briefly("ul2 ends by an error", _PATIENCE_SECONDS)
    if notes.get("index") == 0:
        time.sleep(_LAST_SECONDS)
    sys.stdout.flush()
    os._exit(code)


def _last_evaluation(model_dir: str) -> dict[str, Any]:
    """Returns what a finished run was last scored; training it again adds nothing."""
    from ul2.run_files import EVALUATIONS, read_measurements

    lines = [line for _, _, line in read_measurements(Path(model_dir) / EVALUATIONS)]
    return lines[-1] if lines else {}
