"""Tells how many prompts of an evaluation a model has answered."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ul2.decoding.settings import DecodingSettings
from ul2.decoding.text import Prompt
from ul2.evaluation.prediction import Model, Output, TargetScore
from ul2.inference.progress import Progress
from ul2.vocab import Vocab


class WatchedModel:
    """A model that counts what it answers; otherwise the very same.

    Args:
        model: the model.
        progress: where it counts.
    """

    def __init__(self, model: Model, progress: Progress) -> None:
        self._model, self._progress = model, progress

    @property
    def model(self) -> Any:
        """The network."""
        return self._model.model

    @property
    def tokenizer(self) -> Any:
        """Text to ids and back."""
        return self._model.tokenizer

    @property
    def vocab(self) -> Vocab:
        """Where ids live."""
        return self._model.vocab

    @property
    def trained_modes(self) -> tuple[str, ...] | None:
        """Modes it was trained with; None for unknown."""
        return self._model.trained_modes

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        settings: DecodingSettings,
        *,
        keep_sentinels: bool = False,
    ) -> Iterator[Mapping[int, Sequence[Output]]]:
        """Yields `settings.num_decodes` outputs of each prompt, by its place."""
        for ended in self._model.generate_each(
            prompts, settings, keep_sentinels=keep_sentinels
        ):
            self._progress.add(len(ended))
            yield ended

    def score_from(
        self, prompts: Sequence[Prompt], targets: Sequence[Sequence[int]]
    ) -> Sequence[TargetScore]:
        """Returns how likely each target, as ids, is, given its prompt."""
        scores = self._model.score_from(prompts, targets)
        self._progress.add(len(prompts))
        return scores
