"""`ul2 convert`: a checkpoint in another format."""

import argparse
from pathlib import Path
from typing import Any

from ul2.cli.command import add_command, check_can_write, say
from ul2.cli.model import add_model_flags, add_step, opening_options, read_step


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "Write a checkpoint in another format; what it is in is found out."
    command = add_command(commands, "convert", _run, text)
    command.add_argument(
        "source", metavar="SRC", help="a run of ours, T5X's or Hugging Face's directory"
    )
    command.add_argument(
        "--to", required=True, choices=("ul2", "t5x", "huggingface", "stablehlo")
    )
    command.add_argument(
        "--out", required=True, metavar="DST", help="directory to make"
    )
    add_step(command)
    add_model_flags(command)
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the parameters; else kept"
    )


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ul2.interop.conversion import convert
    from ul2.interop.opening import open_checkpoint

    check_can_write("out", options.out)
    source = open_checkpoint(
        options.source,
        step=read_step(options.step, options.source),
        **opening_options(options),
    )
    found = source.preset or "a model of no known preset"
    say(f"{options.source}: {found}, {source.format} ({source.layout}).")
    for line in source.assumed:
        say(f"assumed: {line}.")
    report = convert(source, options.to, Path(options.out), dtype=options.dtype)
    say(
        f"{options.out}: {report['parameters']} parameters for {options.to}; greatest "
        f"difference of a logit: {report['max_logit_difference']} "
        f"(compared with {report['compared_with']})."
    )
    return report
