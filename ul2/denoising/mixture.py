"""`Mixture`: denoisers and their rates, as data; and the mixtures people name.

Rates are per example (UL2 paper, section 3.1.3; the released recipes sample data
sets by rate). They are kept as whole numbers, so that shares can be exact: one
*round* of the mixture is the smallest run of examples that has them.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ul2.denoising.denoisers import Denoiser, Fit
from ul2.denoising.spans import PLACEMENTS, SUFFIXES
from ul2.spelling import did_you_mean
from ul2.vocab import Vocab

# (name, mode, mean_span_length, noise_density, placement, rate)
Row = tuple[str, str | None, float | None, float, str, float]

LARGEST_ROUND: Final = 10_000


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Denoisers, and how often each is used.

    Attributes:
        denoisers: in the order of their `denoiser_ids`.
        rates: share of the examples each gets, as weights of any scale: (1, 1, 2) is
            (0.25, 0.25, 0.5).
        cap_spans: where a denoiser wants more spans than the vocabulary has
            sentinels, make fewer and longer spans instead of refusing.
    """

    denoisers: tuple[Denoiser, ...]
    rates: tuple[float, ...]
    cap_spans: bool = False

    def __post_init__(self) -> None:
        names = [denoiser.name for denoiser in self.denoisers]
        if not names or len(names) != len(self.rates) or len(set(names)) != len(names):
            raise ValueError(
                f"a mixture needs denoisers of different names and one rate for each; "
                f"got {names} and rates {list(self.rates)}."
            )
        bad = [rate for rate in self.rates if not 0 < rate < math.inf]
        if bad:
            raise ValueError(f"mixture rates must be positive; got {bad}.")
        if self.round_size > LARGEST_ROUND:
            raise ValueError(
                f"rates {list(self.rates)} are exact only over {self.round_size} "
                f"examples (at most {LARGEST_ROUND}); round them."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the denoisers, in order."""
        return tuple(denoiser.name for denoiser in self.denoisers)

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Examples of each denoiser in one round.

        rates (0.2, 0.3)  ->  counts (2, 3)
        """
        return whole_counts(self.rates)

    @property
    def round_size(self) -> int:
        """Examples in one round."""
        return sum(self.counts)

    @property
    def shares(self) -> tuple[float, ...]:
        """The rates, scaled to add up to one."""
        return tuple(count / self.round_size for count in self.counts)

    @property
    def settled(self) -> "Mixture":
        """The mixture that held-out text is masked by: itself, unless it moves."""
        return self

    def compositions(
        self, batch_size: int, order: Sequence[int] | None = None
    ) -> NDArray[np.int64]:
        """Returns how many examples of each denoiser stand in each batch of a period.

        See `compositions`.
        """
        return compositions(self.counts, batch_size, order)

    def in_mode(self, mode: str | None) -> "Mixture":
        """Returns the mixture whose denoisers all announce the same mode, or none."""
        denoisers = (dataclasses.replace(one, mode=mode) for one in self.denoisers)
        return dataclasses.replace(self, denoisers=tuple(denoisers))

    def max_spans(self, vocab: Vocab) -> int | None:
        """Returns the most spans a denoiser may make, or None for any number."""
        return len(vocab.sentinel_ids) if self.cap_spans else None

    def fit(
        self, inputs_length: int, targets_length: int, vocab: Vocab
    ) -> tuple[Fit, ...]:
        """Returns how much text each denoiser takes at these lengths.

        Raises:
            ValueError: nothing fits, or the vocabulary has too few sentinels.
        """
        fits = self.fit_lengths(
            inputs_length,
            targets_length,
            [len(vocab.mode(denoiser.mode)) for denoiser in self.denoisers],
            self.max_spans(vocab),
        )
        needed = self.sentinels_needed(fits)
        if max(needed) > len(vocab.sentinel_ids):
            worst = needed.index(max(needed))
            raise ValueError(
                f"{needed[worst]} sentinels needed by denoiser {self.names[worst]!r} "
                f"at {inputs_length}/{targets_length}, but the vocabulary has "
                f"{len(vocab.sentinel_ids)}; make the store with "
                f"--num_sentinels={needed[worst]} or more, or set CAP_SPANS = True "
                "(fewer, longer spans)."
            )
        return fits

    def fit_lengths(
        self,
        inputs_length: int,
        targets_length: int,
        mode_lengths: Sequence[int],
        max_spans: int | None,
    ) -> tuple[Fit, ...]:
        """Returns how much text each denoiser takes, with any number of sentinels.

        Args:
            inputs_length: longest inputs.
            targets_length: longest targets.
            mode_lengths: tokens of the mode of each denoiser.
            max_spans: cap on the number of spans.

        Raises:
            ValueError: nothing fits.
        """
        return tuple(
            denoiser.fit(inputs_length, targets_length, mode_length, max_spans)
            for denoiser, mode_length in zip(self.denoisers, mode_lengths, strict=True)
        )

    def sentinels_needed(self, fits: Iterable[Fit]) -> tuple[int, ...]:
        """Returns how many different sentinels an example of each denoiser holds."""
        return tuple(
            fit.spans * denoiser.sentinels
            for denoiser, fit in zip(self.denoisers, fits, strict=True)
        )


def whole_counts(rates: Sequence[float]) -> tuple[int, ...]:
    """Returns the smallest whole numbers that are in proportion to some rates.

    (0.2, 0.3)  ->  (2, 3)
    """
    # By the decimal that was written: 0.1 is a tenth, not its nearest float.
    exact = [Fraction(str(rate)) for rate in rates]
    denominator = math.lcm(*(rate.denominator for rate in exact))
    counts = [int(rate * denominator) for rate in exact]
    divisor = math.gcd(*counts)
    return tuple(count // divisor for count in counts)


def compositions(
    counts: Sequence[int], batch_size: int, order: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Returns how many examples of each kind stand in each batch of a period.

    A period is the smallest number of batches over which the shares are exact; in each
    single batch a kind, or any run of kinds in `order`, is at most one example off
    (systematic sampling: one ladder of equal steps, laid along the cumulated rates).

        counts (1, 1, 1), batch size 4  ->  [1 1 2], [1 2 1], [2 1 1]

    Args:
        counts: examples of each kind in one round.
        batch_size: examples per batch.
        order: indices of the kinds, like ones side by side; as listed by default.

    Returns:
        `[batches, kinds]`; each row adds up to `batch_size`.
    """
    order = range(len(counts)) if order is None else order
    round_size = sum(counts)
    edges = np.cumsum([0, *(counts[index] for index in order)]) * batch_size
    offset = math.gcd(round_size, batch_size)
    offsets = np.arange(0, round_size, offset)[:, None]
    dealt = np.diff((edges + offsets) // round_size, axis=1)
    composition = np.empty_like(dealt)
    composition[:, list(order)] = dealt
    return composition


def from_rows(rows: Iterable[Row], cap_spans: bool = False) -> Mixture:
    """Makes a mixture from a table, as `configs/objectives` writes it.

    A suffix leaves no sentinel; every other placement does.
    """
    denoisers, rates = [], []
    for name, mode, mean_span_length, noise_density, placement, rate in rows:
        denoisers.append(
            Denoiser(
                name,
                mode,
                mean_span_length,
                noise_density,
                placement,
                sentinels=mean_span_length is not None,
            )
        )
        rates.append(rate)
    return Mixture(tuple(denoisers), tuple(rates), cap_spans)


# S, by the two definitions the authors gave: a suffix of L/4 on average (the paper's
# table) or of L/2 (the appendix code, whose `prefix_lm` had no other density then).
S_DENSITIES: Final = {"quarter": 0.25, "half": 0.5}

# Where spans inside a text may be told to lie.
_PLACEMENTS: Final = sorted(PLACEMENTS.keys() - set(SUFFIXES))

# fmt: off
_S = ("s", "S", None, 0.25, "suffix", 1)
OBJECTIVES: Final[dict[str, tuple[Row, ...]]] = {
    # UL2 paper, Table 1: two R, one S, four X, equally often.
    "ul2": (
        ("r_3_15",  "R", 3,    0.15, "random", 1),
        ("r_8_15",  "R", 8,    0.15, "random", 1),
        _S,
        ("x_3_50",  "X", 3,    0.50, "random", 1),
        ("x_8_50",  "X", 8,    0.50, "random", 1),
        ("x_64_15", "X", 64,   0.15, "random", 1),
        ("x_64_50", "X", 64,   0.50, "random", 1),
    ),
    # U-PaLM (2210.11399), section 2.2: the mixture that continues a causal model.
    "ul2r": (
        ("s",       "S", None, 0.50, "suffix", 4),
        ("r_3_15",  "R", 3,    0.15, "random", 2),
        ("x_32_15", "X", 32,   0.15, "random", 1),
        ("x_3_50",  "X", 3,    0.50, "random", 1),
    ),
    # T5Gemma 2 (2512.14856): 1 : 1 : 1 : 1 : 4.
    "t5gemma2": (
        ("r_3_15",  "R", 3,    0.15, "random", 1),
        ("x_12_50", "X", 12,   0.50, "random", 1),
        ("x_32_15", "X", 32,   0.15, "random", 1),
        ("x_32_50", "X", 32,   0.50, "random", 1),
        ("s_75",    "S", None, 0.75, "fixed_suffix", 4),
    ),
    # The paper's baselines (section 4.1); none of them has modes.
    "causal_lm": (("causal_lm", None, None, 1.0, "fixed_suffix", 1),),
    "prefix_lm": (("prefix_lm", None, None, 0.5, "suffix", 1),),
    "span_corruption": (("span_corruption", None, 3, 0.15, "random", 1),),
    "sclm": (
        ("causal_lm",       None, None, 1.00, "fixed_suffix", 1),
        ("span_corruption", None, 3,    0.15, "random", 1),
    ),
    # UniLM as UL2 runs it: the masked tokens are generated, not filled in place.
    "unilm": (
        ("causal_lm", None, None, 1.00, "fixed_suffix", 1),
        ("prefix_lm", None, None, 0.50, "suffix", 1),
        ("masked_lm", None, 1,    0.15, "scattered", 1),
    ),
}
# fmt: on


def named(
    name: str,
    *,
    s_denoiser: str | None = None,
    placement: str | None = None,
    cap_spans: bool = False,
) -> Mixture:
    """Returns one of `OBJECTIVES`.

    Args:
        name: which.
        s_denoiser: 'quarter' or 'half' for every S whose length is drawn; None keeps
            the objective's own.
        placement: for every denoiser with spans: 't5' is T5's own mask rule.
        cap_spans: see `Mixture`.

    Raises:
        ValueError: a name is unknown.
    """
    if name not in OBJECTIVES:
        raise ValueError(
            f"objective {name!r} is not one of {sorted(OBJECTIVES)}"
            f"{did_you_mean(name, OBJECTIVES)}; add "
            "--gin_file=configs/objectives/NAME.gin."
        )
    if s_denoiser not in (None, *S_DENSITIES):
        raise ValueError(
            f"S_DENOISER={s_denoiser!r} is not one of {sorted(S_DENSITIES)}."
        )
    if placement not in (None, *_PLACEMENTS):
        raise ValueError(
            f"PLACEMENT={placement!r} is not one of {_PLACEMENTS}"
            f"{did_you_mean(str(placement), _PLACEMENTS)}."
        )
    mixture = from_rows(OBJECTIVES[name], cap_spans)
    denoisers = []
    for denoiser in mixture.denoisers:
        if denoiser.placement == "suffix" and denoiser.mode == "S" and s_denoiser:
            denoiser = dataclasses.replace(
                denoiser, noise_density=S_DENSITIES[s_denoiser]
            )
        if not denoiser.is_suffix and placement:
            denoiser = dataclasses.replace(denoiser, placement=placement)
        denoisers.append(denoiser)
    return dataclasses.replace(mixture, denoisers=tuple(denoisers))
