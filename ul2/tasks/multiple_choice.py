"""Questions with options: how they are asked, and what counts as an answer.

    inputs   question: What is hot? options: (A) ice (B) fire
    targets  fire

The layout is UnifiedQA's with T5's field names. The answer is the text of an option,
not its letter: rank classification then compares words that pre-training has seen. A
long passage stands last: truncation takes from it, not from the question.
"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from ul2.tasks.text_task import TextExample


def one_line(text: str) -> str:
    """Returns a text with every run of white space as one space."""
    return " ".join(text.split())


def lettered(options: Sequence[str]) -> str:
    """Returns options on one line: "(A) ice (B) fire"."""
    return " ".join(
        f"({letter}) {option}"
        for letter, option in zip(ascii_uppercase, options, strict=False)
    )


def chosen_option(prediction: str, example: TextExample) -> str:
    """Returns an output as options are written, on one line."""
    del example
    return one_line(prediction)


def multiple_choice(
    fields: Mapping[str, str],
    options: Sequence[str],
    answer: int,
    *,
    context: str = "",
    meta: Mapping[str, Any] | None = None,
) -> TextExample:
    """Makes the example of a question with options.

    Args:
        fields: what is asked, by the names it is written with.
        options: all that can be answered.
        answer: which option is right.
        context: the passage that is asked about.
        meta: of the example.
    """
    texts = tuple(one_line(option) for option in options)
    parts = [f"{name}: {one_line(text)}" for name, text in fields.items()]
    parts.append(f"options: {lettered(texts)}")
    if context:
        parts.append(f"context: {one_line(context)}")
    return TextExample(
        inputs=" ".join(parts),
        targets=texts[answer],
        choices=texts,
        meta=dict(meta or {}),
    )
