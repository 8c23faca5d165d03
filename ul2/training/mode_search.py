"""Which mode suits a task best: short trials of the very run, one under each.

    trials/R  trials/S  trials/X  trials/none     the first updates of the run, each
    modes.json                                    what they measured, and the best

All trials read the same examples in the same order, from the same parameters, and
share what is compiled; only the ids of the mode differ. The best one goes on: its
checkpoints become those of the run, as if no other mode had been tried. The others'
are deleted. A finished trial is not made again after a kill.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import jax
from jax.experimental import multihost_utils

from ul2 import json_files
from ul2.run_files import (
    CHECKPOINTS,
    EVALUATIONS,
    EVENTS,
    HISTORY,
    METRICS,
    read_measurements,
)
from ul2.training.best import is_better
from ul2.training.events import PASSED
from ul2.training.loop import TrainSettings, TrainSummary, train
from ul2.training.run import Programs, Run

TRIALS: Final = "trials"
MODES: Final = "modes.json"
# In this order, so that the run has no checkpoint before it has everything else.
_PROMOTED: Final = (
    METRICS,
    EVALUATIONS,
    EVENTS,
    HISTORY,
    PASSED,
    "best.json",
    "tensorboard",
)


class ModeSearch:
    """The trials of one run.

    Args:
        model_dir: of the run.
        trial_steps: updates of each trial.
        metric: of the evaluations; the best by it goes on.
    """

    def __init__(self, model_dir: str | Path, trial_steps: int, metric: str) -> None:
        self._model_dir = Path(model_dir)
        self._trial_steps = trial_steps
        self._metric = metric
        self.report = self._read()

    def trial_dir(self, name: str) -> Path:
        """Returns where the trial of a mode keeps everything."""
        return self._model_dir / TRIALS / name

    @property
    def chosen(self) -> str | None:
        """The best mode, once all trials are over."""
        best: str | None = self.report.get("best")
        return best

    def run(
        self,
        candidates: Mapping[str, Callable[[], Run]],
        settings: TrainSettings,
        programs: Programs,
    ) -> TrainSummary | None:
        """Makes the trials that were not made yet, and lets the best go on.

        Args:
            candidates: make the run under each mode, in its `trial_dir`.
            settings: of the run.
            programs: of the run.

        Returns:
            None, or how the trial ended that a signal stopped.
        """
        trials = self.report["trials"]
        short = dataclasses.replace(settings, total_steps=self._trial_steps)
        for name in candidates if self.chosen is None else ():
            if name in trials:
                continue
            summary = train(candidates[name](), short, programs=programs)
            if summary.preempted:
                return summary
            scores = summary.evaluation or _last_line(self.trial_dir(name))
            trials[name] = {k: v for k, v in scores.items() if isinstance(v, float)}
            self._write()
        if self.chosen is None:
            self.report["best"] = self._best(trials)
            self._write()
        self._promote()
        return None

    def _best(self, trials: Mapping[str, Mapping[str, float]]) -> str:
        """Returns the best trial; of equal ones the first."""
        names = list(trials)
        best = names[0]
        for name in names[1:]:
            if is_better(trials[name], trials[best][self._metric], self._metric):
                best = name
        return best

    def _promote(self) -> None:
        """Makes the checkpoints of the best trial those of the run."""
        _wait_for_all("ul2 modes are chosen")
        assert self.chosen is not None
        source = self.trial_dir(self.chosen)
        if jax.process_index() == 0 and (self._model_dir / TRIALS).is_dir():
            for name in (*_PROMOTED, CHECKPOINTS):
                target = self._model_dir / name
                if (source / name).exists() and not target.exists():
                    (source / name).rename(target)
            shutil.rmtree(self._model_dir / TRIALS)
        _wait_for_all("ul2 the best mode goes on")

    def _read(self) -> dict[str, Any]:
        """Reads what earlier trials measured.

        Raises:
            ValueError: it is damaged, or of other trials.
        """
        asked = {"metric": self._metric, "trial_steps": self._trial_steps}
        file = self._model_dir / MODES
        if not file.is_file():
            return {**asked, "trials": {}, "best": None}
        try:
            report = json_files.read_object(file)
            before = {name: report[name] for name in asked}
            sound = _are_trials(report["trials"], report["best"], before["metric"])
        except (OSError, ValueError, KeyError):
            sound, before = False, {}
        if not sound:
            raise ValueError(f"{file} is damaged; choose another MODEL_DIR.")
        if before != asked and report["best"] is None:
            raise ValueError(
                f"{file} is of trials by {before}, not {asked}; set BEST_METRIC and "
                "MODE_TRIAL_STEPS back, or choose another MODEL_DIR."
            )
        return dict(report)

    def _write(self) -> None:
        if jax.process_index() != 0:
            return
        self._model_dir.mkdir(parents=True, exist_ok=True)
        partial = self._model_dir / f".{MODES}.partial"
        partial.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._model_dir / MODES)


def _are_trials(trials: Any, best: Any, metric: Any) -> bool:
    """Returns whether trials were measured, and one of them is best, or none yet.

    Their names are those of folders.
    """
    return (
        isinstance(trials, dict)
        and isinstance(metric, str)
        and all(re.fullmatch(r"\w+", name) for name in trials)
        and all(isinstance(scores, dict) for scores in trials.values())
        and all(type(scores.get(metric)) is float for scores in trials.values())
        and (best is None or best in list(trials))
    )


def _last_line(trial: Path) -> dict[str, Any]:
    """Returns the last evaluation of a trial that had ended before it was noted.

    Raises:
        ValueError: there is none.
    """
    evaluations = [line for _, _, line in read_measurements(trial / EVALUATIONS)]
    if not evaluations:
        raise ValueError(
            f"{trial / EVALUATIONS} is missing or damaged; delete {trial} and it is "
            "made again."
        )
    return evaluations[-1]


def _wait_for_all(what: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
