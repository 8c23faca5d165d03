"""What a model in training answers: held-out examples decoded, and scored by the tasks.

    {"boolq/accuracy": 71.0, "xsum/rouge1": 28.1, ..., "task_metric": 48.2}

`task_metric` is the mean over the tasks of the metric that each task chooses
checkpoints by.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

from ul2.data.example_store import ExampleSplit
from ul2.data.task_mixture import TaskRow
from ul2.decoding.settings import DecodingSettings
from ul2.evaluation.prediction import Model, generate, make_prompts
from ul2.evaluation.settings import EvaluationSettings
from ul2.tasks.example_tokenization import TaskReader
from ul2.tasks.text_task import TextExample, TextTask

TASK_METRIC: Final = "task_metric"


@dataclasses.dataclass(frozen=True)
class DecodedTask:
    """Held-out examples of a task as text, and the mode that they are asked in."""

    task: TextTask
    mode: str | None
    examples: list[TextExample]


def read_held_out(
    rows: Sequence[TaskRow],
    held_out: Sequence[ExampleSplit],
    find: Callable[[str], TextTask],
    reader: TaskReader,
    limit: int | None,
) -> list[DecodedTask]:
    """Reads the text of examples that are held out.

    Args:
        rows: the tasks.
        held_out: which of their examples.
        find: returns a task by its name.
        reader: of their text.
        limit: at most so many of each task; None for all.

    Raises:
        ValueError: the data are missing, or their right outputs are not public.
    """
    found = []
    for row, split in zip(rows, held_out, strict=True):
        wanted = set(split.rows[:limit].tolist())
        last = max(wanted)
        examples = []
        for number, example in enumerate(reader.read(row.name, split.split)):
            if number in wanted:
                examples.append(example)
            if number == last:
                break
        task = find(row.name)
        task.target_of(examples[0])
        found.append(DecodedTask(task, row.mode, examples))
    return found


class DecodedMetrics:
    """Scores parameters by what is decoded from them.

    Args:
        tasks: what is asked.
        make_model: returns the model with some parameters.
        inputs_length: longest inputs in tokens, mode and EOS included.
        max_tokens: longest output.
    """

    def __init__(
        self,
        tasks: Sequence[DecodedTask],
        make_model: Callable[[Any], Model],
        *,
        inputs_length: int,
        max_tokens: int,
    ) -> None:
        self._tasks = tasks
        self._make_model = make_model
        self._settings = EvaluationSettings(
            method="generate",
            inputs_length=inputs_length,
            max_tokens=max_tokens,
            decoding=DecodingSettings(),
        )

    def __call__(
        self, params: Any, before_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Returns the metrics of all tasks, and `task_metric`.

        Args:
            params: what is evaluated.
            before_batch: may give up by an error.
        """
        model = self._make_model(params)
        scores: dict[str, float] = {}
        chosen = []
        for one in self._tasks:
            found = self._score(model, one, before_batch)
            chosen.append(found[one.task.validation_metric])
            scores |= {
                f"{one.task.name}/{name}": float(value) for name, value in found.items()
            }
        return {**scores, TASK_METRIC: float(statistics.mean(chosen))}

    def _score(
        self, model: Model, one: DecodedTask, before_batch: Callable[[], None]
    ) -> dict[str, float]:
        """Decodes the examples of one task, and returns its metrics."""
        settings, examples = self._settings, one.examples
        prompts = make_prompts(
            [example.inputs for example in examples],
            one.mode,
            model,
            settings.inputs_length_of(one.task),
            settings,
        )
        predictions = generate(
            model, one.task, examples, prompts, settings, before_batch=before_batch
        )
        return one.task.score(examples, [answer.text for answer in predictions])
