"""What a run does to its text: the pre-flight check, and any step's examples.

Everything is read off the real stream, the one that trains: nothing is imitated for
show.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ul2.batch import Batch
from ul2.data.run_data import Example
from ul2.decoding.text import decode_inside
from ul2.models.masks import Causal, Keys, Mask, Prefix
from ul2.tasks.tokenizer import Tokenizer

_SENTINEL_STYLES: Final = ("cyan", "green", "yellow", "blue", "bright_red")
_MASK_CELLS: Final = 48


def to_json(example: Example, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns an example as plain values, its tokens as text."""
    return {
        "index": example.number,
        "denoiser": example.denoiser,
        "mode": example.mode,
        "source": example.source,
        "inputs": "".join(text for _, text in _pieces(example.inputs, tokenizer)),
        "targets": "".join(text for _, text in _pieces(example.targets, tokenizer)),
    }


def _pieces(
    ids: NDArray[np.int32], tokenizer: Tokenizer
) -> Iterator[tuple[int | None, str]]:
    """Yields (special id or None, text): runs of plain text, and each special id."""
    vocab = tokenizer.vocab
    names = {vocab.eos_id: "<eos>", vocab.pad_id: "<pad>"}
    named = {*vocab.sentinel_ids, *names}
    named |= {mode[0] for mode in vocab.mode_ids.values() if len(mode) == 1}
    run: list[int] = []
    decode = tokenizer.decode
    for token in ids.tolist():
        if token not in named:
            run.append(token)
            continue
        if run:
            yield None, decode(run)
        yield token, names.get(token) or tokenizer.decode([token])
        run = []
        decode = functools.partial(
            decode_inside, decode=tokenizer.decode, vocab=tokenizer.vocab
        )
    if run:
        yield None, decode(run)


def print_declared(
    step: int, declared: Sequence[dict[str, Any]], console: Console
) -> None:
    """Says how often each denoiser or task is used at a step, and how much it masks."""
    parts = []
    for row in declared:
        density = row.get("noise_density")
        masked = "" if density is None else f", {density:.4g} masked"
        parts.append(f"{row['name']} {row['share']:.2%}{masked}")
    console.print(Text(f"step {step}: {'; '.join(parts)}", style="dim"))
    console.print()


def print_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, console: Console
) -> None:
    """Shows examples to a person: a sentinel and its span have one colour."""
    for example in examples:
        head = f"#{example.number}  {example.denoiser}  mode {example.mode or 'none'}"
        console.print(Text(f"{head}  {example.source}", style="bold"))
        console.print(Text("  inputs   ") + _colour(example.inputs, tokenizer, False))
        console.print(Text("  targets  ") + _colour(example.targets, tokenizer, True))
        console.print()


def _colour(ids: NDArray[np.int32], tokenizer: Tokenizer, noise: bool) -> Text:
    """Returns tokens as text; in the targets a span has its sentinel's colour."""
    vocab = tokenizer.vocab
    spans = {token: i for i, token in enumerate(vocab.sentinel_ids)}
    modes = {token for mode in vocab.mode_ids.values() for token in mode}
    text, span = Text(), ""
    for token, piece in _pieces(ids, tokenizer):
        piece = piece.replace("\n", "⏎")
        if token in spans:
            colour = _SENTINEL_STYLES[spans[token] % len(_SENTINEL_STYLES)]
            span = colour if noise else ""
            text.append(piece, f"bold {colour}")
        elif token in modes:
            text.append(piece, "bold reverse")
        elif token is not None:
            text.append(piece, "dim")
        else:
            text.append(piece, span)
    return text


def print_masks(batch: Batch, console: Console) -> None:
    """Draws what the first row's examples may see; long ones are thinned out.

    A column is a key, a line is a query. Packed examples have no line in common:
    attention runs over one example at a time.
    """
    for name, mask, columns in _masks(batch):
        positions = jnp.arange(columns.shape[-1])
        seen = np.asarray(mask.materialize(positions, positions))[0]
        for number, places in enumerate(columns[0]):
            length = int((places >= 0).sum())
            at = np.linspace(0, length - 1, min(length, _MASK_CELLS)).astype(int)
            cells = seen[number if len(seen) > 1 else 0]
            cells = np.broadcast_to(cells, (len(positions),) * 2)[np.ix_(at, at)]
            console.print(Text(f"{name}, example {number}, {length} tokens", "bold"))
            for line in cells:
                console.print(Text("".join("█" if cell else "·" for cell in line)))
            console.print()


