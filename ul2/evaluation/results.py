"""What an evaluation leaves behind, written so that it can go on after a kill.

    OUT/results.json                 settings, checkpoint, scores and counts of all
    OUT/predictions/RUN@1000-1f0a/   one line per example
        boolq.R.77ab.jsonl

A result is kept under everything that it depends on: the checkpoint's fingerprint, the
task, the mode and the settings. Where all are equal it is not made again. Files appear
whole or not at all.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import jax

from ul2 import json_files
from ul2.training.writers import TensorBoard

RESULTS: Final = "results.json"
# TensorBoard drops what it has of later steps when a writer starts; none is later.
_NOTHING_IS_LATER: Final = 2**40

_MAX_BYTES: Final = 2**28
_FIELDS: Final = {"key": str, "checkpoint": str, "task": str, "scores": dict}

Result = dict[str, Any]


class Results:
    """The results of one directory, or of none."""

    def __init__(self, directory: Path | None) -> None:
        """Reads what is there already; of several processes, the first one writes.

        Raises:
            ValueError: the directory holds something else.
        """
        self._directory = directory
        self._writes = directory is not None and jax.process_index() == 0
        self._results: dict[str, Result] = {}
        if directory is not None and (directory / RESULTS).exists():
            for result in read_results(directory / RESULTS):
                self._results[result["key"]] = result

    def find(self, key: str) -> Result | None:
        """Returns a finished result."""
        found = self._results.get(key)
        if found is None or self._directory is None or "predictions" not in found:
            return found
        # A name that no file can have is one of no file; `Path.is_file` raises there.
        there = os.path.isfile(self._directory / found["predictions"])
        return found if there else None

    def add(self, result: Result, rows: Iterable[Mapping[str, Any]]) -> Result:
        """Keeps a result and its predictions, and returns it as it was kept."""
        result = plain(result)
        if self._directory is None or not self._writes:
            return result
        rows = list(rows)
        if rows:
            result["predictions"] = _predictions_name(result)
            lines = [json.dumps(plain(row), ensure_ascii=False) for row in rows]
            write_whole(
                self._directory / result["predictions"], "\n".join(lines) + "\n"
            )
        self._results[result["key"]] = result
        return result

    def write(self, summary: Mapping[str, Any]) -> None:
        """Writes everything."""
        if self._directory is None or not self._writes:
            return
        text = {
            "versions": versions(),
            **plain(summary),
            "results": list(self._results.values()),
        }
        write_whole(
            self._directory / RESULTS,
            json.dumps(text, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        )


def read_results(file: Path) -> list[Result]:
    """Reads the results of an evaluation.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        results = json_files.read_object(file, most_bytes=_MAX_BYTES)["results"]
        for result in results:
            kinds = {name: type(result[name]) for name in _FIELDS}
            named = isinstance(result.get("predictions", ""), str)
            if kinds != _FIELDS or not named:
                raise ValueError("a field of a result is of another kind")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is no results.json of ul2 eval ({error}); choose another --out, "
            "or remove it."
        ) from None
    return list(results)


def make_key(identity: Mapping[str, Any]) -> str:
    """Returns a hash of everything that a result depends on."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_whole(file: Path, text: str) -> None:
    """Writes a file, whole or not at all.

    Raises:
        ValueError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}.") from None


def write_scalars(run: Path, step: int, results: Iterable[Result]) -> None:
    """Adds scores to the TensorBoard curves of a run, at the checkpoint's step.

    They are called `tasks/boolq/R/accuracy`.

    Raises:
        OSError: the run's directory cannot be written to.
    """
    scores: dict[str, dict[str, Any]] = {}
    for result in results:
        scores.setdefault(result["task"], {})[result["mode"]] = result["scores"]
    writer = TensorBoard(run / "tensorboard", "tasks", _NOTHING_IS_LATER)
    writer.write({**scores, "step": step})
    writer.close()


def plain(value: Any) -> Any:
    """Returns a value as JSON has it; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def versions() -> dict[str, str]:
    """Returns what computed the results."""
    packages = ("ul2", "jax", "flax", "numpy", "seqio", "sacrebleu", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _predictions_name(result: Mapping[str, Any]) -> str:
    """Returns where the predictions of a result go, below the directory."""
    folder = f"{_slug(result['checkpoint'])}-{result['fingerprint'][:4]}"
    name = f"{_slug(result['task'])}.{result['mode']}.{result['key'][:4]}.jsonl"
    return f"predictions/{folder}/{name}"


def _slug(text: str) -> str:
    """Returns a text as a file name."""
    return re.sub(r"[^\w.@-]+", "_", text).lstrip(".")
