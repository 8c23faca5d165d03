"""`ul2 inspect`: the examples of any step."""

import argparse
from typing import Any

from ul2.cli.command import (
    add_command,
    add_gin_files,
    add_import_module,
    check_at_least,
    check_can_write,
    import_modules,
    make_console,
    say,
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
    command.add_argument(
        "--html",
        metavar="FILE",
        help="write a page for a browser: text, rows, masks, and what the mixture "
        "really does; examples are printed only if --examples says how many",
    )
    add_gin_files(command)
    add_import_module(command)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from pathlib import Path

    from ul2 import inspection, launch
    from ul2.tasks.example_tokenization import tokenizer_of

    check_at_least(0, "step", options.step)
    check_at_least(1, "examples", options.examples)
    if options.html is not None:
        check_can_write("html", options.html)
    import_modules(options)
    console = make_console(options)
    with launch.opened_to_look_at(options.gin_file, options.bindings) as data:
        tokenizer = tokenizer_of(Path("tokenizer"), data.tokenizer, data.vocab)
        examples = list(data.examples(options.split, options.step))
        declared = data.declared(options.split, options.step)
        shown = examples[: options.examples]
        if options.masks or options.html is not None:
            batch = data.source(options.split)[options.step]
        if options.masks:
            inspection.print_masks(batch, console)
        if options.html is not None:
            _write_page(options, data, tokenizer, batch, examples)
    if not options.json:
        inspection.print_declared(options.step, declared, console)
        if options.html is None or options.examples is not None:
            inspection.print_examples(shown, tokenizer, console)
        return {}
    return {
        "step": options.step,
        "denoisers": declared,
        "examples": [inspection.to_json(example, tokenizer) for example in shown],
    }


def _write_page(
    options: argparse.Namespace, data: Any, tokenizer: Any, batch: Any, examples: Any
) -> None:
    """Writes the page of a batch, and says where it is."""
    from ul2 import inspection_page
    from ul2.html import pages

    most = options.examples or inspection_page.MOST_EXAMPLES
    made = inspection_page.InspectionPage(data.names, tokenizer, data.measure()).make(
        options.step,
        options.split,
        batch,
        inspection_page.spread_out(examples, most),
        len(examples),
    )
    pages.write(options.html, made)
    say(f"wrote {options.html}")
