"""`ul2 COMMAND`: flags to calls of `launch`, and errors to exit codes.

Nothing heavy is imported before the flags are parsed, so `--help` answers at once.
Exit codes: 0 done, 2 the input is wrong (one line says how), 1 anything else.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ul2 import is_ours

_PACKAGE: Final = Path(__file__).resolve().parent
_GIN_FLAG: Final = "--gin."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    gin_flags, rest = _take_gin_flags(arguments)
    options = _parser().parse_args(rest)
    run: Callable[[argparse.Namespace], dict[str, Any]] = options.run
    if gin_flags and not hasattr(options, "gin_file"):
        _say(f"error: this command reads no --gin.{gin_flags[0][0]}.")
        return 2
    options.bindings = gin_flags
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _quiet_libraries()
    try:
        report = run(options)
    except KeyboardInterrupt:
        _say("stopped.")
        return 1
    except FloatingPointError as error:
        _say(f"error: {error}")
        return 1
    except ValueError as error:
        if not is_ours(error):
            raise
        _say(f"error: {error}")
        return 2
    if options.json:
        sys.stdout.write(json.dumps(report, allow_nan=False) + "\n")
    if report.get("preempted"):
        _say("stopped before the end; the same command goes on from here.")
        return 1
    return 2 if report.get("errors") else 0


def _quiet_libraries() -> None:
    """Keeps the warnings of libraries off the terminal, but not ours or errors."""
    # absl's own logger knows who called it; it is made when absl is imported.
    import absl.logging

    def is_worth_reading(record: logging.LogRecord) -> bool:
        ours = Path(record.pathname).resolve().is_relative_to(_PACKAGE)
        return ours or record.levelno >= logging.ERROR

    absl.logging.get_absl_logger().addFilter(is_worth_reading)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _take_gin_flags(
    arguments: Sequence[str],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Takes `--gin.NAME=VALUE` out: argparse knows no open set of flags.

    --gin.MESH=data=2,fsdp=4 --json   ->   [(MESH, data=2,fsdp=4)], [--json]
    """
    taken, rest = [], []
    for argument in arguments:
        name, equals, value = argument.removeprefix(_GIN_FLAG).partition("=")
        if not argument.startswith(_GIN_FLAG):
            rest.append(argument)
        elif not equals or not name:
            _say(f"error: {argument}: write --gin.NAME=VALUE.")
            raise SystemExit(2)
        else:
            taken.append((name, value))
    return taken, rest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ul2",
        description="Mixture-of-Denoisers pre-training (UL2) in JAX.",
        epilog="--gin.NAME=VALUE sets a macro of the gin files; no quoting is needed.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_tokenize(commands)
    _add_train(commands)
    _add_check(commands)
    _add_inspect(commands)
    _add_infer(commands)
    _add_convert(commands)
    return parser


