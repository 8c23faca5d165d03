"""Flags of the commands that open a trained model: which one, and how it decodes."""

import argparse
from typing import Any

# An argument parser, or a group of its flags.
Flags = Any


def add_model_flags(flags: Flags) -> None:
    """Adds what a checkpoint may leave unsaid."""
    add = flags.add_argument
    add("--preset", metavar="NAME", help="what it must be: ul2_20b, t5_1_1_xl, ...")
    add("--activation", metavar="NAME", help="silu, gelu or relu, which T5X leaves out")
    add("--vocab", metavar="FILE", help="its SentencePiece model, if none lies beside")
    add("--mode_convention", metavar="NAME", help="paper or released")


def add_step(flags: Flags) -> None:
    """Adds which checkpoint of a run."""
    flags.add_argument(
        "--step", metavar="N", help="which of several, or `best`; else the newest"
    )


def add_dtype(flags: Flags) -> None:
    """Adds the dtype of the computation."""
    flags.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the computation; else what the checkpoint says",
    )


def opening_options(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what `interop.opening.open_checkpoint` takes of these flags."""
    return {
        "preset": options.preset,
        "activation": options.activation,
        "vocab_file": options.vocab,
        "mode_convention": options.mode_convention,
    }


def read_step(text: str | None, checkpoint: str) -> int | None:
    """Reads `--step` of one checkpoint: a number, or `best`.

    Raises:
        ValueError: it is neither, or the run has not been scored.
    """
    from ul2.training.best import best_step
    from ul2.training.checkpoints import checkpoints_dir

    if text is None or text.isdecimal():
        return None if text is None else int(text)
    if text != "best":
        raise ValueError(f"--step={text}: write a number, or best.")
    return best_step(checkpoints_dir(checkpoint).parent)


def add_decoding_flags(flags: Flags) -> None:
    """Adds the fields of `DecodingSettings` that every command offers."""
    add = flags.add_argument
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    add("--top_k", type=int, default=0, help="draw among the k likeliest; 0 for all")
    add("--top_p", type=float, default=1.0, help="draw among the likeliest of this sum")
    add("--repetition_penalty", type=float, default=1.0, help="1 for none")
    add("--no_repeat_ngram", type=int, default=0, help="0 for any")
    add("--num_beams", type=int, default=0, help="of a beam search; 0 for none")
    add("--length_rule", default="t5x", help="or huggingface: of a beam search")
    add("--length_penalty", type=float, default=0.6, help="exponent of that rule")
    add("--early_stopping", action="store_true", help="of the huggingface rule")
