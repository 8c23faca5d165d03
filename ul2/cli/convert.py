"""`ul2 convert`: a checkpoint in another format."""

import argparse
from pathlib import Path
from typing import Any

from ul2.cli.command import add_command, check_can_write, say


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
    command.add_argument("--step", type=int, help="which of several; else the newest")
    command.add_argument(
        "--preset", metavar="NAME", help="what it must be: ul2_20b, ..."
    )
    command.add_argument(
        "--activation", metavar="NAME", help="silu, gelu or relu, which T5X leaves out"
    )
    command.add_argument(
        "--vocab", metavar="FILE", help="the SentencePiece model it was trained with"
    )
    command.add_argument("--mode_convention", help="paper or released")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the parameters; else kept"
    )


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ul2.interop.conversion import convert
    from ul2.interop.opening import open_checkpoint

    check_can_write("out", options.out)
    source = open_checkpoint(
        options.source,
        step=options.step,
        preset=options.preset,
        activation=options.activation,
        vocab_file=options.vocab,
        mode_convention=options.mode_convention,
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