def _add(
    commands: Any, name: str, run: Callable[..., dict[str, Any]], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    return command


def _add_gin_files(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file; several compose, and later ones override",
    )


def _add_tokenize(commands: Any) -> None:
    command = _add(commands, "tokenize", _tokenize, "Make a token store from text.")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--text",
        metavar="FILES",
        help="patterns of .txt, .jsonl (.gz, .zst) and .parquet files, separated by "
        "commas; or `embedded`, the documentation inside Python",
    )
    source.add_argument("--task", metavar="NAME", help="a registered seqio task")
    command.add_argument("--out", required=True, metavar="STORE")
    vocab = command.add_mutually_exclusive_group(required=True)
    vocab.add_argument("--vocab", metavar="FILE", help="a SentencePiece model")
    vocab.add_argument(
        "--train_vocab", type=int, metavar="SIZE", help="train one of this many ids"
    )
    command.add_argument(
        "--num_sentinels",
        type=int,
        metavar="N",
        help="sentinels to train, or to add to a --vocab without any; by default as "
        "many as the objective needs (--gin_file, --gin.INPUTS_LENGTH), or UL2 at "
        "1024/1024",
    )
    command.add_argument(
        "--import_module",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module that registers the --task",
    )
    command.add_argument("--text_unit", default="paragraph", help="document of a .txt")
    command.add_argument("--text_field", default="text", help="field with the text")
    command.add_argument("--held_out", type=float, default=0.02, help="share held out")
    command.add_argument("--on_error", default="refuse", help="or skip broken records")
    command.add_argument(
        "--num_workers", type=int, help="processes; one per core if unset"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the store")
    _add_gin_files(command)


def _add_train(commands: Any) -> None:
    command = _add(commands, "train", _train, "Train, or go on with a run.")
    _add_gin_files(command)


def _add_check(commands: Any) -> None:
    text = "Say what a config will really do, and everything wrong with it."
    _add_gin_files(_add(commands, "check", _check, text))


def _add_inspect(commands: Any) -> None:
    command = _add(commands, "inspect", _inspect, "Show the examples of any step.")
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
    _add_gin_files(command)


def _add_infer(commands: Any) -> None:
    text = "Fill blanks and go on with texts, greedily."
    command = _add(commands, "infer", _infer, text)
    command.add_argument("--checkpoint", required=True, metavar="DIR")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", metavar="FILE", help='rows of {"inputs", "mode"}')
    source.add_argument("--text", help="one text; ___ is a blank to fill")
    command.add_argument(
        "--output", metavar="FILE", help="JSON lines; required by --input"
    )
    command.add_argument("--mode", default="none", help="R, S, X or none")
    command.add_argument("--max_tokens", type=int, default=64, help="longest output")


def _add_convert(commands: Any) -> None:
    text = "Write a checkpoint in another format; what it is in is found out."
    command = _add(commands, "convert", _convert, text)
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


def _console(options: argparse.Namespace) -> Any:
    """Returns where a person reads: standard output, unless a machine reads that."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 160
    return Console(stderr=options.json, width=wide)


def _check_at_least(minimum: int, flag: str, value: int | None) -> None:
    if value is not None and value < minimum:
        raise ValueError(f"--{flag}={value} must be at least {minimum}.")


def _check_can_write(flag: str, path: str) -> None:
    """Refuses a place that nothing can be written to, before the work is done."""
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--{flag}={path}: {folder}: {error.strerror}.") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--{flag}={path}: no permission to write to {folder}.")


def _tokenize(options: argparse.Namespace) -> dict[str, Any]:
    import dataclasses
    import importlib
    import tempfile

    from ul2.tasks import tokenization
    from ul2.tasks.sources import TextSource
    from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer

    _check_at_least(0, "num_sentinels", options.num_sentinels)
    _check_can_write("out", options.out)
    for module in options.import_module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"--import_module={module}: {error}.") from None
    source: TextSource | tokenization.TaskSource
    if options.task:
        source = tokenization.TaskSource(
            name=options.task,
            text_field=options.text_field,
            held_out_share=options.held_out,
        )
    else:
        source = TextSource(
            files=options.text,
            text_unit=options.text_unit,
            text_field=options.text_field,
            on_error=options.on_error,
            held_out_share=options.held_out,
        )
    with tempfile.TemporaryDirectory() as scratch:
        if options.vocab:
            tokenizer = _open_vocab(options)
        else:
            documents = tokenization.read_source(source)
            texts = (document.text for split, document in documents if split == "train")
            tokenizer = open_tokenizer(
                train_tokenizer(
                    texts,
                    options.train_vocab,
                    _num_sentinels(options),
                    Path(scratch) / "tokenizer.model",
                )
            )
        summary = tokenization.tokenize_corpus(
            source,
            options.out,
            tokenizer,
            num_workers=options.num_workers,
            overwrite=options.overwrite,
        )
    report = dataclasses.asdict(summary)
    _say(
        f"{summary.path}: {summary.documents['train']} documents, "
        f"{summary.tokens['train']} tokens to train on, "
        f"{summary.tokens['held_out']} held out, {tokenizer.vocab.size} ids; "
        f"{summary.skipped} broken records left out."
    )
    if summary.unknown_tokens:
        _say(f"{summary.unknown_tokens} tokens are unknown: the vocabulary lost them.")
    for reason in summary.skipped_reasons:
        _say(f"left out: {reason}")
    return report


def _num_sentinels(options: argparse.Namespace) -> int:
    """Returns how many sentinels to make: as told, or what the objective needs."""
    from ul2 import launch

    if options.num_sentinels is not None:
        return int(options.num_sentinels)
    return launch.sentinels_needed(options.gin_file, options.bindings)


def _open_vocab(options: argparse.Namespace) -> Any:
    """Opens a foreign vocabulary; one without sentinels is given some.

    Modes are written as the released models write them, unless the vocabulary has the
    paper's as ids of their own.
    """
    from ul2.tasks.tokenizer import open_tokenizer
    from ul2.vocab import MODES

    plain = open_tokenizer(options.vocab)
    own = all(len(plain.vocab.mode(mode)) == 1 for mode in MODES)
    added = options.num_sentinels or 0
    if not plain.vocab.sentinel_ids:
        added = _num_sentinels(options)
    return open_tokenizer(options.vocab, added, "paper" if own else "released")


def _train(options: argparse.Namespace) -> dict[str, Any]:
    import dataclasses

    from ul2 import inspection, launch

    recipe = launch.read(options.gin_file, options.bindings)
    summary = launch.train(recipe)
    report = dataclasses.asdict(summary)
    report["evaluation"] = report["evaluation"] or _last_evaluation(recipe.model_dir)
    _say(f"{recipe.model_dir} is at step {summary.step}.")
    inspection.print_evaluation(report["evaluation"], _console(options))
    return report


def _last_evaluation(model_dir: str) -> dict[str, Any]:
    """Returns what a finished run was last scored; training it again adds nothing."""
    file = Path(model_dir) / "eval.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return json.loads(lines[-1]) if lines else {}


def _check(options: argparse.Namespace) -> dict[str, Any]:
    from ul2 import inspection, launch

    report = launch.check(options.gin_file, options.bindings)
    inspection.print_check(report, _console(options))
    return report


def _inspect(options: argparse.Namespace) -> dict[str, Any]:
    from ul2 import inspection, launch
    from ul2.sharding.mesh import make_mesh
    from ul2.tasks.tokenizer import open_with_vocab

    _check_at_least(0, "step", options.step)
    _check_at_least(1, "examples", options.examples)
    recipe = launch.read(
        options.gin_file, options.bindings, launch.NOT_NEEDED_WITHOUT_TRAINING
    )
    store, vocab = recipe.open_store()
    tokenizer = open_with_vocab(store.tokenizer_path, vocab)
    source = recipe.source(options.split, make_mesh(recipe.mesh))
    examples = list(inspection.examples_of(source.stream, options.step))
    console = _console(options)
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


def _infer(options: argparse.Namespace) -> dict[str, Any]:
    from ul2 import launch

    if options.input and not options.output:
        raise ValueError("--input needs --output, the file to write.")
    _check_at_least(1, "max_tokens", options.max_tokens)
    if options.output:
        _check_can_write("output", options.output)
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


def _convert(options: argparse.Namespace) -> dict[str, Any]:
    from ul2.interop.conversion import convert
    from ul2.interop.opening import open_checkpoint

    _check_can_write("out", options.out)
    source = open_checkpoint(
        options.source,
        step=options.step,
        preset=options.preset,
        activation=options.activation,
        vocab_file=options.vocab,
        mode_convention=options.mode_convention,
    )
    found = source.preset or "a model of no known preset"
    _say(f"{options.source}: {found}, {source.format} ({source.layout}).")
    for line in source.assumed:
        _say(f"assumed: {line}.")
    report = convert(source, options.to, Path(options.out), dtype=options.dtype)
    _say(
        f"{options.out}: {report['parameters']} parameters for {options.to}; greatest "
        f"difference of a logit: {report['max_logit_difference']} "
        f"(compared with {report['compared_with']})."
    )
    return report


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
