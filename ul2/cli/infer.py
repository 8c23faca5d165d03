"""`ul2 infer`: a trained model to text."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ul2.cli.command import add_command, check_at_least, check_can_write


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "Fill blanks and go on with texts, greedily."
    command = add_command(commands, "infer", _run, text)
    command.add_argument("--checkpoint", required=True, metavar="DIR")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", metavar="FILE", help='rows of {"inputs", "mode"}')
    source.add_argument("--text", help="one text; ___ is a blank to fill")
    command.add_argument(
        "--output", metavar="FILE", help="JSON lines; required by --input"
    )
    command.add_argument("--mode", default="none", help="R, S, X or none")
    command.add_argument("--max_tokens", type=int, default=64, help="longest output")


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ul2 import launch

    if options.input and not options.output:
        raise ValueError("--input needs --output, the file to write.")
    check_at_least(1, "max_tokens", options.max_tokens)
    if options.output:
        check_can_write("output", options.output)
    if options.text is not None:
        rows = [{"inputs": options.text}]
    else:
        rows = _read_rows(Path(options.input))
    predictions = launch.infer(
        options.checkpoint,
        rows,
        mode=options.mode,
        max_tokens=options.max_tokens,
    )
    if options.output:
        lines = "".join(json.dumps(row) + "\n" for row in predictions)
        partial = Path(f"{options.output}.partial")
        partial.write_text(lines)
        partial.replace(options.output)
    else:
        sys.stdout.write(predictions[0]["filled"] + "\n")
    return {"rows": len(predictions), "predictions": predictions}


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """Reads rows of JSON with at least `inputs`."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"cannot read --input {file}: {error.strerror}.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}:{number}: not UTF-8 ({error.reason}).") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: no JSON ({error.msg}).") from None
        if not isinstance(row, dict) or not isinstance(row.get("inputs"), str):
            raise ValueError(f'{file}:{number}: a row needs "inputs", a text.')
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} is empty.")
    return rows
