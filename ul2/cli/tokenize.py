"""`ul2 tokenize`: text to a token store."""

import argparse
from pathlib import Path
from typing import Any

from ul2.cli.command import (
    add_command,
    add_gin_files,
    add_import_module,
    check_at_least,
    check_can_write,
    import_modules,
    say,
)


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    command = add_command(commands, "tokenize", _run, "Make a token store from text.")
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
    add_import_module(command)
    command.add_argument("--text_unit", default="paragraph", help="document of a .txt")
    command.add_argument("--text_field", default="text", help="field with the text")
    command.add_argument("--held_out", type=float, default=0.02, help="share held out")
    command.add_argument("--on_error", default="refuse", help="or skip broken records")
    command.add_argument(
        "--num_workers", type=int, help="processes; one per core if unset"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the store")
    add_gin_files(command)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    import dataclasses
    import tempfile

    from ul2.tasks import tokenization
    from ul2.tasks.sources import TextSource
    from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer

    check_at_least(0, "num_sentinels", options.num_sentinels)
    check_can_write("out", options.out)
    import_modules(options)
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
    say(
        f"{summary.path}: {summary.documents['train']} documents, "
        f"{summary.tokens['train']} tokens to train on, "
        f"{summary.tokens['held_out']} held out, {tokenizer.vocab.size} ids; "
        f"{summary.skipped} broken records left out."
    )
    if summary.unknown_tokens:
        say(f"{summary.unknown_tokens} tokens are unknown: the vocabulary lost them.")
    for reason in summary.skipped_reasons:
        say(f"left out: {reason}")
    return report


def _num_sentinels(options: argparse.Namespace) -> int:
    """Returns how many sentinels to make: as told, or what the objective needs."""
    from ul2 import launch

    if options.num_sentinels is not None:
        return int(options.num_sentinels)
    return launch.sentinels_needed(options.gin_file, options.bindings)


def _open_vocab(options: argparse.Namespace) -> Any:
    """Opens a foreign vocabulary; one without sentinels is given some."""
    from ul2.interop.vocabulary import open_foreign

    opened = open_foreign(Path(options.vocab), options.num_sentinels or 0)
    if opened.vocab.sentinel_ids or options.num_sentinels is not None:
        return opened
    return open_foreign(Path(options.vocab), _num_sentinels(options))
