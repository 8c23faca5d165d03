"""Held-out loss per denoiser, beside what a model that reads nothing would reach.

`unigram_entropy` is the entropy, in nats, of the very targets that were scored. A model
that ignores its inputs and has merely counted them reaches exactly that loss, so
`loss < unigram_entropy` says, per denoiser, that something was learned from context.

`accuracy` is the share of target tokens that are the likeliest, given those before
them; `sequence_accuracy` the share of examples all of whose targets are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ul2.batch import Batch
from ul2.training.state import Params
from ul2.training.step import EvalStep, EvalSums
from ul2.training.writers import Writer


class Evaluations:
    """The held-out batches of a run, scored again and again.

    Args:
        eval_step: scores one batch.
        batches: makes the same ones each time; None for none.
        place: puts a batch on the devices.
        denoiser_names: index i names `denoiser_ids == i`.
        score_params: measures parameters in further ways.
        writers: take the scores.
    """

    def __init__(
        self,
        eval_step: EvalStep,
        batches: Callable[[], Iterable[Batch]] | None,
        place: Callable[[Batch], Batch],
        denoiser_names: Sequence[str],
        *,
        score_params: Callable[[Params], Mapping[str, float]] | None = None,
        writers: Sequence[Writer] = (),
    ) -> None:
        self._step, self._batches, self._place = eval_step, batches, place
        self._names, self._score_params = denoiser_names, score_params
        self._writers = tuple(writers)
        self.last: dict[str, Any] = {}

    def run(self, step: int, params: Params) -> None:
        """Scores the held-out batches, if there are any."""
        if self._batches is None:
            return
        scores = evaluate(self._step, params, self._batches(), self._place, self._names)
        if self._score_params is not None:
            scores |= self._score_params(params)
        self.last = {"step": step, **scores}
        for writer in self._writers:
            writer.write(self.last)

    def close(self) -> None:
        """Closes the writers."""
        for writer in self._writers:
            writer.close()


def evaluate(
    eval_step: EvalStep,
    params: Params,
    batches: Iterable[Batch],
    place: Callable[[Batch], Batch],
    denoiser_names: Sequence[str],
) -> dict[str, Any]:
    """Returns loss, accuracies, counts and unigram entropy, overall and per denoiser.

    Raises:
        ValueError: there is no target in the batches.
    """
    total: EvalSums | None = None
    for batch in batches:
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
