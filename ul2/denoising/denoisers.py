"""`Denoiser`: one way to turn a text into inputs and targets, as data.

Everything UL2 compares is a value of this one class (UL2 paper, section 3.1, where
each is a setting of `SpanCorrupt(mean span length, noise density, number of spans)`):
T5's span corruption, the extreme denoisers, prefix LM, causal LM.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.denoising import span_rules, spans
from ul2.vocab import MODES, Vocab

Tokens = NDArray[np.int32]


class Fit(NamedTuple):
    """How much text a denoiser takes so that its example always fits."""

    text: int  # tokens of text
    noise: int  # of these, noise tokens; for `suffix` those of two texts
    spans: int  # runs of noise
    inputs: int  # longest inputs: mode, kept text, sentinels and EOS
    targets: int  # longest targets: noise, sentinels and EOS


class Examples(NamedTuple):
    """`C` examples, each row padded behind its length with the pad id."""

    inputs: Tokens  # [C, longest inputs]
    input_lengths: NDArray[np.int64]  # [C]
    targets: Tokens  # [C, longest targets]
    target_lengths: NDArray[np.int64]  # [C]


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """What is masked, how much of it, where, and how the model is told.

    Attributes:
        name: what metrics and reports call it.
        mode: R, S or X, announced by the mode token in front of the inputs; None for
            no token.
        mean_span_length: tokens per span; None for a suffix, whose one span is as
            long as the density says.
        noise_density: share of the text that goes to the targets, in (0, 1].
        placement: where spans may lie; a key of `spans.PLACEMENTS`, or a rule of one's
            own (`span_rules`).
        sentinels: whether each span leaves a sentinel in the inputs and starts with
            it in the targets. Off for a suffix, as in T5's prefix LM.
    """

    name: str
    mode: str | None
    mean_span_length: float | None
    noise_density: float
    placement: str = "random"
    sentinels: bool = True

    def __post_init__(self) -> None:
        problem = self._unknown_value() or (
            self._suffix_problem() if self.is_suffix else self._spans_problem()
        )
        if problem:
            raise ValueError(f"denoiser {self.name!r}: {problem}")

    def _unknown_value(self) -> str | None:
        if self.mode not in (None, *MODES):
            return f"mode={self.mode!r} is not one of {list(MODES)} or None."
        if not (self.placement in spans.PLACEMENTS or self.has_rule):
            known = [*spans.PLACEMENTS, *span_rules.SPAN_RULES]
            return (
                f"placement={self.placement!r} is not one of {known}; name the module "
                "of a rule of your own with --import_module."
            )
        if not 0 < self.noise_density <= 1:
            return f"noise_density={self.noise_density} is not in (0, 1]."
        return None

    def _suffix_problem(self) -> str | None:
        if self.mean_span_length is not None:
            return "a suffix is as long as its density says; drop mean_span_length."
        if self.placement == "suffix" and self.noise_density > 0.5:
            return (
                f"a uniform suffix of mean {self.noise_density} would start before "
                "the text; use at most 0.5, or placement='fixed_suffix'."
            )
        return None

    def _spans_problem(self) -> str | None:
        if self.mean_span_length is None or self.mean_span_length < 1:
            return f"mean_span_length={self.mean_span_length} is below 1."
        if self.noise_density == 1:
            return "spans need kept text between them; use a density below 1."
        return None if self.sentinels else "spans inside the text need sentinels."

    @property
    def is_suffix(self) -> bool:
        """Whether the noise is one span at the end: the targets continue the inputs."""
        return self.placement in spans.SUFFIXES

    @property
    def has_rule(self) -> bool:
        """Whether a rule says what is masked, so that lengths depend on the text."""
        return self.placement in span_rules.SPAN_RULES

    def count(self, length: int, max_spans: int | None = None) -> tuple[int, int]:
        """Returns (noise tokens, spans) of a text of `length` tokens.

        A rule makes as many at most.
        For a `suffix` the noise tokens are those of two texts, see `spans.place`.
        """
        if self.placement == "suffix":
            return max(2, round(2 * self.noise_density * length)), 1
        noise = spans.count_noise(length, self.noise_density)
        if self.mean_span_length is None:
            return noise, 1
        num_spans = spans.count_spans(
            noise, length - noise, self.mean_span_length, self.placement
        )
        if self.has_rule:
            num_spans = span_rules.spare(num_spans, noise)
        return noise, min(num_spans, max_spans or num_spans)

    def measure(self, length: int, mode_length: int, max_spans: int | None) -> Fit:
        """Returns what a text of `length` tokens becomes, at the longest."""
        noise, num_spans = self.count(length, max_spans)
        marks = num_spans * self.sentinels
        if self.placement == "suffix":
            # T5 cuts prefix LM's text to the inputs' length, EOS included.
            inputs = mode_length + length + marks + 1
            return Fit(length, noise, 1, inputs, noise - 1 + marks + 1)
        # A rule may find nothing to mask, and masks no more spans than tokens.
        kept = length if self.has_rule else length - noise + marks
        inputs = mode_length + kept + 1
        return Fit(length, noise, num_spans, inputs, noise + marks + 1)

    def fit(
        self,
        inputs_length: int,
        targets_length: int,
        mode_length: int,
        max_spans: int | None = None,
    ) -> Fit:
        """Returns the longest text whose inputs and targets both always fit.

        The mode tokens and the EOS of either side are part of the budget. At 512/512
        without a mode, (3, .5) takes 766 tokens and needs 128 sentinels.

        Raises:
            ValueError: not even two tokens fit.
        """
        for length in range(inputs_length + targets_length, 1, -1):
            fit = self.measure(length, mode_length, max_spans)
            if fit.inputs <= inputs_length and fit.targets <= targets_length:
                return fit
        raise ValueError(
            f"denoiser {self.name!r}: no text fits INPUTS_LENGTH={inputs_length} and "
            f"TARGETS_LENGTH={targets_length}; raise them."
        )


def denoise(
    denoiser: Denoiser,
    tokens: NDArray[Any],
    *,
    vocab: Vocab,
    rng: np.random.Generator,
    max_spans: int | None = None,
    pieces: Sequence[str] | None = None,
) -> Examples:
    """Replaces every span by one sentinel and moves the span to the targets.

        tokens    11 12 13 14 15 16 17       noise   . . x x . . x
        inputs    [R] 11 12 <0> 15 16 <1> <eos>
        targets   <0> 13 14 <1> 17 <eos>

    A suffix without sentinels just splits:

        inputs    [S] 11 12 13 14 <eos>
        targets   15 16 17 <eos>

    Args:
        denoiser: what to do.
        tokens: `[C, L]` texts of one length, at least two tokens each.
        vocab: sentinels, EOS, pad and mode ids.
        rng: the only source of chance.
        max_spans: cap on the number of spans; they get longer instead.
        pieces: characters of every id, for a rule.

    Returns:
        The examples; no token of `tokens` is lost, and `merge` finds them again.

    Raises:
        ValueError: the vocabulary has fewer sentinels than there are spans.
    """
    count, length = tokens.shape
    noise, num_spans = denoiser.count(length, max_spans)
    if denoiser.sentinels and num_spans > len(vocab.sentinel_ids):
        raise ValueError(
            f"denoiser {denoiser.name!r}: {num_spans} sentinels needed for a text of "
            f"{length} tokens, but the vocabulary has {len(vocab.sentinel_ids)}."
        )
    if denoiser.has_rule:
        if pieces is None:
            raise ValueError(
                f"denoiser {denoiser.name!r}: the rule {denoiser.placement!r} reads "
                "characters; train it from a token store."
            )
        assert denoiser.mean_span_length is not None
        budget = span_rules.Budget(noise, num_spans, denoiser.mean_span_length)
        is_noise, starts = span_rules.mark(
            denoiser.placement, tokens, pieces, budget, rng
        )
    else:
        lengths = spans.place(denoiser.placement, rng, count, length, noise, num_spans)
        is_noise, starts = _marks(lengths, length)

    # Every text position offers a sentinel and its token: [C, L, 2]. Both sides take
    # the sentinels where spans start; they divide the tokens between them.
    offers = np.empty((count, length, 2), np.int32)
    offers[:, :, 1] = tokens
    if denoiser.sentinels:
        offers[starts, 0] = _sentinels(starts, num_spans, vocab, denoiser.has_rule)
    else:
        starts = np.zeros_like(starts)
    mode = vocab.mode(denoiser.mode)
    inputs, input_lengths = _take(offers, starts, ~is_noise, mode, vocab)
    targets, target_lengths = _take(offers, starts, is_noise, (), vocab)
    return Examples(inputs, input_lengths, targets, target_lengths)


def _marks(
    lengths: spans.Lengths, length: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns `[C, L]` masks: which tokens are noise, and which start a span."""
    count, parts = lengths.shape
    kinds = np.arange(count * parts, dtype=np.int64) % parts % 2 == 1
    is_noise = np.repeat(kinds, lengths.ravel()).reshape(count, length)
    starts = np.zeros((count, length), np.bool_)
    span_starts = np.cumsum(lengths, axis=1)[:, 0:-1:2]
    starts[np.arange(count)[:, None], span_starts] = True
    return is_noise, starts


