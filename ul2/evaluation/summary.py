"""Many results as one table: rows are checkpoints in a mode, columns are scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ul2.evaluation.candidates import Candidate
from ul2.evaluation.relative_gain import relative_gain
from ul2.evaluation.results import RESULTS, Result, read_results

# More columns than this do not fit a screen: then each task shows one score.
_MOST_COLUMNS: Final = 8
# What is worth a line under the table.
_TROUBLES: Final = {
    "truncated_inputs": "inputs were cut (--inputs_length)",
    "truncated_targets": "targets were cut (--max_tokens)",
    "unanswered": "predictions hold no answer",
    "not_a_choice": "predictions are none of the choices",
    "sentinel_leaks": "predictions hold a sentinel of pre-training",
}

Row = tuple[str, str]  # checkpoint and mode
Scores = dict[str, tuple[str, float]]  # task -> its metric and score


def summarize(
    results: Sequence[Result],
    mixtures: Mapping[str, Sequence[str]],
    reference: str | None,
) -> dict[str, Any]:
    """Returns what several results say together.

    Args:
        results: of this evaluation.
        mixtures: the tasks of each mixture that was asked for.
        reference: see `reference_scores`; None compares with nothing.

    Returns:
        `rows`: per checkpoint and mode, the mean of each mixture whose tasks are all
        there, and the relative gain over the reference.
    """
    by_row = main_scores(results)
    rows = []
    for (checkpoint, mode), scores in by_row.items():
        row: dict[str, Any] = {"checkpoint": checkpoint, "mode": mode, "means": {}}
        for mixture, tasks in mixtures.items():
            if set(tasks) <= set(scores):
                values = [scores[task][1] for task in tasks]
                row["means"][mixture] = sum(values) / len(values)
        if reference is not None:
            gain = relative_gain(scores, reference_scores(reference, results, mode))
            row["relative_gain"] = gain._asdict()
        rows.append(row)
    return {"reference": reference, "rows": rows}


def main_scores(results: Sequence[Result]) -> dict[Row, Scores]:
    """Returns the score that stands for each task, of every checkpoint and mode."""
    rows: dict[Row, Scores] = {}
    for result in results:
        value = result["scores"].get(result["metric"])
        row = rows.setdefault((result["checkpoint"], result["mode"]), {})
        if value is not None:
            row[result["task"]] = (result["metric"], value)
    return rows


def reference_scores(reference: str, results: Sequence[Result], mode: str) -> Scores:
    """Returns the scores to compare with, under the same mode if there are such.

    Args:
        reference: one of the checkpoints (path or label), or the results of another
            evaluation (a `results.json`, or its directory).
        results: of this evaluation.
        mode: of the row that is compared.

    Raises:
        ValueError: there is no such reference, or which of its rows is meant is open.
    """
    among = [
        result
        for result in results
        if is_reference(reference, result["checkpoint"], result["path"])
    ]
    among = among or read_results(_results_file(reference))
    rows = main_scores(among)
    of_mode = {row: scores for row, scores in rows.items() if row[1] == mode} or rows
    if len(of_mode) != 1:
        names = ", ".join(f"{name} in mode {of}" for name, of in of_mode) or "none"
        raise ValueError(
            f"--reference={reference} must be one row, in mode {mode} or alone; found "
            f"{names}."
        )
    (scores,) = of_mode.values()
    return scores


def is_reference(reference: str, label: str, path: str) -> bool:
    """Returns whether a checkpoint is the reference, by its label or its path."""
    same_path = Path(reference).expanduser().absolute() == Path(path).absolute()
    return reference == label or same_path


def check_reference(reference: str, candidates: Sequence[Candidate]) -> None:
    """Refuses a reference that there is not, before anything is evaluated.

    Raises:
        ValueError: it is none of the checkpoints, and no results.
    """
    if not any(is_reference(reference, c.label, str(c.path)) for c in candidates):
        read_results(_results_file(reference))


def _results_file(reference: str) -> Path:
    """Returns the results that a reference names.

    Raises:
        ValueError: there are none.
    """
    path = Path(reference).expanduser()
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"--reference={reference} is none of the checkpoints, and no results of "
            "another ul2 eval."
        )
    return file


def print_table(
    results: Sequence[Result], summary: Mapping[str, Any], console: Console
) -> None:
    """Shows the scores, and under them what should be known about them."""
    columns = choose_columns(results)
    table = Table(title="scores; loss in nats per token")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("mode")
    for task, metric in columns:
        table.add_column(f"{task}\n{metric}", justify="right")
    means = sorted({name for row in summary["rows"] for name in row["means"]})
    for mixture in means:
        table.add_column(f"{mixture}\nmean", justify="right")
    if summary["reference"] is not None:
        table.add_column("relative\ngain", justify="right")
    values = {
        (result["checkpoint"], result["mode"], result["task"], metric): value
        for result in results
        for metric, value in flat_scores(result).items()
    }
    for row in summary["rows"]:
        name, mode = row["checkpoint"], row["mode"]
        cells = [_number(values.get((name, mode, *column))) for column in columns]
        cells += [_number(row["means"].get(mixture)) for mixture in means]
        if summary["reference"] is not None:
            gain = row["relative_gain"]["mean"]
            cells.append("-" if gain is None else f"{gain:+.1f} %")
        table.add_row(Text(name), mode, *cells)
    console.print(table)
    for line in notes(results, summary):
        console.print(Text(line), soft_wrap=True)


def choose_columns(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Returns (task, metric) of every column, as many as fit."""
    every = [
        (result["task"], metric) for result in results for metric in flat_scores(result)
    ]
    main = [(result["task"], result["metric"]) for result in results]
    unique = list(dict.fromkeys(every))
    return unique if len(unique) <= _MOST_COLUMNS else list(dict.fromkeys(main))


def flat_scores(result: Result) -> dict[str, float | None]:
    """Returns the scores of a result; those of text by denoiser."""
    scores = result["scores"]
    if "denoisers" not in scores:
        return dict(scores)
    by_denoiser = {name: one["loss"] for name, one in scores["denoisers"].items()}
    return {"loss": scores["loss"], **by_denoiser}


def notes(results: Sequence[Result], summary: Mapping[str, Any]) -> list[str]:
    """Returns what should be known about the scores, a line each."""
    lines = []
    for result in results:
        counts = result.get("counts", {})
        where = f"{result['checkpoint']}, {result['task']}, mode {result['mode']}"
        lines += [
            f"{where}: {counts[name]} of {counts['examples']} {trouble}"
            for name, trouble in _TROUBLES.items()
            if counts.get(name)
        ]
    left_out = {
        f"relative gain without {task}: {why}"
        for row in summary["rows"]
        for task, why in row.get("relative_gain", {}).get("left_out", {}).items()
    }
    methods = {
        f"{result['task']}: {result['method']}"
        + (f", through {result['road']}" if result.get("road") == "seqio" else "")
        for result in results
    }
    return [*sorted(methods), *lines, *sorted(left_out)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
