"""`ul2 inspect`: the examples of any step."""

import argparse
from typing import Any

from ul2.cli.command import (
    add_command,
    add_gin_files,
    add_import_module,
    check_at_least,
    import_modules,
    make_console,
)


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    command = add_command(commands, "inspect", _run, "Show the examples of any step.")
    command.add_argument(
        "--step",
        type=int,
        default=0,
        help="the examples that a state of this step is updated on",
    )
    command.add_argument("--examples", type=int, metavar="N", help="show at most N")
    command.add_argument("--split", default="train", help="or held_out")
    command.add_argument(
        "--masks", action="store_true", help="draw the attention masks of one row"
    )
    add_gin_files(command)
    add_import_module(command)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from pathlib import Path

    from ul2 import inspection, launch
    from ul2.tasks.example_tokenization import tokenizer_of

    check_at_least(0, "step", options.step)
    check_at_least(1, "examples", options.examples)
    import_modules(options)
    console = make_console(options)
    with launch.opened_to_look_at(options.gin_file, options.bindings) as data:
        tokenizer = tokenizer_of(Path("tokenizer"), data.tokenizer, data.vocab)
        examples = list(data.examples(options.split, options.step))
        declared = data.declared(options.split, options.step)
        shown = examples[: options.examples]
        if options.masks:
            batch = data.source(options.split)[options.step]
            inspection.print_masks(batch, console)
    if not options.json:
        inspection.print_declared(options.step, declared, console)
        inspection.print_examples(shown, tokenizer, console)
        return {}
    return {
        "step": options.step,
        "denoisers": declared,
        "examples": [inspection.to_json(example, tokenizer) for example in shown],
    }
