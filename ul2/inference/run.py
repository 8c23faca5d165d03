"""All rows of a source to a file of answers, in order, going on after a kill.

    rows         0 1 2 3 | 4 5 6 7 | ...      windows of many batches
    decoded      3 2 0 1 | ...                the longest first, within a window
    journal      2 3 0 1 ...                  as they come to their end
    answers      0 1 2 3 ...                  when all are there

What is decoded does not depend on what is decoded with it, and the batches that are
scored follow from the rows and the settings alone. So a run that was killed does the
rest, and ends with the same bytes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ul2.decoding.text import by_length
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

# At the end of a window nobody begins where others ended: so it is long.
_BATCHES_PER_WINDOW: Final = 256

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
    """Answers rows, and warns once about each mode that does not fit."""

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
        """Yields the answers to some rows as they are there, those of bad rows first.

        Args:
            rows: in any order; the longest are answered first.
            is_done: whether all rows of these numbers are answered already. A batch
                is scored as a whole or not at all.
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
        self._warn(requests)
        if not self._settings.score:
            left = [one for one in requests if not is_done([one.row.number])]
            yield from self._decode(left)
            return
        prompts = [request.prompt for request in requests]
        for places in by_length(prompts, self._settings.batch_size):
            batch = [requests[place] for place in places]
            if not is_done([request.row.number for request in batch]):
                yield self._score(batch)

    def _decode(self, requests: Sequence[Request]) -> Iterator[Answers]:
        for ended in self._model.generate_each(
            [request.prompt for request in requests],
            self._settings.decoding,
            numbers=[request.row.number for request in requests],
            max_tokens=[request.decoding.max_tokens for request in requests],
            keep_sentinels=self._settings.keep_sentinels,
        ):
            yield {
                requests[place].row.number: answer_decoded(
                    requests[place], best_first, self._model
                )
                for place, best_first in ended.items()
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

    def _warn(self, requests: Sequence[Request]) -> None:
        """Says, once each, which modes the checkpoint was not trained with."""
        for request in requests:
            line = misfit(self._model.trained_modes, request.mode)
            if line is not None and line not in self._said:
                self._said.add(line)
                self._say(f"warning: {line}")


def _windows(source: RowSource, size: int) -> Iterator[list[Row]]:
    rows = iter(source)
    while window := list(itertools.islice(rows, size)):
        yield window


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
