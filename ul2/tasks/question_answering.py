"""Reading comprehension: SQuAD, whose answers are spans, and RACE, with options."""

from collections.abc import Iterator
from typing import Final

from ul2.tasks.metrics import accuracy, squad
from ul2.tasks.multiple_choice import chosen_option, multiple_choice, one_line
from ul2.tasks.text_task import Row, TextExample, TextTask, Tfds


def squad_examples(row: Row) -> Iterator[TextExample]:
    """Makes one laid out as T5's, without its spaces around punctuation.

    The first answer is the target; all count when predictions are scored.

    inputs   question: Who ran? context: Ann ran.
    targets  Ann
    """
    answers = [one_line(text) for text in row["answers"]["text"]]
    if not answers:
        return
    question, context = one_line(row["question"]), one_line(row["context"])
    yield TextExample(
        inputs=f"question: {question} context: {context}",
        targets=answers[0],
        meta={"id": row["id"], "answers": answers},
    )


def race_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of each question about an article.

    inputs   question: Who ran? options: (A) Ann (B) Bo (C) Cy (D) Di context: Ann ran.
    targets  Ann
    """
    questions = zip(row["questions"], row["options"], row["answers"], strict=True)
    for question, options, answer in questions:
        yield multiple_choice(
            {"question": question},
            list(options),
            "ABCD".index(answer),
            context=row["article"],
            meta={"id": row["example_id"]},
        )


def _answers(example: TextExample) -> list[str]:
    answers: list[str] = list(example.meta["answers"])
    return answers


def _race(name: str, level: str) -> TextTask:
    return TextTask(
        name=name,
        source=Tfds(
            f"race/{level}:2.0.0",
            {"train": "train", "validation": "dev", "test": "test"},
        ),
        to_examples=race_examples,
        postprocess=chosen_option,
        metrics=(accuracy,),
        validation_metric="accuracy",
        inputs_length=1024,
        targets_length=64,
    )


TASKS: Final[tuple[TextTask, ...]] = (
    TextTask(
        name="squad",
        source=Tfds("squad/v1.1:3.0.0", {"train": "train", "validation": "validation"}),
        to_examples=squad_examples,
        target=_answers,
        metrics=(squad,),
        validation_metric="f1",
        inputs_length=512,
        targets_length=64,
    ),
    _race("race_middle", "middle"),
    _race("race_high", "high"),
)
