"""Which of a run's checkpoints is best, by a metric of its evaluations.

    MODEL_DIR/best.json     {"metric": "loss", "step": 2000, "value": 1.25}

The record is read off the run's own evaluations, so a run that goes on knows what the
one before it knew, and forgets what was undone with the steps that a kill took away.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import jax
from absl import logging

from ul2 import json_files
from ul2.run_files import BEST, EVALUATIONS, read_measurements
from ul2.training.checkpoints import step_dir

# What every evaluation measures; a scorer that decodes adds its own.
TEACHER_FORCED: Final = ("loss", "accuracy", "sequence_accuracy")
_LOWER_IS_BETTER: Final = ("loss",)


def is_better(scores: Mapping[str, Any], value: float, metric: str) -> bool:
    """Returns whether an evaluation beats a value of the same metric."""
    lower = metric in _LOWER_IS_BETTER
    return bool(scores[metric] < value if lower else scores[metric] > value)


class BestRecord:
    """The best evaluation so far of those whose checkpoint is there.

    Args:
        model_dir: of the run.
        metric: `loss`, or a metric of which more is better.
        restored_step: evaluations of later steps are forgotten.
    """

    def __init__(self, model_dir: str | Path, metric: str, restored_step: int) -> None:
        self._model_dir = Path(model_dir)
        self._metric = metric
        self.step: int | None = None
        self.value = math.nan
        self._proposed: tuple[int, float] | None = None
        for step, _, line in read_measurements(self._model_dir / EVALUATIONS):
            if (
                step <= restored_step
                and metric in line
                and step_dir(model_dir, step).is_dir()
                and self.is_better(line)
            ):
                self.step, self.value = step, float(line[metric])
        if self.step is not None:
            self._write()  # A kill may have come between a checkpoint and its record.

    def is_better(self, scores: Mapping[str, Any]) -> bool:
        """Returns whether an evaluation beats all before it.

        Raises:
            ValueError: it does not hold the metric.
        """
        value = scores.get(self._metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            known = [k for k, v in scores.items() if isinstance(v, float)]
            raise ValueError(
                f"BEST_METRIC={self._metric!r} is not measured; choose one of "
                f"{', '.join(known)}."
            )
        before = self._proposed[1] if self._proposed else self.value
        if math.isnan(before):
            return not math.isnan(value)
        return is_better(scores, before, self._metric)

    def propose(self, scores: Mapping[str, Any]) -> Callable[[bool], None]:
        """Takes an evaluation, whose checkpoint is being written, for the best.

        Returns:
            What is to be told whether the checkpoint came to be; until then, the one
            before stays the best that there is.
        """
        proposed = scores["step"], float(scores[self._metric])
        self._proposed = proposed

        def settle(is_saved: bool) -> None:
            if self._proposed == proposed:  # and no better one has been since
                self._proposed = None
            if is_saved:
                self.step, self.value = proposed
                self._write()

        return settle

    def _write(self) -> None:
        """Writes the record down, whole or not at all."""
        if jax.process_index() != 0:
            return
        partial = self._model_dir / f".{BEST}.partial"
        try:
            partial.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")
            partial.replace(self._model_dir / BEST)
        except OSError as error:
            logging.warning(
                "cannot write %s: %s; the next start writes it.",
                self._model_dir / BEST,
                error.strerror,
            )

    def to_json(self) -> dict[str, Any] | None:
        """Returns the metric, and the best step and its value; None without one."""
        if self.step is None:
            return None
        return {"metric": self._metric, "step": self.step, "value": self.value}


def best_step(model_dir: str | Path) -> int:
    """Returns the step of the best checkpoint of a run.

    Raises:
        ValueError: the run does not say, or the checkpoint is gone.
    """
    file = Path(model_dir) / BEST
    try:
        step = json_files.read(file)["step"]
    except OSError:
        raise ValueError(
            f"{model_dir} does not say which checkpoint is best (no {BEST}); give a "
            "step, or train with BEST_METRIC."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged; give a step instead.") from None
    if type(step) is not int or not step_dir(model_dir, step).is_dir():
        raise ValueError(
            f"{file} names step {step!r}, of which there is no checkpoint."
        )
    return step
