"""A task through `seqio.Evaluator`: seqio reads, decodes, postprocesses and scores.

    seqio's inputs    [S] 11 12 13 <eos>          tokenized, mode and EOS included
    predict           14 15                       whatever decodes
    seqio             "True" -> postprocess -> 1 -> metrics -> {"accuracy": 100.0}

The model stays on the caller's side: tasks know no decoding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
from jaxtyping import Int

# ids of inputs -> ids of outputs, EOS not included.
Predict = Callable[[list[list[int]]], Sequence[Sequence[int]]]


def evaluate(
    name: str,
    split: str,
    predict: Predict,
    *,
    lengths: Mapping[str, int | None],
    limit: int | None = None,
) -> dict[str, float]:
    """Returns the scores of a task in seqio's registry.

    Args:
        name: of the task, its tokenizer and mode bound.
        split: as seqio's source calls it.
        predict: called once, with the inputs of all examples in their order.
        lengths: longest `inputs` and `targets`.
        limit: the first so many examples; None for all.
    """
    task = seqio.TaskRegistry.get(name)
    vocabulary = task.output_features["targets"].vocabulary
    evaluator = seqio.Evaluator(
        name,
        seqio.EncDecFeatureConverter(pack=False),
        eval_split=split,
        sequence_length=lengths,
        num_examples=limit,
        async_compute_metrics=False,
    )

    def predict_fn(dataset: Any) -> list[tuple[int, list[int]]]:
        rows = [
            (int(number), _unpad(example["encoder_input_tokens"], vocabulary.pad_id))
            for number, example in dataset.as_numpy_iterator()
        ]
        outputs = predict([inputs for _, inputs in rows])
        padded = _pad(outputs, vocabulary.eos_id, vocabulary.pad_id)
        return list(zip([number for number, _ in rows], padded, strict=True))

    scores, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict_fn)
    return {metric: float(value) for metric, value in scores.result()[name].items()}


def _unpad(ids: Int[np.ndarray, " L"], pad_id: int) -> list[int]:
    """Returns ids without the padding behind them."""
    present = np.flatnonzero(ids != pad_id)
    return list(map(int, ids[: present[-1] + 1])) if present.size else []


def _pad(outputs: Sequence[Sequence[int]], eos_id: int, pad_id: int) -> list[list[int]]:
    """Ends and pads outputs: seqio makes one array of them all.

    (14 15), ()   ->   14 15 <eos>, <eos> <pad> <pad>
    """
    longest = max(map(len, outputs), default=0)
    return [
        [*output, eos_id, *[pad_id] * (longest - len(output))] for output in outputs
    ]
