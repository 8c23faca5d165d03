"""`ul2 inspect`: the examples of any step."""

import argparse
from typing import Any

from ul2.cli.command import add_command, add_gin_files, check_at_least, make_console


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


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ul2 import inspection, launch
    from ul2.sharding.mesh import make_mesh
    from ul2.tasks.tokenizer import open_with_vocab

    check_at_least(0, "step", options.step)
    check_at_least(1, "examples", options.examples)
    recipe = launch.read(
        options.gin_file, options.bindings, launch.NOT_NEEDED_WITHOUT_TRAINING
    )
    store, vocab = recipe.open_store()
    tokenizer = open_with_vocab(store.tokenizer_path, vocab)
    source = recipe.source(options.split, make_mesh(recipe.mesh))
    examples = list(inspection.examples_of(source.stream, options.step))
    console = make_console(options)
    if options.masks:
        inspection.print_masks(source[options.step], console)
    if not options.json:
        inspection.print_examples(examples[: options.examples], tokenizer, console)
        return {}
    shown = examples[: options.examples]
    return {
        "step": options.step,
        "examples": [inspection.to_json(example, tokenizer) for example in shown],
    }
