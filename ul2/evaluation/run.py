"""Checkpoints x tasks x modes, one after another; what is done is not done twice."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from ul2.evaluation import results as files
from ul2.evaluation.candidates import Candidate, fingerprint
from ul2.evaluation.held_out import HeldOutText
from ul2.evaluation.prediction import Model
from ul2.evaluation.progress import WatchedModel
from ul2.evaluation.results import Result, Results
from ul2.evaluation.settings import EvaluationSettings
from ul2.evaluation.task_evaluation import TaskResult
from ul2.inference.modes import misfit
from ul2.inference.progress import Progress
from ul2.tasks.text_task import TextTask
from ul2.training.checkpoints import checkpoints_dir

# What a result of held-out text is called, where a task has its name.
TEXT: Final = "text"


class EvaluateTask(Protocol):
    """See `ul2.evaluation.evaluator.TaskEvaluator`."""

    def prepare(self) -> None:
        """Does what can be done without a model; called where one is needed."""

    def __call__(self, model: Model, task: TextTask, mode: str | None) -> TaskResult:
        """Evaluates a model on a task in a mode."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to evaluate.

    Attributes:
        candidates: checkpoints.
        tasks: tasks, each once.
        modes: of the tasks: R, S, X or None.
        text_modes: of the text: the same, or "own".
        settings: how tasks are evaluated.
        text: how the held-out text of a candidate is masked; None for no text.
        mesh: where models run.
        model_options: how checkpoints are opened, as far as it matters to results.
    """

    candidates: Sequence[Candidate]
    tasks: Sequence[TextTask]
    modes: Sequence[str | None]
    text_modes: Sequence[str | None]
    settings: EvaluationSettings
    text: Callable[[Candidate], HeldOutText] | None
    mesh: Mesh
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(
    plan: Plan,
    open_model: Callable[[Candidate], Model],
    evaluate_task: EvaluateTask,
    results: Results,
    say: Callable[[str], None],
) -> list[Result]:
    """Evaluates everything, and returns the results in order.

    Args:
        plan: what.
        open_model: loads a checkpoint; called only where something is left to do, and
            one model is dropped before the next is loaded.
        evaluate_task: evaluates a model on a task in a mode.
        results: what is known already, and where the rest is written.
        say: tells a person what is being done.

    Raises:
        ValueError: an input is wrong.
    """
    made = []
    # All of them first: what is wrong with the last shall not show after the others.
    jobs = [list(_jobs(plan, one, evaluate_task)) for one in plan.candidates]
    for candidate, of_candidate in zip(plan.candidates, jobs, strict=True):
        mark = fingerprint(candidate)
        model: Model | None = None
        new: list[Result] = []
        for job in of_candidate:
            identity = {
                "fingerprint": mark,
                "model_options": dict(plan.model_options),
                "mode": shown(job.mode),
                **job.identity,
            }
            key = files.make_key(identity)
            result = results.find(key)
            if result is None:
                if model is None:
                    evaluate_task.prepare()
                    model = open_model(candidate)
                    _warn(plan, model, candidate, say)
                say(f"{candidate.label}: {job.name}, mode {shown(job.mode)}")
                about = {
                    "key": key,
                    "checkpoint": candidate.label,
                    "path": str(candidate.path),
                    "step": candidate.step,
                    "task": job.name,
                }
                started = time.monotonic()
                found, rows = job.evaluate(model)
                seconds = {"seconds": round(time.monotonic() - started, 3)}
                result = {**about, **identity, **found, **seconds}
                result = results.add(result, rows)
                new.append(result)
                results.write({})
            # A copy of a checkpoint has the results of the first.
            made.append({**result, "checkpoint": candidate.label})
        _write_scalars(candidate, new)
    return made


def _warn(
    plan: Plan, model: Model, candidate: Candidate, say: Callable[[str], None]
) -> None:
    """Says where the one mode that is asked for does not fit the checkpoint."""
    if plan.tasks and len(plan.modes) == 1:
        line = misfit(model.trained_modes, plan.modes[0])
        if line is not None:
            say(f"warning: {candidate.label}: {line}")


class Job(NamedTuple):
    """One cell of the table.

    Attributes:
        name: the task's, or `TEXT`.
        mode: in front of all inputs.
        identity: what the result depends on, besides checkpoint and mode.
        evaluate: returns the fields of the result, and its predictions.
    """

    name: str
    mode: str | None
    identity: Mapping[str, Any]
    evaluate: Callable[[Model], tuple[dict[str, Any], Sequence[Mapping[str, Any]]]]


def _jobs(
    plan: Plan, candidate: Candidate, evaluate_task: EvaluateTask
) -> Iterator[Job]:
    """Yields every cell of a checkpoint."""
    if plan.text is not None:
        text = plan.text(candidate)
        identity = {"kind": "text", "settings": text.to_json()}
        for mode in plan.text_modes:
            yield Job(TEXT, mode, identity, _text_job(plan, text, mode))
    for task in plan.tasks:
        settings = plan.settings.to_json()
        identity = {"kind": "task", "name": task.name, "settings": settings}
        for mode in plan.modes:
            yield Job(task.name, mode, identity, _task_job(task, mode, evaluate_task))


def _text_job(plan: Plan, text: HeldOutText, mode: str | None) -> Callable[..., Any]:
    def evaluate(model: Model) -> tuple[dict[str, Any], list[Any]]:
        scores = text.evaluate(model.model, model.vocab, mode, plan.mesh)
        return {"method": "teacher_forced", "metric": "loss", "scores": scores}, []

    return evaluate


def _task_job(
    task: TextTask, mode: str | None, evaluate_task: EvaluateTask
) -> Callable[..., Any]:
    def evaluate(model: Model) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with Progress(None, show=True, label=task.name) as progress:
            result = evaluate_task(WatchedModel(model, progress), task, mode)
        fields = ("method", "road", "metric", "scores", "counts")
        return {name: getattr(result, name) for name in fields}, result.rows

    return evaluate


def _write_scalars(candidate: Candidate, new: Sequence[Result]) -> None:
    """Adds new scores to the curves of a run of ours."""
    if not new or not candidate.is_run or jax.process_index():
        return
    assert candidate.step is not None
    run_of = checkpoints_dir(candidate.path).parent
    # Somebody else's run cannot be written to; its scores are in --out, and shown.
    with contextlib.suppress(OSError):
        files.write_scalars(run_of, candidate.step, new)


def shown(mode: str | None) -> str:
    """Returns a mode as users write it."""
    return "none" if mode is None else mode
