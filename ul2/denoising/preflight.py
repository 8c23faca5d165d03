"""What a mixture really does: measured on its examples, against what it declares.

A wrong objective costs a whole run and shows in no loss curve; every public
re-implementation of UL2 differs from the paper's table somewhere. So the examples
are taken apart again: nothing here asks the code that made them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ul2.denoising.denoisers import Denoiser, Examples, Fit
from ul2.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One denoiser: what was declared, and what was measured on its examples."""

    name: str
    mode: str | None
    rate: float
    measured_share: float
    noise_density: float
    measured_noise_density: float
    mean_span_length: float
    measured_mean_span_length: float
    sentinels_needed: int
    text_length: int
    measured_inputs_length: float
    measured_targets_length: float
    target_share: float


class Declared(Protocol):
    """What examples are measured against: a mixture, or one at a step."""

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        """In the order of their ids."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each, adding up to one."""


def measure(
    mixture: Declared,
    fits: Sequence[Fit],
    examples: Sequence[Examples],
    vocab: Vocab,
) -> tuple[Measurement, ...]:
    """Takes examples apart and counts.

    Args:
        mixture: what declared them.
        fits: its fit at the lengths in use.
        examples: `examples[i]` are all examples of denoiser i in a stretch of the
            stream; their numbers give the shares.
        vocab: what they were made with.
    """
    total = sum(len(made.inputs) for made in examples)
    targets = sum(int(made.target_lengths.sum()) for made in examples)
    measurements = []
    for index, (denoiser, fit, made) in enumerate(
        zip(mixture.denoisers, fits, examples, strict=True)
    ):
        kept, noise, num_spans = _take_apart(denoiser, made, vocab)
        span_length = denoiser.mean_span_length or denoiser.noise_density * fit.text
        measurements.append(
            Measurement(
                name=denoiser.name,
                mode=denoiser.mode,
                rate=mixture.shares[index],
                measured_share=len(made.inputs) / total,
                noise_density=denoiser.noise_density,
                measured_noise_density=_ratio(noise, noise + kept),
                mean_span_length=span_length,
                measured_mean_span_length=_ratio(noise, num_spans),
                sentinels_needed=fit.spans * denoiser.sentinels,
                text_length=fit.text,
                measured_inputs_length=_ratio(
                    int(made.input_lengths.sum()), len(made.inputs)
                ),
                measured_targets_length=_ratio(
                    int(made.target_lengths.sum()), len(made.targets)
                ),
                target_share=int(made.target_lengths.sum()) / targets,
            )
        )
    return tuple(measurements)


def _ratio(part: int, whole: int) -> float:
    """Returns 0 where there is nothing to count: examples of another kind, or none."""
    return part / whole if whole else 0.0


def _take_apart(
    denoiser: Denoiser, made: Examples, vocab: Vocab
) -> tuple[int, int, int]:
    """Counts (kept tokens, noise tokens, spans) in the examples themselves."""
    sentinels = np.asarray(vocab.sentinel_ids)

    def count(rows: NDArray[np.int32], lengths: NDArray[np.int64]) -> tuple[int, int]:
        body = np.arange(rows.shape[1]) < lengths[:, None] - 1
        marks = int((np.isin(rows, sentinels) & body).sum())
        return int(body.sum()) - marks, marks

    kept, _ = count(made.inputs, made.input_lengths)
    noise, marks = count(made.targets, made.target_lengths)
    kept -= len(made.inputs) * len(vocab.mode(denoiser.mode))
    return kept, noise, marks if denoiser.sentinels else len(made.inputs)
