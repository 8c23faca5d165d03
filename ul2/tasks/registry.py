"""Which tasks and mixtures there are, by name.

    find("super_glue_boolq")              a `TextTask`
    find_mixture("super_glue")            (("super_glue_boolq", 9427.0), ...)
    register(TextTask(name="ours", ...))  from a module that --import_module names

Three mixtures have a name:

- `super_glue`: the eight tasks, WSC in the form that T5 generates. Their diagnostics
  are for evaluation alone.
- `glue`: eight tasks. Without WNLI, whose training and validation rows contradict each
  other; T5 and BERT leave it out, too. `glue_mnli_mismatched` has the training rows of
  `glue_mnli`, so it is not in the mixture.
- `ul2_ablation`: what the UL2 paper's ablation fine-tunes on: SuperGLUE, XSum,
  Schema-Guided Dialogue and ToTTo. The paper counts nine results: these four
  fine-tuned, the same four one-shot, and the log-perplexity of held-out C4, which is
  not a task of text to text. SuperGLUE, one of the four, is eight tasks here, and their
  mean its result.

A user's seqio task that gives `inputs` and `targets` is found by its name as well.
"""

import functools
import importlib
import sys
from typing import Final

from ul2.spelling import nearest
from ul2.tasks.text_task import TextTask

# Each has its `TASKS`.
_DEFINITIONS: Final = (
    "superglue",
    "glue",
    "summarization",
    "data_to_text",
    "commonsense",
    "question_answering",
    "mmlu",
    "reasoning",
)
# T5's artificial size limit (arXiv 1910.10683, section 3.5.2): larger sets count as
# this large.
SIZE_LIMIT: Final = 2**19
RATES: Final = ("examples", "equal")

# Training examples of each task. ReCoRD's are one per answer, WSC's the true ones.
_SUPER_GLUE: Final = {
    "super_glue_boolq": 9_427,
    "super_glue_cb": 250,
    "super_glue_copa": 400,
    "super_glue_multirc": 27_243,
    "super_glue_record": 138_854,
    "super_glue_rte": 2_490,
    "super_glue_wic": 5_428,
    "super_glue_wsc": 259,
}
MIXTURES: Final[dict[str, dict[str, int]]] = {
    "super_glue": _SUPER_GLUE,
    "glue": {
        "glue_cola": 8_551,
        "glue_sst2": 67_349,
        "glue_mrpc": 3_668,
        "glue_qqp": 363_849,
        "glue_stsb": 5_749,
        "glue_mnli": 392_702,
        "glue_qnli": 104_743,
        "glue_rte": 2_490,
    },
    "ul2_ablation": {
        **_SUPER_GLUE,
        "xsum": 204_045,
        "schema_guided_dialogue": 164_982,
        "totto": 121_153,
    },
}

_registered: Final[dict[str, TextTask]] = {}


@functools.cache
def _defined() -> dict[str, TextTask]:
    """Returns the tasks that come with the library, in the order of their modules."""
    tasks: dict[str, TextTask] = {}
    for module in _DEFINITIONS:
        for task in importlib.import_module(f"ul2.tasks.{module}").TASKS:
            assert task.name not in tasks, f"two tasks are called {task.name}"
            tasks[task.name] = task
    return tasks


def names() -> tuple[str, ...]:
    """Returns the names of all text tasks, those that users registered last."""
    return (*_defined(), *_registered)


def register(task: TextTask) -> None:
    """Makes a user's own task known by its name.

    Raises:
        ValueError: another task or a mixture has that name.
    """
    if _registered.get(task.name) == task:
        return
    if task.name in names() or task.name in MIXTURES:
        raise ValueError(
            f"a task or mixture {task.name!r} exists already; choose another name."
        )
    _registered[task.name] = task


def find(name: str) -> TextTask:
    """Returns a task: one of ours, a user's own, or a user's seqio task as one.

    Raises:
        ValueError: there is no such task; the nearest name is suggested.
    """
    task = _registered.get(name) or _defined().get(name)
    if task is not None:
        return task
    # Nobody can have registered a seqio task without importing seqio.
    if "seqio" in sys.modules:
        from ul2.tasks.seqio_text import make_text_task

        task = make_text_task(name)
    if task is not None:
        return task
    if name in MIXTURES:
        parts = ", ".join(MIXTURES[name])
        raise ValueError(f"{name!r} is a mixture, not a task; its tasks are {parts}.")
    raise ValueError(
        f"{name!r} is no task; {_suggest(name, (*names(), *MIXTURES))} (TASK, --task)."
    )


def find_mixture(
    name: str, rates: str = "examples", size_limit: int = SIZE_LIMIT
) -> tuple[tuple[str, float], ...]:
    """Returns the tasks of a mixture and how often each is drawn, relative to another.

    Args:
        name: of the mixture.
        rates: `examples` draws a task as often as it has training examples, at most
            `size_limit`; `equal` draws all equally often.
        size_limit: T5's limit.

    Raises:
        ValueError: there is no such mixture or rate.
    """
    if name not in MIXTURES:
        raise ValueError(f"{name!r} is no mixture; {_suggest(name, tuple(MIXTURES))}.")
    if rates not in RATES:
        raise ValueError(f"{rates=} is not one of {list(RATES)}.")
    if size_limit < 1:
        raise ValueError(f"{size_limit=} must be at least 1.")
    return tuple(
        (task, float(min(count, size_limit)) if rates == "examples" else 1.0)
        for task, count in MIXTURES[name].items()
    )


def _suggest(name: str, known: tuple[str, ...]) -> str:
    """Returns what a name may be a misspelling or the tail of."""
    near = nearest(name, known, count=3)
    if not near:
        return f"there are {', '.join(known[:20])}{', ...' * (len(known) > 20)}"
    return f"did you mean {' or '.join(near)}"