def _masks(batch: Batch) -> Iterator[tuple[str, Mask, NDArray[np.int32]]]:
    """Yields the self-attention masks of a batch, as the models build them."""
    if batch.encoder is not None:
        columns = batch.encoder.columns
        yield "encoder", Keys(columns >= 0), columns
        yield "decoder", Causal(), batch.decoder.columns
    else:
        mask = Causal() | Prefix(batch.prefix_lengths)
        yield "decoder", mask, batch.decoder.columns


def print_check(report: dict[str, Any], console: Console) -> None:
    """Shows a pre-flight check to a person.

    Of denoisers, what was declared and what was measured; of tasks, what they hold and
    what of it is cut.
    """
    rows = report.get("denoisers", [])
    for step in dict.fromkeys(row.get("step") for row in rows):
        here = [row for row in rows if row.get("step") == step]
        console.print(_denoiser_table(here, step))
    if report.get("tasks"):
        console.print(_task_table(report["tasks"]))
    if report["padding_fraction"] is not None:
        console.print(
            f"{report['rows']} rows of {report['examples_per_row']} examples, "
            f"{' + '.join(map(str, report['row_lengths']))} columns, "
            f"{report['padding_fraction']:.2%} padding; "
            f"{report['batches_per_epoch']:.1f} updates per epoch"
        )
    for warning in report["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    for problem in report["errors"]:
        console.print(Text(f"error: {problem}", style="red"), soft_wrap=True)


def _denoiser_table(rows: Sequence[dict[str, Any]], step: int | None) -> Table:
    """Returns what was declared and measured; from a step on, if a mixture moves."""
    since = "" if step is None else f", from step {step} on"
    table = Table(title=f"measured (declared){since}")
    for name in ("denoiser", "mode", "share", "density", "span", "sentinels"):
        table.add_column(name, justify="left" if name == "denoiser" else "right")
    for name in ("text", "inputs", "targets", "of all targets"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_check_row(row))
    return table


def _check_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Formats one denoiser."""

    def pair(name: str, form: str) -> str:
        return f"{row[f'measured_{name}']:{form}} ({row[name]:{form}})"

    return (
        row["name"],
        row["mode"] or "-",
        f"{row['measured_share']:.2%} ({row['rate']:.2%})",
        pair("noise_density", ".4f"),
        pair("mean_span_length", ".2f"),
        str(row["sentinels_needed"]),
        str(row["text_length"]),
        f"{row['measured_inputs_length']:.1f}",
        f"{row['measured_targets_length']:.1f}",
        f"{row['target_share']:.1%}",
    )


def _task_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns what tasks hold, their lengths in tokens, and what is cut."""
    table = Table(title="tasks, lengths in tokens: mean, longest (cut)")
    names = ("task", "mode", "share", "examples", "held out", "inputs", "targets")
    for name in (*names, "updates per epoch"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for row in rows:
        lengths = [
            f"{row[f'mean_{side}']:.1f}, {row[f'longest_{side}']} "
            f"({row[f'truncated_{side}']})"
            for side in ("inputs", "targets")
        ]
        table.add_row(
            row["name"],
            row["mode"] or "-",
            f"{row['share']:.2%}",
            str(row["examples"]),
            str(row["held_out_examples"]),
            *lengths,
            f"{row['batches_per_epoch']:.1f}",
        )
    return table


def print_modes(report: dict[str, Any] | None, console: Console) -> None:
    """Shows what the trials of the modes measured, the best one marked."""
    if not report or not report["trials"]:
        return
    steps = report["trial_steps"]
    table = Table(title=f"modes after {steps} updates each, by {report['metric']}")
    metrics = list(next(iter(report["trials"].values())))
    for name in ("mode", *metrics):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for name, scores in report["trials"].items():
        mark = " *" if name == report["best"] else ""
        values = (f"{scores[metric]:.4g}" for metric in metrics)
        table.add_row(f"{name}{mark}", *values)
    console.print(table)


def print_evaluation(scores: dict[str, Any], console: Console) -> None:
    """Shows held-out scores: below the unigram entropy, a model has learned."""
    if not scores:
        return
    table = Table(title=f"held-out text after step {scores['step']}, nats per token")
    columns = ("loss", "unigram entropy", "accuracy", "whole examples", "tokens")
    table.add_column("name")
    for name in columns:
        table.add_column(name, justify="right")
    for name, row in scores["denoisers"].items():
        table.add_row(
            name,
            f"{row['loss']:.3f}",
            f"{row['unigram_entropy']:.3f}",
            f"{row['accuracy']:.1%}",
            f"{row['sequence_accuracy']:.1%}" if "sequence_accuracy" in row else "-",
            f"{row['tokens']:.0f}",
        )
    console.print(table)