def _sentinels(
    starts: NDArray[np.bool_], num_spans: int, vocab: Vocab, has_rule: bool
) -> NDArray[np.int_]:
    """Returns the sentinel of every span, text after text."""
    sentinels = np.array(vocab.sentinel_ids[:num_spans], np.int_)
    if not has_rule:
        return np.tile(sentinels, len(starts))
    # Texts differ in their number of spans.
    numbers: NDArray[np.int_] = np.cumsum(starts, axis=1)[starts] - 1
    return sentinels[numbers]


def _take(
    offers: Tokens,
    starts: NDArray[np.bool_],
    taken: NDArray[np.bool_],
    mode: tuple[int, ...],
    vocab: Vocab,
) -> tuple[Tokens, NDArray[np.int64]]:
    """Returns the taken offers of each row in order, after the mode, before EOS."""
    chosen = np.stack([starts, taken], axis=2)
    bodies = np.count_nonzero(chosen, axis=(1, 2))
    lengths = bodies + len(mode) + 1
    count, longest = len(offers), int(lengths.max())
    rows = np.full((count, longest), vocab.pad_id, np.int32)
    rows[:, : len(mode)] = mode
    columns = np.arange(longest)
    body = (columns >= len(mode)) & (columns < lengths[:, None] - 1)
    # By index: three times as fast as by a mask that changes at every span.
    rows[body] = offers.ravel()[np.flatnonzero(chosen)]
    rows[np.arange(count), lengths - 1] = vocab.eos_id
    return rows, lengths.astype(np.int64)


