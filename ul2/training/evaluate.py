"""Held-out loss per denoiser, beside what a model that reads nothing would reach.

`unigram_entropy` is the entropy, in nats, of the very targets that were scored. A model
that ignores its inputs and has merely counted them reaches exactly that loss, so
`loss < unigram_entropy` says, per denoiser, that something was learned from context.

A signal may cut an evaluation short. Then the step is saved without it, and it is made
when the run goes on, so that no line is missing.

`accuracy` is the share of target tokens that are the likeliest, given those before
them; `sequence_accuracy` the share of examples all of whose targets are.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ul2.batch import Batch
from ul2.run_files import EVALUATIONS, read_measurements
from ul2.sharding.processes import said_by_first
from ul2.training.best import BestRecord
from ul2.training.state import Params
from ul2.training.step import EvalStep, EvalSums
from ul2.training.writers import Writer, open_writers

# Measures parameters; calls its second argument now and then, which may give up.
Score = Callable[[Params, Callable[[], None]], dict[str, Any]]


class EvaluationStoppedError(Exception):
    """An evaluation was given up, so that there is time to save."""


class Evaluation:
    """The evaluations of a run: their scores, their files, and the best of them.

    Attributes:
        is_missing: that of the step that the run goes on from was cut short.
        last: the newest; empty before there is one.
    """

    def __init__(
        self,
        score: Score | None,
        model_dir: str | Path,
        restored_step: int,
        *,
        is_due: bool,
        best_metric: str | None,
    ) -> None:
        """Opens the files.

        Args:
            score: None for no evaluations.
            model_dir: of the run.
            restored_step: that it goes on from.
            is_due: whether that step is one to evaluate after.
            best_metric: by which the best is chosen; None for no such choice.
        """
        model_dir = Path(model_dir)
        self._score = score
        self._writers: list[Writer] = []
        self._best: BestRecord | None = None
        self.is_missing = False
        self.last: dict[str, Any] = {}
        if score is None:
            return
        if restored_step > 0 and is_due:
            self.is_missing = _lacks(model_dir, restored_step)
        if best_metric is not None:
            self._best = BestRecord(model_dir, best_metric, restored_step)
        self._writers = open_writers(model_dir, EVALUATIONS, "eval", restored_step)

    @property
    def best_step(self) -> int | None:
        """The step of the best one, whose checkpoint is to be kept."""
        return self._best.step if self._best else None

    def best_to_json(self) -> dict[str, Any] | None:
        """Returns metric, step and value of the best one."""
        return self._best.to_json() if self._best else None

    def run(self, step: int, params: Params, stops: Callable[[int], bool]) -> None:
        """Scores parameters, if there is anything to score them on.

        Args:
            step: updates done.
            params: after these.
            stops: returns whether the run shall stop instead, given the step.

        Raises:
            EvaluationStoppedError: it shall; nothing was written.
        """
        if self._score is None:
            return

        def check() -> None:
            if stops(step):
                raise EvaluationStoppedError

        self.last = {"step": step, **self._score(params, check)}
        for writer in self._writers:
            writer.write(self.last)

    def is_best(self, step: int) -> bool:
        """Returns whether this very state was scored, and better than all before."""
        return (
            self._best is not None
            and self.last.get("step") == step
            and self._best.is_better(self.last)
        )

    def propose(self) -> Callable[[bool], None]:
        """Takes the newest for the best; see `BestRecord.propose`."""
        assert self._best is not None
        return self._best.propose(self.last)

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers:
            writer.close()


def _lacks(model_dir: Path, step: int) -> bool:
    """Returns, on all hosts alike, whether a step is not among the evaluations."""
    lines = read_measurements(model_dir / EVALUATIONS)
    is_there = any(found == step for found, _, _ in lines)
    return bool(said_by_first("evaluations", "" if is_there else "missing"))


def evaluate(
    eval_step: EvalStep,
    params: Params,
    batches: Iterable[Batch],
    place: Callable[[Batch], Batch],
    denoiser_names: Sequence[str],
    *,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Returns loss, accuracies, counts and unigram entropy, overall and per denoiser.

    Args:
        eval_step: scores a batch.
        params: what is evaluated.
        batches: of this host.
        place: puts a batch on the devices.
        denoiser_names: index i names `denoiser_ids == i`.
        before_batch: may give up by an error.

    Raises:
        ValueError: there is no target in the batches.
    """
    total: EvalSums | None = None
    for batch in batches:
        before_batch()
        sums = jax.device_get(eval_step(params, place(batch)))
        # float32 stops counting at 2^24, which held-out sets can exceed.
        wide = jax.tree.map(lambda array: array.astype(np.float64), sums)
        total = wide if total is None else jax.tree.map(np.add, total, wide)
    if total is None or not total.tokens.sum():
        raise ValueError(
            "the held-out batches hold no target; set DATA to a store with more "
            "held-out documents, or EVAL_BATCHES to 0."
        )
    whole = EvalSums(*(np.sum(array, axis=0) for array in total))
    denoisers = {
        name: _scores(EvalSums(*(array[index] for array in total)))
        for index, name in enumerate(denoiser_names)
        if total.tokens[index]
    }
    return {**_scores(whole), "denoisers": denoisers}


def unigram_entropy(counts: np.ndarray) -> float:
    """Returns the entropy, in nats, of the distribution that `counts` are drawn from.

    Example: counts 2, 1, 1 give log(2) / 2 + log(4) / 4 + log(4) / 4 = 1.0397.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def _scores(sums: EvalSums) -> dict[str, float]:
    """Turns the sums over some targets into means."""
    return {
        "loss": float(sums.loss / sums.tokens),
        "accuracy": float(sums.correct / sums.tokens),
        "sequence_accuracy": float(sums.right_examples / sums.examples),
        "tokens": float(sums.tokens),
        "examples": float(sums.examples),
        "unigram_entropy": unigram_entropy(np.asarray(sums.target_counts)),
    }
