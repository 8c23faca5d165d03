"""One model on one task in one mode: scores, counts, and every prediction."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ul2.decoding.text import Prompt
from ul2.evaluation.prediction import (
    Model,
    Prediction,
    encode_target,
    generate,
    make_prompts,
    rank,
)
from ul2.evaluation.settings import EvaluationSettings
from ul2.evaluation.teacher_forced import TokenScore, summarize
from ul2.evaluation.voting import is_answer
from ul2.tasks.text_task import TextExample, TextTask

# Scores given targets, as ids, given their inputs.
ScoreTokens = Callable[
    [Sequence[Sequence[int]], Sequence[Sequence[int]]], list[TokenScore]
]


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What came out.

    Attributes:
        method: generate, rank or teacher_forced.
        road: `direct`, or `seqio` for its Evaluator.
        metric: which of the scores stands for the task.
        scores: by metric.
        counts: examples, and how many of them had which trouble.
        rows: each example with its prediction, as JSON values.
    """

    method: str
    road: str
    metric: str
    scores: dict[str, float]
    counts: dict[str, int]
    rows: list[dict[str, Any]]


def evaluate_task(
    model: Model,
    task: TextTask,
    examples: list[TextExample],
    mode: str | None,
    settings: EvaluationSettings,
    score_tokens: ScoreTokens,
) -> TaskResult:
    """Evaluates a model on examples.

    Args:
        model: reads and writes text.
        task: scores what it writes.
        examples: at least one; exemplars stand in their inputs already.
        mode: R, S, X or None, in front of all inputs.
        settings: how.
        score_tokens: `TeacherForced.score` of the same model.

    Raises:
        ValueError: the examples have no choices to rank.
    """
    method = settings.method_for(task, examples)
    prompts = make_prompts(
        [example.inputs for example in examples],
        mode,
        model,
        settings.inputs_length_of(task),
        settings,
    )
    counts = {
        "examples": len(examples),
        "truncated_inputs": sum(prompt.num_cut > 0 for prompt in prompts),
    }
    if method == "teacher_forced":
        metric = "loss"
        targets, cut = _targets(model, task, examples, prompts, settings)
        found = score_tokens([prompt.inputs for prompt in prompts], targets)
        scores, details = summarize(found), [_token_detail(one) for one in found]
        counts["truncated_targets"] = cut
    else:
        if method == "rank":
            predictions = rank(model, examples, prompts, settings)
        else:
            predictions = generate(model, task, examples, prompts, settings)
        texts = [prediction.text for prediction in predictions]
        scores, metric = task.score(examples, texts), task.validation_metric
        counts |= count_troubles(task, examples, predictions)
        details = [
            describe(task, example, prediction)
            for example, prediction in zip(examples, predictions, strict=True)
        ]
    rows = [
        describe_inputs(example, mode, prompt.num_cut) | detail
        for prompt, example, detail in zip(prompts, examples, details, strict=True)
    ]
    return TaskResult(method, "direct", metric, scores, counts, rows)


def describe_inputs(
    example: TextExample, mode: str | None, num_cut: int
) -> dict[str, Any]:
    """Returns what a prediction was made from, as JSON values."""
    return {
        "inputs": example.inputs,
        "mode": mode,
        "targets": example.targets,
        "tokens_cut": num_cut,
    }


def count_troubles(
    task: TextTask,
    examples: Sequence[TextExample],
    predictions: Sequence[Prediction],
) -> dict[str, int]:
    """Returns how many predictions had which trouble.

    `unanswered`: postprocessing found no answer. `not_a_choice`: the example has
    choices, and the answer is none of theirs. `sentinel_leaks`: a sentinel of
    pre-training is in it.
    """
    unanswered = strangers = 0
    for example, prediction in zip(examples, predictions, strict=True):
        answer = task.postprocess(prediction.text, example)
        allowed = [task.postprocess(choice, example) for choice in example.choices]
        unanswered += not is_answer(answer)
        strangers += bool(allowed) and answer not in allowed
    return {
        "unanswered": unanswered,
        "not_a_choice": strangers,
        "sentinel_leaks": sum(prediction.leaks_sentinel for prediction in predictions),
    }


def describe(
    task: TextTask, example: TextExample, prediction: Prediction
) -> dict[str, Any]:
    """Returns a prediction as JSON values."""
    choices = {"choices": list(example.choices)} if example.choices else {}
    return {
        "prediction": prediction.text,
        "correct": is_correct(task, example, prediction.text),
        **choices,
        **prediction.detail,
    }


def is_correct(task: TextTask, example: TextExample, prediction: str) -> bool:
    """Returns whether a prediction is exactly the target, or one of the references."""
    value, target = task.postprocess(prediction, example), task.target_of(example)
    if isinstance(target, list | tuple | set) and not isinstance(value, type(target)):
        return value in target
    return bool(value == target)


def _targets(
    model: Model,
    task: TextTask,
    examples: Sequence[TextExample],
    prompts: Sequence[Prompt],
    settings: EvaluationSettings,
) -> tuple[list[list[int]], int]:
    """Returns the ids of the right outputs, and how many were too long."""
    longest = settings.max_tokens or task.targets_length
    targets = [
        encode_target(example.targets, prompt, model)
        for example, prompt in zip(examples, prompts, strict=True)
    ]
    cut = sum(len(ids) > longest for ids in targets)
    return [ids[:longest] for ids in targets], cut


def _token_detail(score: TokenScore) -> dict[str, Any]:
    """Returns how well one right output was predicted, as JSON values."""
    return {
        "log_prob": score.log_prob,
        "tokens": score.num_tokens,
        "correct_tokens": score.num_correct,
        "correct": score.num_correct == score.num_tokens,
    }
