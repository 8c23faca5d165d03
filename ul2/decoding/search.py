"""What greedy decoding, sampling and beam search have in common."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ul2.decoding.settings import DecodingSettings
from ul2.decoding.written import Limits, Written, penalize, restrict


class Dials(NamedTuple):
    """The settings that may change without another program."""

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    length_penalty: Float[Array, ""]

    @classmethod
    def of(cls, settings: DecodingSettings) -> "Dials":
        """Picks them."""
        return cls(*(jnp.float32(getattr(settings, name)) for name in cls._fields))


@dataclasses.dataclass(frozen=True)
class Search:
    """The program: which model, which settings.

    Attributes:
        model: merged with its parameters.
        settings: how to choose.
        dials: those of them that are arrays.
        limits: of the examples.
        eos_id: what closes an output.
    """

    model: Any
    settings: DecodingSettings
    dials: Dials
    limits: Limits
    eos_id: int

    def _allow(
        self, scores: Float[Array, "E J V"], written: Written, column: Int[Array, ""]
    ) -> Float[Array, "E J V"]:
        """Makes impossible what must not be written next, and less likely what was."""
        scores = restrict(
            scores, written, column, self.limits, self.settings, self.eos_id
        )
        if self.settings.repetition_penalty == 1:
            return scores
        return penalize(scores, written, self.dials.repetition_penalty)
