"""A task through seqio's Evaluator, with our decoding inside it."""

from collections.abc import Sequence

from ul2.decoding.text import Prompt
from ul2.evaluation.prediction import (
    Model,
    Prediction,
    blank_of,
    generate,
    make_prompts,
)
from ul2.evaluation.settings import EvaluationSettings
from ul2.evaluation.task_evaluation import (
    TaskResult,
    count_troubles,
    describe,
    describe_inputs,
)
from ul2.tasks import seqio_evaluation, seqio_tasks
from ul2.tasks.text_task import TextExample, TextTask


def evaluate_by_seqio(
    model: Model,
    task: TextTask,
    examples: Sequence[TextExample],
    mode: str | None,
    settings: EvaluationSettings,
) -> TaskResult:
    """Evaluates a model on a task as seqio does.

    The inputs, the texts of the outputs and the scores are seqio's. Our own examples
    stand beside them, for the counts and the predictions that are kept.

    Raises:
        ValueError: seqio reads other examples than we do.
    """
    longest = settings.inputs_length_of(task)
    predictions: list[Prediction] = []

    def predict(inputs: list[list[int]]) -> list[tuple[int, ...]]:
        if len(inputs) != len(examples):
            raise ValueError(
                f"task {task.name!r}: seqio reads {len(inputs)} examples, not "
                f"{len(examples)}; use --road=direct."
            )
        blank = blank_of(model, settings)
        prompts = [Prompt(ids, blank, len(blank)) for ids in inputs]
        predictions.extend(generate(model, task, examples, prompts, settings))
        return [prediction.ids for prediction in predictions]

    targets_length = settings.decoding_of(task).max_tokens
    # A task that was registered after that module was imported.
    seqio_tasks.register_text_tasks()
    name = seqio_tasks.bind(
        task.name,
        model.tokenizer,
        mode,
        shots=settings.shots,
        seed=settings.seed,
        infill=settings.infill,
        data_dir=settings.data_dir,
    )
    scores = seqio_evaluation.evaluate(
        name,
        settings.split,
        predict,
        lengths={"inputs": longest, "targets": targets_length},
        limit=settings.limit,
    )
    texts = [example.inputs for example in examples]
    cut = [
        prompt.num_cut for prompt in make_prompts(texts, mode, model, longest, settings)
    ]
    counts = {
        "examples": len(examples),
        "truncated_inputs": sum(tokens > 0 for tokens in cut),
        **count_troubles(task, examples, predictions),
    }
    rows = [
        describe_inputs(example, mode, tokens) | describe(task, example, prediction)
        for example, tokens, prediction in zip(examples, cut, predictions, strict=True)
    ]
    metric = task.validation_metric
    return TaskResult("generate", "seqio", metric, scores, counts, rows)
