"""Summaries of news and of dialogues, laid out as T5's CNN/DailyMail.

    inputs   summarize: The council met on Monday and ...
    targets  Councillors have agreed on a new park.

The inputs keep their line breaks: they part the turns of a dialogue and the highlights
of CNN/DailyMail, which ROUGE-Lsum takes as sentences.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from ul2.tasks.metrics import rouge
from ul2.tasks.text_task import Row, TextExample, TextTask, Tfds

_SPLITS: Final = {"train": "train", "validation": "validation", "test": "test"}


def xsum_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of an article and its first sentence."""
    return _summarize(row["document"], row["summary"], {})


def cnn_dailymail_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of an article and its highlights, one a line."""
    return _summarize(row["article"], row["highlights"], {"id": row["id"]})


def samsum_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of a chat: "Ann: Hi!", one turn a line."""
    return _summarize(row["dialogue"], row["summary"], {"id": row["id"]})


def _summarize(
    text: str, summary: str, meta: Mapping[str, str]
) -> Iterator[TextExample]:
    text, summary = _lines(text), _lines(summary)
    # Some articles of XSum and one dialogue of SAMSum are empty.
    if text and summary:
        yield TextExample(inputs=f"summarize: {text}", targets=summary, meta=meta)


def _lines(text: str) -> str:
    """Returns a text with one line break per line, without the spaces around."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _task(
    name: str,
    version: str,
    to_examples: Callable[[Row], Iterator[TextExample]],
    *,
    inputs_length: int,
    targets_length: int,
) -> TextTask:
    return TextTask(
        name=name,
        source=Tfds(f"{name}:{version}", _SPLITS),
        to_examples=to_examples,
        metrics=(rouge,),
        validation_metric="rougeLsum",
        inputs_length=inputs_length,
        targets_length=targets_length,
    )


TASKS: Final[tuple[TextTask, ...]] = (
    _task("xsum", "1.1.0", xsum_examples, inputs_length=512, targets_length=64),
    _task(
        "cnn_dailymail",
        "3.4.0",
        cnn_dailymail_examples,
        inputs_length=1024,
        targets_length=256,
    ),
    _task("samsum", "1.0.0", samsum_examples, inputs_length=512, targets_length=128),
)
