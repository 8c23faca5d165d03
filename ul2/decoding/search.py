"""What greedy decoding, sampling and beam search have in common."""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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
class Search(abc.ABC):
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

    def advance(self, state: Any, until: Int[Array, ""]) -> Any:
        """Goes on until all is closed, or hypotheses have `until` tokens."""
        run = self.model.make_step()

        def goes_on(state: Any) -> Bool[Array, ""]:
            has_room: Bool[Array, ""] = state.column < until
            return has_room & jnp.any(state.is_open)

        def step(state: Any) -> Any:
            hidden, cache = run(state.last, state.column - 1, state.cache)
            return self._choose(state._replace(cache=cache), hidden)

        return jax.lax.while_loop(goes_on, step, state)

    @abc.abstractmethod
    def _choose(self, state: Any, hidden: Float[Array, "E J D"]) -> Any:
        """Writes one more token of all that is open."""

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
