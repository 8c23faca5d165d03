"""`MovingMixture`: a mixture whose rates and noise densities are functions of the step.

    recipe.Recipe.mixture = @moving.moving()
    moving.moving.mixture = @mixture.named()
    mixture.named.name = 'ul2'
    moving.moving.rates = {'s': @more_s/ramps.linear()}
    more_s/ramps.linear.start = 1
    more_s/ramps.linear.end = 4
    more_s/ramps.linear.steps = 100000

Rates are weights of any scale, as in any mixture: above, S grows from one example in
seven to four in ten, and the others keep their proportions.

To whoever does not ask for a step it is a mixture that stands still: its densities are
those at the end, its rates the middle between those at the end and the average of the
steps before. Held-out text is masked by that one, so that losses of all steps compare
and every denoiser has one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.denoising.denoisers import Denoiser, Fit
from ul2.denoising.mixture import LARGEST_ROUND, Mixture, whole_counts
from ul2.denoising.ramps import Ramp, constant
from ul2.vocab import Vocab

# Shares are whole numbers of this many parts, so that sums of them are exact, and the
# same on every machine whatever its cosine.
PARTS: Final = 1_000_000
# Steps at which rates are averaged, and the parts that averages are rounded to.
_SAMPLES: Final = 1025
_ROUND: Final = 20


class Moment(NamedTuple):
    """A mixture at a step, or over a stretch of them."""

    denoisers: tuple[Denoiser, ...]
    shares: tuple[float, ...]  # adding up to one


@dataclasses.dataclass(frozen=True)
class MovingMixture(Mixture):
    """Denoisers, how often each is used, and how that changes.

    The inherited fields are the mixture that held-out text is masked by.

    Attributes:
        rate_ramps: of each denoiser, as weights of any scale; 0 is none.
        density_ramps: noise density of each denoiser.
    """

    rate_ramps: tuple[Ramp, ...] = ()
    density_ramps: tuple[Ramp, ...] = ()

    @property
    def settled(self) -> Mixture:
        """The mixture that held-out text is masked by."""
        return Mixture(self.denoisers, self.rates, self.cap_spans)

    @property
    def last(self) -> int:
        """The step from which on nothing moves."""
        return max(ramp.last for ramp in (*self.rate_ramps, *self.density_ramps))

    @property
    def knots(self) -> tuple[int, ...]:
        """The steps at which a ramp begins, turns, jumps or ends."""
        ramps = (*self.rate_ramps, *self.density_ramps)
        return tuple(sorted({step for ramp in ramps for step in ramp.steps}))

    @property
    def end_counts(self) -> tuple[int, ...]:
        """Examples of each denoiser in one round of the mixture that it ends as."""
        return whole_counts([ramp.end for ramp in self.rate_ramps])

    def parts(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the shares at some steps in millionths, `[N, denoisers]`."""
        rates = np.stack([ramp(steps) for ramp in self.rate_ramps], axis=1)
        edges = np.cumsum(rates, axis=1)
        whole = np.rint(edges / edges[:, -1:] * PARTS).astype(np.int64)
        return np.diff(whole, axis=1, prepend=0)

    def denoisers_at(self, step: int) -> tuple[Denoiser, ...]:
        """Returns the denoisers with the densities of a step."""
        at = np.array([step])
        return tuple(
            denoiser
            if len(ramp.steps) == 1
            else dataclasses.replace(denoiser, noise_density=float(ramp(at)[0]))
            for denoiser, ramp in zip(self.denoisers, self.density_ramps, strict=True)
        )

    def over(self, first: int, last: int) -> Moment:
        """Returns the mixture of steps `first` to `last - 1`.

        Shares are means, densities those in the middle.
        """
        shares = self.parts(np.arange(first, last)).mean(axis=0) / PARTS
        return Moment(self.denoisers_at((first + last) // 2), tuple(shares.tolist()))

    def fit_lengths(
        self,
        inputs_length: int,
        targets_length: int,
        mode_lengths: Sequence[int],
        max_spans: int | None,
    ) -> tuple[Fit, ...]:
        """Returns how much text each denoiser takes, whatever the step.

        One length for all steps: the least masking fills the inputs, the most masking
        the targets. Noise, spans and lengths are the largest of any step.
        """
        fits = []
        for index, mode_length in enumerate(mode_lengths):
            ramp = self.density_ramps[index]
            ends = [
                dataclasses.replace(self.denoisers[index], noise_density=density)
                for density in sorted({ramp.lowest, ramp.highest})
            ]
            text = min(
                end.fit(inputs_length, targets_length, mode_length, max_spans).text
                for end in ends
            )
            # Every number of noise tokens that comes up on the way.
            lowest, highest = (end.count(text)[0] for end in (ends[0], ends[-1]))
            scale = 2 * text if ends[0].placement == "suffix" else text
            densities = [count / scale for count in range(lowest + 1, highest)]
            measured = [
                dataclasses.replace(ends[0], noise_density=density).measure(
                    text, mode_length, max_spans
                )
                for density in densities
            ]
            measured += [end.measure(text, mode_length, max_spans) for end in ends]
            fits.append(Fit(text, *np.max([one[1:] for one in measured], 0).tolist()))
        return tuple(fits)

    def fits_at(self, step: int, fits: Sequence[Fit], vocab: Vocab) -> tuple[Fit, ...]:
        """Returns what texts of the lengths of `fits` become at a step."""
        return tuple(
            fit
            if len(ramp.steps) == 1
            else denoiser.measure(
                fit.text, len(vocab.mode(denoiser.mode)), self.max_spans(vocab)
            )
            for denoiser, ramp, fit in zip(
                self.denoisers_at(step), self.density_ramps, fits, strict=True
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Returns how it moves, as JSON values."""
        return {
            "rates": [ramp.to_json() for ramp in self.rate_ramps],
            "noise_densities": [ramp.to_json() for ramp in self.density_ramps],
        }


def moving(
    mixture: Mixture,
    *,
    rates: Mapping[str, Ramp] | None = None,
    noise_densities: Mapping[str, Ramp] | None = None,
) -> MovingMixture:
    """Returns a mixture that moves.

    Args:
        mixture: what stands still but for the ramps.
        rates: weight of a denoiser by its name, on the scale of `mixture`'s rates.
        noise_densities: noise density of a denoiser by its name.

    Raises:
        ValueError: a name is unknown, a value is no ramp, or a ramp goes where a rate
            or density cannot.
    """
    rate_ramps = _ramps("rates", mixture, mixture.rates, rates)
    _check_rates(mixture.names, rate_ramps)
    densities = [denoiser.noise_density for denoiser in mixture.denoisers]
    density_ramps = _ramps("noise_densities", mixture, densities, noise_densities)
    for denoiser, ramp in zip(mixture.denoisers, density_ramps, strict=True):
        if denoiser.name in (noise_densities or {}):
            _check_density(denoiser, ramp)
    return MovingMixture(
        tuple(
            dataclasses.replace(denoiser, noise_density=ramp.end)
            for denoiser, ramp in zip(mixture.denoisers, density_ramps, strict=True)
        ),
        _held_out_rates(rate_ramps),
        mixture.cap_spans,
        rate_ramps,
        density_ramps,
    )


def _check_rates(names: Sequence[str], ramps: Sequence[Ramp]) -> None:
    """Refuses rates that are no rates at some step."""
    for name, ramp in zip(names, ramps, strict=True):
        if ramp.lowest < 0:
            raise ValueError(
                f"moving.rates[{name!r}] falls to {ramp.lowest}; a rate is at least 0."
            )
    knots = np.unique([step for ramp in ramps for step in ramp.steps])
    # Between two knots every rate rises or falls, so all are 0 at one, or nowhere.
    none = knots[sum(ramp(knots) for ramp in ramps) == 0]
    if len(none):
        raise ValueError(
            f"moving.rates: all rates are 0 at step {none[0]}; keep one above 0."
        )
    ends = [ramp.end for ramp in ramps]
    round_size = sum(whole_counts(ends))
    if round_size > LARGEST_ROUND:
        raise ValueError(
            f"moving.rates end at {ends}, exact only over {round_size} examples (at "
            f"most {LARGEST_ROUND}); round them."
        )


def _check_density(denoiser: Denoiser, ramp: Ramp) -> None:
    """Refuses a density that the denoiser cannot have at some step."""
    for density in (ramp.lowest, ramp.highest):
        if not 0 < density < 1:
            raise ValueError(
                f"moving.noise_densities[{denoiser.name!r}] comes to {density}; a "
                "density that moves stays in (0, 1)."
            )
        dataclasses.replace(denoiser, noise_density=density)


def _ramps(
    knob: str,
    mixture: Mixture,
    fixed: Sequence[float],
    given: Mapping[str, Ramp] | None,
) -> tuple[Ramp, ...]:
    """Returns a ramp for each denoiser: the one given, or a constant."""
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ValueError(
            f"moving.{knob} = {str(given)[:40]} must be ramps by name, such as "
            f"{{{mixture.names[0]!r}: @ramps.linear()}}."
        )
    for name, ramp in given.items():
        if name not in mixture.names:
            raise ValueError(
                f"moving.{knob} names {name!r}, which is not one of "
                f"{list(mixture.names)}."
            )
        if not isinstance(ramp, Ramp):
            raise ValueError(
                f"moving.{knob}[{name!r}] = {str(ramp)[:40]} is no ramp; use "
                "@ramps.linear(), @ramps.cosine() or @ramps.stages()."
            )
    return tuple(
        given.get(name) or constant(value)
        for name, value in zip(mixture.names, fixed, strict=True)
    )


def _held_out_rates(ramps: Sequence[Ramp]) -> tuple[int, ...]:
    """Returns the middle between average and end, as whole numbers above 0."""
    last = max(ramp.last for ramp in ramps)
    if not last:
        return whole_counts([ramp.end for ramp in ramps])
    steps = np.linspace(0, last - 1, _SAMPLES).astype(np.int64)
    rates = np.stack([ramp(np.append(steps, last)) for ramp in ramps], axis=1)
    shares = rates / rates.sum(axis=1, keepdims=True)
    middle = (shares[:-1].mean(axis=0) + shares[-1]) / 2
    return tuple(max(1, round(_ROUND * share)) for share in middle.tolist())
