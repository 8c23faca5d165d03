"""The table of scripts/ablation.sh: what each objective reaches in each architecture.

    python scripts/ablation_table.py OUT     ->   OUT/ablation.md, OUT/ablation.json

Reads the results of `ul2 eval` below OUT: `eval/text` (held-out loss per denoiser),
`eval/finetuned` and `eval/one_shot` (a task). The last column is the UL2 paper's
normalised relative gain over T5, span corruption with an encoder-decoder, over three
scores: the loss of the S-denoiser, which is a prefix language model's, and the task's
score after fine-tuning and from one example.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ul2.evaluation.relative_gain import RelativeGain, relative_gain
from ul2.evaluation.results import RESULTS, read_results, write_whole

REFERENCE: Final = "enc_dec_span_corruption"
_LANGUAGE_MODEL: Final = "s"
_GROUPS: Final = {"R": "r_", "S": "s", "X": "x_"}

Scores = dict[str, tuple[str, float]]


def main(out: Path) -> None:
    """Writes the table of one ablation."""
    rows = make_rows(out)
    write_whole(out / "ablation.json", json.dumps(rows, indent=1) + "\n")
    write_whole(out / "ablation.md", markdown(rows))
    sys.stdout.write(markdown(rows))


def make_rows(out: Path) -> list[dict[str, Any]]:
    """Returns a row per model: losses, scores, gain."""
    losses = {name: result for name, result in _results(out / "eval" / "text")}
    tasks = {
        setting: dict(_results(out / "eval" / setting))
        for setting in ("finetuned", "one_shot")
    }
    scores: dict[str, Scores] = {}
    for name, result in losses.items():
        denoisers = result["scores"]["denoisers"]
        scores[name] = {"text": ("loss", denoisers[_LANGUAGE_MODEL]["loss"])}
        for setting, results in tasks.items():
            if name in results:
                metric = results[name]["metric"]
                value = results[name]["scores"][metric]
                scores[name][setting] = (metric, value)
    return [
        {
            "model": name,
            "mode": losses[name]["mode"],
            "losses": group_losses(losses[name]["scores"]["denoisers"]),
            "scores": {setting: list(score) for setting, score in of_model.items()},
            **gain_fields(relative_gain(of_model, scores.get(REFERENCE, {}))),
        }
        for name, of_model in sorted(scores.items(), key=_architecture)
    ]


def group_losses(denoisers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean loss of the R-, S- and X-denoisers."""
    means = {}
    for group, prefix in _GROUPS.items():
        losses = [
            one["loss"] for name, one in denoisers.items() if name.startswith(prefix)
        ]
        means[group] = sum(losses) / len(losses)
    return means


def gain_fields(gain: RelativeGain) -> dict[str, Any]:
    """Returns a gain as JSON values."""
    return {"gain": gain.mean, "gains": gain.tasks, "left_out": gain.left_out}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the table."""
    lines = [
        "| model | R loss | S loss | X loss | fine-tuned | one-shot | gain over T5 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        losses = [f"{row['losses'][group]:.3f}" for group in _GROUPS]
        scores = [_score(row, setting) for setting in ("finetuned", "one_shot")]
        gain = "-" if row["gain"] is None else f"{row['gain']:+.1f} %"
        lines.append(" | ".join(["| " + row["model"], *losses, *scores, gain]) + " |")
    notes = sorted(
        {f"{task}: {why}" for row in rows for task, why in row["left_out"].items()}
    )
    return "\n".join([*lines, *(f"\nGain without {note}." for note in notes)]) + "\n"


def _architecture(item: tuple[str, Any]) -> bool:
    """Puts encoder-decoders before decoder-only models."""
    return not item[0].startswith("enc_dec")


def _score(row: dict[str, Any], setting: str) -> str:
    score = row["scores"].get(setting)
    return "-" if score is None else f"{score[1]:.2f}"


def _results(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name of each model, which is that of its directory, and its result."""
    if (directory / RESULTS).is_file():
        for result in read_results(directory / RESULTS):
            yield Path(result["path"]).name, result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
