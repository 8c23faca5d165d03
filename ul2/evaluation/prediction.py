"""Examples to predictions: generated, ranked, or voted on.

Whatever the method, a prediction is a text in the end. The task's own postprocessing
and metrics read it as if the model had written it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ul2.decoding.settings import DecodingSettings
from ul2.decoding.text import Prompt, by_length
from ul2.evaluation.calculator import recompute
from ul2.evaluation.settings import EvaluationSettings
from ul2.evaluation.voting import vote
from ul2.tasks.text_task import TextExample, TextTask
from ul2.vocab import Vocab, sentinel_text


class Output(Protocol):
    """What a model wrote; see `ul2.decoding.text_model.TextOutput`."""

    @property
    def text(self) -> str:
        """What it wrote."""

    @property
    def ids(self) -> Sequence[int]:
        """The same as ids."""

    @property
    def log_prob(self) -> float:
        """Natural log of its probability."""


class TargetScore(Protocol):
    """How likely an output is; see `ul2.decoding.scoring.Score`."""

    @property
    def log_prob(self) -> float:
        """Natural log of its probability, EOS included."""

    @property
    def num_tokens(self) -> int:
        """Tokens of it, EOS included."""


class Model(Protocol):
    """A trained model that reads and writes text; see `ul2.decoding.text_model`."""

    @property
    def model(self) -> Any:
        """The network."""

    @property
    def tokenizer(self) -> Any:
        """Text to ids and back."""

    @property
    def vocab(self) -> Vocab:
        """Where ids live."""

    @property
    def trained_modes(self) -> tuple[str, ...] | None:
        """Modes it was trained with; None for unknown."""

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        settings: DecodingSettings,
        *,
        keep_sentinels: bool = False,
    ) -> Iterator[Mapping[int, Sequence[Output]]]:
        """Yields `settings.num_decodes` outputs of each prompt, by its place."""

    def score_from(
        self, prompts: Sequence[Prompt], targets: Sequence[Sequence[int]]
    ) -> Sequence[TargetScore]:
        """Returns how likely each target, as ids, is, given its prompt."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was predicted of an example.

    Attributes:
        text: what postprocessing reads.
        detail: how it came about, as JSON values.
        ids: what was decoded; empty where nothing was.
        leaks_sentinel: a sentinel is in it, which only a span may begin with.
    """

    text: str
    detail: dict[str, Any]
    ids: tuple[int, ...] = ()
    leaks_sentinel: bool = False


def make_prompts(
    texts: Sequence[str],
    mode: str | None,
    model: Model,
    max_inputs: int,
    settings: EvaluationSettings,
) -> list[Prompt]:
    """Returns texts as a model reads them: mode first, EOS last, not too long.

    [S] 11 12 <eos>, or with `infill` [X] 11 12 <extra_id_0> <eos>

    A blank `___` in the text of a task is a part of its question, not one to fill.
    Where there are exemplars, what is too long loses its start: the question stands at
    its end.

    Args:
        texts: inputs of examples.
        mode: R, S, X or None.
        model: its tokenizer and vocabulary.
        max_inputs: ids of a prompt, mode and EOS included.
        settings: of the evaluation.
    """
    blank = blank_of(model, settings)
    before, after = model.vocab.mode(mode), [*blank, model.vocab.eos_id]
    room = max(1, max_inputs - len(before) - len(after))
    prompts = []
    for text in texts:
        ids = model.tokenizer.encode(text)
        kept = ids[-room:] if settings.shots else ids[:room]
        prompts.append(
            Prompt(
                inputs=[*before, *kept, *after],
                forced=blank,
                num_blanks=len(blank),
                num_cut=len(ids) - len(kept),
            )
        )
    return prompts


def blank_of(model: Model, settings: EvaluationSettings) -> list[int]:
    """Returns what stands for the blank that an output fills, if it fills one."""
    return list(model.vocab.sentinel_ids[:1]) if settings.infill else []


def encode_target(text: str, prompt: Prompt, model: Model) -> list[int]:
    """Returns an output as ids: the blank that it fills first, EOS last."""
    return [*prompt.forced, *model.tokenizer.encode(text), model.vocab.eos_id]


def generate(
    model: Model,
    task: TextTask,
    examples: Sequence[TextExample],
    prompts: Sequence[Prompt],
    settings: EvaluationSettings,
    *,
    before_batch: Callable[[], None] = lambda: None,
) -> list[Prediction]:
    """Decodes an output of every example, or draws several and lets them vote.

    Args:
        model: decodes.
        task: what is asked.
        examples: of the task.
        prompts: theirs.
        settings: how to decode.
        before_batch: called again and again; may give up by an error.
    """
    decoding = settings.decoding_of(task)
    predictions: list[Prediction | None] = [None] * len(examples)
    before_batch()
    for ended in model.generate_each(
        prompts, decoding, keep_sentinels=not settings.forbid_sentinels
    ):
        for number, made in ended.items():
            predictions[number] = choose_output(
                made, task, examples[number], model.vocab, settings
            )
        before_batch()
    return [one for one in predictions if one is not None]


def choose_output(
    outputs: Sequence[Output],
    task: TextTask,
    example: TextExample,
    vocab: Vocab,
    settings: EvaluationSettings,
) -> Prediction:
    """Returns the prediction of one example from what was decoded of it."""
    written = [output.text for output in outputs]
    if settings.infill:
        blank = sentinel_text(0)
        written = [text.removeprefix(blank).removeprefix(" ") for text in written]
    texts = [recompute(text) for text in written] if settings.calculator else written
    chosen, detail = 0, {}
    if settings.num_samples:
        answers = [task.postprocess(text, example) for text in texts]
        outcome = vote(answers, [output.log_prob for output in outputs])
        chosen = outcome.sample
        detail = {
            "votes": outcome.votes,
            "valid_votes": outcome.valid,
            "answers": answers,
        }
    output = outputs[chosen]
    if texts[chosen] != written[chosen]:
        detail["uncalculated"] = written[chosen]
    return Prediction(
        texts[chosen],
        {"log_prob": _finite(output.log_prob), **detail},
        tuple(output.ids),
        not set(vocab.sentinel_ids).isdisjoint(output.ids[settings.infill :]),
    )


def rank(
    model: Model,
    examples: Sequence[TextExample],
    prompts: Sequence[Prompt],
    settings: EvaluationSettings,
) -> list[Prediction]:
    """Takes the likeliest choice of every example; a tie goes to the earlier one."""
    predictions: list[Prediction | None] = [None] * len(examples)
    widest = max(len(example.choices) for example in examples)
    for numbers in by_length(prompts, max(1, settings.batch_size // widest)):
        pairs = [
            (prompts[number], encode_target(choice, prompts[number], model))
            for number in numbers
            for choice in examples[number].choices
        ]
        # Pairs of one example are neighbours: its inputs are encoded once.
        scores = iter(
            model.score_from(
                [prompt for prompt, _ in pairs], [target for _, target in pairs]
            )
        )
        for number in numbers:
            choices = examples[number].choices
            values = [
                choice_value(next(scores), choice, settings.choice_score)
                for choice in choices
            ]
            best = max(range(len(choices)), key=lambda index: values[index])
            predictions[number] = Prediction(
                choices[best],
                {"choice_scores": [_finite(value) for value in values]},
            )
    return [one for one in predictions if one is not None]


def choice_value(score: TargetScore, choice: str, choice_score: str) -> float:
    """Returns what ranks a choice.

    "no" with log probability -3.0 over `no` and EOS: sum -3, per_token -1.5,
    per_character -1.5
    """
    divisor = {
        "sum": 1,
        "per_token": score.num_tokens,
        "per_character": len(choice),
    }[choice_score]
    return score.log_prob / max(1, divisor)


def _finite(value: float) -> float | None:
    """Returns a number that JSON has, or None."""
    return float(value) if math.isfinite(value) else None
