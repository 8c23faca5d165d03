"""What a mixture really does: measured on its examples, against what it declares.

A wrong objective costs a whole run and shows in no loss curve; every public
re-implementation of UL2 differs from the paper's table somewhere. So the examples
are taken apart again: nothing here asks the code that made them.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

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
        kept, noise, num_spans = (
            int(counts.sum()) for counts in _take_apart(denoiser, made, vocab)
        )
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


class Distribution(NamedTuple):
    """How long the spans of one denoiser are, and how dense its noise."""

    span_lengths: NDArray[np.int64]  # [spans], tokens of each
    noise_densities: NDArray[np.float64]  # [C], noise tokens / tokens of the text


def distribution(denoiser: Denoiser, made: Examples, vocab: Vocab) -> Distribution:
    """Takes examples apart, span by span.

    targets   <0> 13 14 <1> 17 <eos>   ->   span lengths 2, 1

    Args:
        denoiser: what made them.
        made: the examples.
        vocab: what they were made with.
    """
    kept, noise, _ = _take_apart(denoiser, made, vocab)
    densities = noise / np.maximum(noise + kept, 1)
    if not denoiser.sentinels:
        return Distribution(noise, densities)
    # A span ends where the next sentinel stands, or EOS.
    ends = made.target_lengths - 1
    marks = np.isin(made.targets, np.asarray(vocab.sentinel_ids))
    marks &= np.arange(made.targets.shape[1]) < ends[:, None]
    marks[np.arange(len(ends)), ends] = True
    rows, columns = np.nonzero(marks)
    same_row = rows[1:] == rows[:-1]
    lengths = (np.diff(columns) - 1)[same_row]
    return Distribution(lengths.astype(np.int64), densities)


def _take_apart(
    denoiser: Denoiser, made: Examples, vocab: Vocab
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Counts (kept tokens, noise tokens, spans) of each of the examples, [C] each."""
    sentinels = np.asarray(vocab.sentinel_ids)

    def count(
        rows: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        body = np.arange(rows.shape[1]) < lengths[:, None] - 1
        marks = (np.isin(rows, sentinels) & body).sum(axis=1)
        return body.sum(axis=1) - marks, marks

    kept, _ = count(made.inputs, made.input_lengths)
    noise, marks = count(made.targets, made.target_lengths)
    kept -= len(vocab.mode(denoiser.mode))
    return kept, noise, marks if denoiser.sentinels else np.ones_like(noise)
