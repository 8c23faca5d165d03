"""`ul2 infer`: a trained model to text."""

import argparse
import contextlib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ul2.cli.command import (
    add_command,
    add_import_module,
    check_at_least,
    check_can_write,
    import_modules,
    say,
)
from ul2.cli.model import (
    add_decoding_flags,
    add_dtype,
    add_model_flags,
    add_step,
    opening_options,
    read_step,
)

if TYPE_CHECKING:
    from ul2.decoding.text_model import TextModel
    from ul2.inference.rows import RowSource
    from ul2.inference.settings import InferenceSettings


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "Fill blanks, answer and go on with texts, or score given answers."
    command = add_command(commands, "infer", _run, text)
    _add_checkpoint(command)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="one text; ___ is a blank to fill")
    source.add_argument(
        "--input",
        metavar="FILE",
        help='.txt: a text a line; .jsonl (both also .gz, .zst) or .parquet: "inputs" '
        'and, if wanted, "mode", "prefix", "max_tokens", "targets"',
    )
    source.add_argument("--task", metavar="NAME", help="the examples of a task")
    source.add_argument("--interactive", action="store_true", help="answer a person")
    command.add_argument(
        "--output",
        metavar="FILE",
        help="JSON lines, in order; a killed command goes on where it was",
    )
    command.add_argument("--split", default="validation", help="of --task")
    command.add_argument("--data_dir", metavar="DIR", help="where the data of tasks is")
    add_import_module(command)
    command.add_argument("--batch_size", type=int, default=32, help="rows at once")
    _add_rows(command)
    _add_decoding(command)


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a run of ours, T5X's or Hugging Face's directory",
    )
    add_step(command)
    add_model_flags(command)
    add_dtype(command)


def _add_rows(command: argparse.ArgumentParser) -> None:
    command.add_argument("--mode", default="none", help="R, S, X or none")
    command.add_argument("--prefix", default="", help="text that outputs begin with")
    command.add_argument(
        "--max_inputs",
        type=int,
        metavar="N",
        help="longest inputs in tokens; else what it was trained on, if that is known",
    )
    command.add_argument(
        "--on_long", default="truncate", help="or refuse: what to do with longer ones"
    )
    command.add_argument(
        "--keep_sentinels",
        action="store_true",
        help="let outputs of texts without blanks hold sentinels",
    )
    command.add_argument(
        "--score", action="store_true", help='score "targets" instead of decoding'
    )


def _add_decoding(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--max_tokens", type=int, default=64, help="longest output")
    add_decoding_flags(command)
    add("--num_decodes", type=int, default=1, help="outputs of each text")
    add("--seed", type=int, default=0, help="of what is drawn")


def _run(options: argparse.Namespace) -> dict[str, Any]:
    if (options.input or options.task) and not options.output:
        flag = "--input" if options.input else "--task"
        raise ValueError(f"{flag} needs --output, the file to write.")
    check_at_least(1, "max_tokens", options.max_tokens)
    if options.output:
        check_can_write("output", options.output)
    settings = _settings(options)
    source = _source(options)

    from ul2.inference.opening import open_model
    from ul2.inference.rows import survey

    found = survey(source) if source else None
    model = open_model(
        options.checkpoint,
        step=read_step(options.step, options.checkpoint),
        dtype=options.dtype,
        **opening_options(options),
    )
    if options.interactive:
        return _talk(model, settings)
    if source is None or found is None:
        return _answer_text(model, settings, options)

    from ul2.inference.run import answer_file

    summary = answer_file(model, source, found, Path(options.output), settings, say)
    for line in summary.lines():
        say(line)
    return summary._asdict()


def _settings(options: argparse.Namespace) -> "InferenceSettings":
    import dataclasses

    from ul2.decoding.settings import DecodingSettings
    from ul2.inference.settings import InferenceSettings, read_mode

    def picked(kind: Any) -> dict[str, Any]:
        flags = {field.name for field in dataclasses.fields(kind)} & set(vars(options))
        return {name: getattr(options, name) for name in flags}

    decoding = DecodingSettings(**picked(DecodingSettings))
    fields = {**picked(InferenceSettings), "mode": read_mode(options.mode)}
    return InferenceSettings(**fields, decoding=decoding)


def _source(options: argparse.Namespace) -> "RowSource | None":
    """Returns the rows of a file or a task."""
    from ul2.inference.rows import FileRows, TaskRows

    if options.task:
        import_modules(options)
        return TaskRows(options.task, options.split, options.data_dir)
    return FileRows(options.input) if options.input else None


def _answer_text(
    model: "TextModel", settings: "InferenceSettings", options: argparse.Namespace
) -> dict[str, Any]:
    """Shows the answer to one text: filled, where it has blanks."""
    import json

    from ul2.inference.run import answer_text

    answer = answer_text(model, options.text, settings, say)
    if options.output:
        partial = Path(f"{options.output}.partial")
        partial.write_text(json.dumps(answer) + "\n")
        partial.replace(options.output)
    else:
        for one in answer.get("predictions", [answer]):
            sys.stdout.write(one.get("filled", one["prediction"]) + "\n")
    return {"rows": 1, "predictions": [answer]}


def _talk(model: "TextModel", settings: "InferenceSettings") -> dict[str, Any]:
    from ul2.inference.interactive import Session

    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # input() then edits lines

    def read() -> str | None:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return {"rows": Session(model, settings, read, write).run()}
