"""`TextTask`: a supervised task as data, from a data set's row to a score.

    row         {"passage": "Roses are red.", "question": "is it red", "label": 1}
    examples    TextExample(inputs="boolq passage: Roses are red. question: is it red",
                            targets="True", choices=("False", "True"))
    prediction  "True"  -> postprocess -> 1
    score       metrics([1], [1]) -> {"accuracy": 100.0}

A task is text on both sides. It knows no tokenizer, no mode and no length: whoever
trains or evaluates on it chooses those. Nothing here needs TensorFlow;
`seqio_tasks.py` puts every task into seqio's registry.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Metric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class TextExample:
    """What a model reads, and what it should write.

    Attributes:
        inputs: without mode.
        targets: one right output; the first reference where there are several. Empty
            in a split whose right outputs its authors keep to themselves: a model can
            answer, and nobody can score.
        choices: all outputs that the task allows, `targets` among them; empty where
            the output is free. Rank classification scores each.
        meta: whatever postprocessing and metrics need, as JSON values: further
            references, ids, groups.
    """

    inputs: str
    targets: str
    choices: tuple[str, ...] = ()
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A data set that TFDS prepares.

    Attributes:
        name: "super_glue/boolq:1.0.2"; the version is part of the task.
        splits: our name of a split (train, validation, test) to TFDS's.
    """

    name: str
    splits: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Files:
    """A data set as its authors publish it, downloaded by the user.

    Attributes:
        folder: where its files lie, below the folder of all data sets.
        splits: our name of a split to a file pattern within `folder`.
        read: yields the rows of one file.
        home: where to get it.
    """

    folder: str
    splits: Mapping[str, str]
    read: Callable[[Path], Iterable[Row]]
    home: str


@dataclasses.dataclass(frozen=True)
class Seqio:
    """A task that a user's own module has put in seqio's registry.

    Attributes:
        name: what it is registered as.
        splits: our name of a split to its own.
    """

    name: str
    splits: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Function:
    """Rows that a function makes out of what every machine has.

    Attributes:
        splits: our name of a split to the function's.
        read: yields the rows of a split, always the same in the same order.
    """

    splits: Mapping[str, str]
    read: Callable[[str], Iterable[Row]]


def stripped(prediction: str, example: TextExample) -> Any:
    """Returns the prediction itself."""
    del example
    return prediction.strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask:
    """A supervised task.

    Attributes:
        name: what users call it.
        source: where the rows come from.
        to_examples: makes the examples of one row; rows that are none make none.
        to_training_examples: the same for the split `train`, where it differs.
        metrics: each `metric(targets, predictions) -> {name: score}`, of what
            `postprocess` returned; percentages where the field prints percentages.
        postprocess: makes what the metrics compare from an output and its example.
        target: makes the same from the example alone; by default `postprocess` of its
            targets.
        validation_metric: which of the scores chooses between checkpoints.
        inputs_length: tokens of inputs that suit the data.
        targets_length: tokens of targets that suit the data.
        exemplars_share: what an example has in common with the exemplars in front of
            it, a key of `meta` (MMLU: its subject); None for any exemplars.
    """

    name: str
    source: Tfds | Files | Seqio | Function
    to_examples: Callable[[Row], Iterable[TextExample]]
    to_training_examples: Callable[[Row], Iterable[TextExample]] | None = None
    metrics: tuple[Metric, ...]
    postprocess: Callable[[str, TextExample], Any] = stripped
    target: Callable[[TextExample], Any] | None = None
    validation_metric: str
    inputs_length: int = 512
    targets_length: int = 64
    exemplars_share: str | None = None

    def examples_of(self, row: Row, split: str) -> Iterable[TextExample]:
        """Returns the examples of one row of a split."""
        if split == "train" and self.to_training_examples is not None:
            return self.to_training_examples(row)
        return self.to_examples(row)

    def target_of(self, example: TextExample) -> Any:
        """Returns what a prediction for this example is compared with.

        Raises:
            ValueError: the right output is not known.
        """
        if not example.targets:
            raise ValueError(
                f"task {self.name!r}: the right outputs of this split are not public, "
                f"so nothing can be scored; use another of {list(self.source.splits)} "
                "(--split)."
            )
        if self.target is not None:
            return self.target(example)
        return self.postprocess(example.targets, example)

    def score(
        self, examples: Sequence[TextExample], predictions: Sequence[str]
    ) -> dict[str, float]:
        """Returns all scores of some outputs.

        Raises:
            ValueError: there are no examples, or their right outputs are not known.
        """
        if not examples:
            raise ValueError(f"task {self.name!r}: no example to score.")
        targets = [self.target_of(example) for example in examples]
        values = [
            self.postprocess(prediction, example)
            for prediction, example in zip(predictions, examples, strict=True)
        ]
        scores: dict[str, float] = {}
        for metric in self.metrics:
            scores |= metric(targets, values)
        return scores
