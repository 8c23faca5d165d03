"""What a run does to its text: the pre-flight check, and any step's examples.

Everything is read off the real stream, the one that trains: nothing is imitated for
show.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ul2.batch import Batch
from ul2.data.run_data import Example
from ul2.decoding.text import decode_inside
from ul2.models.architectures import ARCHITECTURES
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
        "inputs": "".join(text for _, text in pieces(example.inputs, tokenizer)),
        "targets": "".join(text for _, text in pieces(example.targets, tokenizer)),
    }


def pieces(
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
    for token, piece in pieces(ids, tokenizer):
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


class View(NamedTuple):
    """What one kind of attention of a row's examples sees.

    Attributes:
        name: encoder, decoder or cross.
        queries: columns of the row that look, [N, L]; -1 past an example's end.
        keys: columns that are looked at, [N, S].
        seen: [N or 1, L or 1, S], as the model's own mask says.
    """

    name: str
    queries: NDArray[np.int32]
    keys: NDArray[np.int32]
    seen: NDArray[np.bool_]

    def of_example(self, number: int, most: int) -> NDArray[np.bool_]:
        """Returns what the tokens of an example see, thinned out to `most` of them."""
        rows, columns = (
            np.linspace(0, length - 1, min(length, most)).astype(int)
            for length in self.lengths(number)
        )
        thinned: NDArray[np.bool_] = self._cells(number)[np.ix_(rows, columns)]
        return thinned

    def _cells(self, number: int) -> NDArray[np.bool_]:
        """Returns [L, S]: what an example's positions see, those past its end too."""
        cells = self.seen[number if len(self.seen) > 1 else 0]
        return np.broadcast_to(cells, (self.queries.shape[-1], self.keys.shape[-1]))

    def of_row(self, marks: NDArray[np.int32], most: int) -> NDArray[np.int32]:
        """Returns what the columns of the row see, thinned out to `most` of them.

        Args:
            marks: [N], what stands where a query of an example sees a key; 0 elsewhere.
            most: columns on either side.
        """
        rows, columns = (
            np.linspace(0, places.max(), min(int(places.max()) + 1, most)).astype(int)
            for places in (self.queries, self.keys)
        )
        drawn = np.zeros((len(rows), len(columns)), np.int32)
        for number, mark in enumerate(marks.tolist()):
            queries, keys = self.queries[number], self.keys[number]
            queries, keys = queries[queries >= 0], keys[keys >= 0]
            down, across = np.isin(rows, queries), np.isin(columns, keys)
            places = np.ix_(
                np.searchsorted(queries, rows[down]),
                np.searchsorted(keys, columns[across]),
            )
            drawn[np.ix_(down, across)] = self._cells(number)[places] * mark
        return drawn

    def lengths(self, number: int) -> tuple[int, int]:
        """Returns how many tokens of an example look, and are looked at."""
        queries, keys = self.queries[number], self.keys[number]
        return int((queries >= 0).sum()), int((keys >= 0).sum())


def views(batch: Batch, row: int = 0) -> list[View]:
    """Returns what a row's examples see: the masks of the model itself, filled in."""
    architecture = "decoder_only" if batch.encoder is None else "encoder_decoder"
    masks = ARCHITECTURES[architecture].masks(batch)
    sides = {"encoder": (batch.encoder, batch.encoder)}
    sides["decoder"] = batch.decoder, batch.decoder
    sides["cross"] = batch.decoder, batch.encoder
    found = []
    for name, mask in masks._asdict().items():
        queries, keys = sides[name]
        if mask is None or queries is None or keys is None:
            continue
        positions = (jnp.arange(side.columns.shape[-1]) for side in (queries, keys))
        seen = np.asarray(mask.materialize(*positions))
        seen = seen[row if len(seen) > 1 else 0]
        found.append(View(name, queries.columns[row], keys.columns[row], seen))
    return found


def print_masks(batch: Batch, console: Console) -> None:
    """Draws what the first row's examples may see; long ones are thinned out.

    A column is a key, a line is a query. Packed examples have no line in common:
    attention runs over one example at a time.
    """
    for view in views(batch):
        for number in range(len(view.queries)):
            queries, keys = view.lengths(number)
            length = f"{queries} tokens"
            if view.name == "cross":
                length += f" read {keys}"
            console.print(Text(f"{view.name}, example {number}, {length}", "bold"))
            for line in view.of_example(number, _MASK_CELLS):
                console.print(Text("".join("█" if cell else "·" for cell in line)))
            console.print()


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
