"""All rows of a source to a file of answers, in order, going on after a kill.

    rows         0 1 2 3 | 4 5 6 7 | ...      windows of a few batches
    batches      (3 0) (2 1) | ...            of like lengths, within a window
    journal      3 0 2 1 ...                  as they are answered
    answers      0 1 2 3 ...                  when all are there

Which rows share a batch follows from the rows and the settings alone. So a run that
was killed does the rest in the same batches, and ends with the same bytes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ul2.decoding.prompts import bucket
from ul2.decoding.text_model import TextModel
from ul2.inference.journal import Journal
from ul2.inference.modes import misfit
from ul2.inference.progress import Progress
from ul2.inference.requests import (
    BadRowError,
    Request,
    answer_bad,
    answer_decoded,
    answer_scored,
    make_request,
)
from ul2.inference.rows import Row, RowSource, Survey
from ul2.inference.settings import InferenceSettings

_BATCHES_PER_WINDOW: Final = 64

Answers = dict[int, dict[str, Any]]


class Summary(NamedTuple):
    """What became of some rows.

    Attributes:
        output: the file of the answers.
        rows: how many there are.
        bad_rows: how many have an error for an answer.
        first_bad: number of the first of them, counted from 1, and its error.
        truncated: how many texts were cut.
        resumed: how many answers were there before.
    """

    output: str
    rows: int
    bad_rows: int
    first_bad: str | None
    truncated: int
    resumed: int

    def lines(self) -> list[str]:
        """Returns what a person should know."""
        lines = [f"{self.output}: {self.rows} rows."]
        if self.resumed:
            lines.append(f"{self.resumed} rows had been answered before.")
        if self.truncated:
            lines.append(f"{self.truncated} texts were too long and cut at their end.")
        if self.bad_rows:
            lines.append(
                f"{self.bad_rows} rows could not be answered and say why; the first is "
                f"{self.first_bad}."
            )
        return lines


def answer_text(
    model: TextModel,
    text: str,
    settings: InferenceSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Returns the answer to one text.

    Raises:
        ValueError: it cannot be answered.
    """
    row = Row(0, {"inputs": text})
    (answers,) = Answerer(model.one_at_a_time, settings, say).answer([row])
    if "error" in answers[0]:
        raise ValueError(f"{answers[0]['error']}.")
    return answers[0]


def answer_file(
    model: TextModel,
    source: RowSource,
    found: Survey,
    output: Path,
    settings: InferenceSettings,
    say: Callable[[str], None],
    *,
    show_progress: bool = True,
) -> Summary:
    """Answers all rows of a source.

    Args:
        model: answers them.
        source: the rows.
        found: what `survey` found of them.
        output: the file to write.
        settings: for all rows.
        say: is told what a person should know at once, a line each.
        show_progress: whether to report on stderr.

    Raises:
        ValueError: the rows cannot be read, the output cannot be written, or another
            command has begun it.
    """
    model.vocab.mode(settings.mode)
    identity = {**model.identity, **settings.to_json()}
    identity |= {"input": source.name, "sha256": found.sha256}
    batched = dataclasses.replace(model, batch_size=settings.batch_size)
    answerer = Answerer(batched, settings, say)
    with (
        Journal(output, found.num_rows, identity) as journal,
        Progress(found.num_rows, show=show_progress) as progress,
    ):
        resumed = journal.num_answered
        progress.start_at(resumed)
        for window in _windows(source, settings.batch_size * _BATCHES_PER_WINDOW):
            if journal.has(row.number for row in window):
                continue
            for answers in answerer.answer(window, is_done=journal.has):
                new = [number for number in answers if not journal.has([number])]
                journal.add(answers)
                progress.add(len(new))
        summary = _summarize(output, journal.answers(), resumed)
        journal.finish()
    return summary


class Answerer:
    """Answers rows batch by batch, and warns once about each mode that does not fit."""

    def __init__(
        self, model: TextModel, settings: InferenceSettings, say: Callable[[str], None]
    ) -> None:
        """Prepares nothing.

        Args:
            model: answers.
            settings: for rows that do not say otherwise.
            say: is told what a person should know.
        """
        self._model, self._settings, self._say = model, settings, say
        self._said: set[str] = set()

    def answer(
        self,
        rows: Sequence[Row],
        is_done: Callable[[Sequence[int]], bool] = lambda numbers: False,
    ) -> Iterator[Answers]:
        """Yields the answers to each batch of some rows, those of bad rows first.

        Args:
            rows: are put into batches of like lengths.
            is_done: whether all rows of these numbers are answered already; a batch
                is answered as a whole or not at all.
        """
        requests: list[Request] = []
        bad: Answers = {}
        for row in rows:
            try:
                requests.append(make_request(row, self._model, self._settings))
            except BadRowError as error:
                bad[row.number] = answer_bad(row, str(error))
        if bad and not is_done(list(bad)):
            yield bad
        for batch in _batches(requests, self._settings.batch_size):
            if not is_done([request.row.number for request in batch]):
                self._warn(batch)
                yield (
                    self._score(batch) if self._settings.score else self._decode(batch)
                )

    def _decode(self, batch: Sequence[Request]) -> Answers:
        outputs = self._model.generate_from(
            [request.prompt for request in batch],
            batch[0].decoding,
            numbers=[request.row.number for request in batch],
            keep_sentinels=self._settings.keep_sentinels,
        )
        return {
            request.row.number: answer_decoded(request, best_first, self._model)
            for request, best_first in zip(batch, outputs, strict=True)
        }

    def _score(self, batch: Sequence[Request]) -> Answers:
        pairs = [(request, target) for request in batch for target in request.targets]
        scores = iter(
            self._model.score_from(
                [request.prompt for request, _ in pairs],
                [target for _, target in pairs],
                owners=[request.row.number for request, _ in pairs],
            )
        )
        return {
            request.row.number: answer_scored(
                request, [next(scores) for _ in request.targets]
            )
            for request in batch
        }

    def _warn(self, batch: Sequence[Request]) -> None:
        """Says, once each, which modes the checkpoint was not trained with."""
        for request in batch:
            line = misfit(self._model.trained_modes, request.mode)
            if line is not None and line not in self._said:
                self._said.add(line)
                self._say(f"warning: {line}")


def _windows(source: RowSource, size: int) -> Iterator[list[Row]]:
    rows = iter(source)
    while window := list(itertools.islice(rows, size)):
        yield window


def _batches(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Yields requests that one program can decode, the longest first.

    If memory does not suffice, it shows at once.
    """
    shapes: dict[tuple[int, int, int, bool], list[Request]] = {}
    for request in requests:
        prompt = request.prompt
        shape = (
            bucket(len(prompt.inputs)),
            request.decoding.max_tokens,
            bucket(len(prompt.forced)),
            prompt.num_blanks > 0,
        )
        shapes.setdefault(shape, []).append(request)
    for shape in sorted(shapes, reverse=True):
        alike = shapes[shape]
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _summarize(
    output: Path, answers: Iterator[Mapping[str, Any]], resumed: int
) -> Summary:
    rows = bad_rows = truncated = 0
    first_bad = None
    for answer in answers:
        rows += 1
        truncated += "truncated" in answer
        if "error" in answer:
            bad_rows += 1
            first_bad = first_bad or f"row {rows}: {answer['error']}"
    return Summary(str(output), rows, bad_rows, first_bad, truncated, resumed)
