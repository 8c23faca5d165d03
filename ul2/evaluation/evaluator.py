"""Reads the examples of a task and chooses the road to its scores.

    direct   rows -> `TextExample`s -> model -> `TextTask.score`
    seqio    the task in seqio's registry -> `seqio.Evaluator` -> model -> its metrics

Both roads give the same scores of the same predictions. seqio's is taken for data sets
of TFDS and for users' own seqio tasks; everything whose rows come from files works
without TensorFlow. What seqio's Evaluator knows nothing of goes the direct road, too:
choices, votes, the calculator.
"""

from collections.abc import Callable, Iterable, Sequence

from jax.sharding import Mesh

from ul2.evaluation.prediction import Model
from ul2.evaluation.settings import EvaluationSettings
from ul2.evaluation.task_evaluation import TaskResult, evaluate_task
from ul2.evaluation.teacher_forced import TeacherForced, TokenScore
from ul2.tasks.text_task import Seqio, TextExample, TextTask, Tfds

# `ul2.tasks.examples.read_examples`.
Read = Callable[..., Iterable[TextExample]]


class TaskEvaluator:
    """Evaluates one model after another on one task after another.

    Args:
        settings: how.
        mesh: where models run.
        read: returns the examples of a task.
        tasks: all that will come.

    Raises:
        ValueError: a task lacks the split.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        mesh: Mesh,
        read: Read,
        tasks: Sequence[TextTask] = (),
    ) -> None:
        for task in tasks:
            check_split(task, settings.split)
        self._settings = settings
        self._mesh = mesh
        self._read = read
        self._tasks = tasks
        self._examples: dict[str, list[TextExample]] = {}
        self._forced: tuple[Model, TeacherForced] | None = None

    def prepare(self) -> None:
        """Reads the data of all tasks, so that what is wrong shows before any work.

        Raises:
            ValueError: data are missing, cannot be scored, or do not suit the method.
        """
        for task in self._tasks:
            examples = self._examples_of(task)
            takes_seqio(self._settings, task, self._settings.method_for(task, examples))

    def __call__(self, model: Model, task: TextTask, mode: str | None) -> TaskResult:
        """Evaluates a model on a task in a mode.

        Raises:
            ValueError: the task lacks the split, its data are not there, or the method
                does not suit it.
        """
        settings = self._settings
        examples = self._examples_of(task)
        method = settings.method_for(task, examples)
        if takes_seqio(settings, task, method):
            # Needs TensorFlow, which the direct road does without.
            from ul2.evaluation.seqio_road import evaluate_by_seqio

            return evaluate_by_seqio(model, task, examples, mode, settings)

        def score_tokens(
            inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
        ) -> list[TokenScore]:
            return self._teacher_forced(model).score(inputs, targets)

        return evaluate_task(model, task, examples, mode, settings, score_tokens)

    def _examples_of(self, task: TextTask) -> list[TextExample]:
        """Returns the examples of a task, read once."""
        settings = self._settings
        if task.name not in self._examples:
            found = self._read(
                task.name,
                settings.split,
                shots=settings.shots,
                seed=settings.seed,
                limit=settings.limit,
                data_dir=settings.data_dir,
            )
            self._examples[task.name] = list(found)
        if not self._examples[task.name]:
            raise ValueError(
                f"task {task.name!r} has no example in split {settings.split!r}."
            )
        # Refuses hidden targets now, not after hours of decoding.
        task.target_of(self._examples[task.name][0])
        return self._examples[task.name]

    def _teacher_forced(self, model: Model) -> TeacherForced:
        """Returns the scorer of a model, compiled once."""
        if self._forced is None or self._forced[0] is not model:
            scorer = TeacherForced(
                model.model,
                model.vocab,
                self._mesh,
                batch_size=self._settings.batch_size,
            )
            self._forced = (model, scorer)
        return self._forced[1]


def check_split(task: TextTask, split: str) -> None:
    """Refuses a split that a task lacks.

    Raises:
        ValueError: names those that it has.
    """
    splits = list(task.source.splits)
    if split not in splits:
        raise ValueError(
            f"--split={split}: task {task.name!r} has {', '.join(splits) or 'none'}."
        )


def takes_seqio(settings: EvaluationSettings, task: TextTask, method: str) -> bool:
    """Returns whether a task goes through seqio's Evaluator.

    Raises:
        ValueError: it shall, but cannot.
    """
    needs_direct = {
        f"--method {method}": method != "generate",
        f"--num_samples={settings.num_samples}": settings.num_samples > 0,
        "--calculator": settings.calculator,
    }
    reasons = [flag for flag, is_so in needs_direct.items() if is_so]
    if settings.road == "seqio" and reasons:
        raise ValueError(
            f"--road=seqio: seqio's Evaluator knows no {', '.join(reasons)}; use "
            "--road=direct."
        )
    if settings.road == "auto":
        return isinstance(task.source, Tfds | Seqio) and not reasons
    return settings.road == "seqio"