def merge(
    denoiser: Denoiser, inputs: NDArray[Any], targets: NDArray[Any], vocab: Vocab
) -> Tokens:
    """Returns the text that one example was made of.

    Args:
        denoiser: what made the example.
        inputs: `[l]` inputs, mode and EOS included, without padding.
        targets: `[l]` targets, EOS included, without padding.
        vocab: what the example was made with.

    Raises:
        ValueError: the sentinels of the two sides do not match.
    """
    mode = vocab.mode(denoiser.mode)
    if tuple(inputs[: len(mode)].tolist()) != mode:
        raise ValueError(f"inputs do not start with the mode {denoiser.mode!r}.")
    kept, noise = inputs[len(mode) : -1], targets[:-1]
    if not denoiser.sentinels:
        return np.concatenate([kept, noise]).astype(np.int32)
    sentinels = np.asarray(vocab.sentinel_ids)
    holes = np.flatnonzero(np.isin(kept, sentinels))
    starts = np.flatnonzero(np.isin(noise, sentinels))
    same = len(holes) == len(starts) and np.array_equal(kept[holes], noise[starts])
    if not same or (len(noise) and 0 not in starts):
        raise ValueError(
            f"inputs have sentinels {kept[holes].tolist()}, targets "
            f"{noise[starts].tolist()}."
        )
    pieces: list[Tokens] = []
    for piece, span in zip(
        np.split(kept, holes), [noise[:0], *np.split(noise, starts)[1:]], strict=True
    ):
        pieces += [span[1:], piece[1:] if len(pieces) else piece]
    return np.concatenate(pieces).astype(np.int32)
