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
    seed: Int[Array, ""]

    @classmethod
    def of(cls, settings: DecodingSettings) -> "Dials":
        """Picks them."""
        return cls(
            jnp.float32(settings.temperature),
            jnp.float32(settings.top_p),
            jnp.float32(settings.repetition_penalty),
            jnp.float32(settings.length_penalty),
            jnp.int32(settings.seed & 0x7FFFFFFF),
        )


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

    def advance(
        self, layers: Any, state: Any, steps: Int[Array, ""], enough: Int[Array, ""]
    ) -> Any:
        """Goes on until all is closed.

        Args:
            layers: of the model's `cut_layers`.
            state: of the search.
            steps: to take at most.
            enough: stop where no more examples than these are open.
        """
        run = self.model.make_step(layers)

        def goes_on(carry: tuple[Array, Any]) -> Bool[Array, ""]:
            taken, state = carry
            return (taken < steps) & (jnp.sum(open_examples(state)) > enough)

        def step(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            taken, state = carry
            hidden, cache = run(state.last, state.columns - 1, state.cache)
            return taken + 1, self._choose(state._replace(cache=cache), hidden)

        return jax.lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int32), state))[1]

    @abc.abstractmethod
    def _choose(self, state: Any, hidden: Float[Array, "E J D"]) -> Any:
        """Writes one more token of all that is open."""

    def _allow(
        self,
        scores: Float[Array, "E J V"],
        written: Written,
        columns: Int[Array, " E"],
    ) -> Float[Array, "E J V"]:
        """Makes impossible what must not be written next, and less likely what was."""
        scores = restrict(
            scores, written, columns, self.limits, self.settings, self.eos_id
        )
        if self.settings.repetition_penalty == 1:
            return scores
        return penalize(scores, written, self.dials.repetition_penalty)


def open_examples(state: Any) -> Bool[Array, " E"]:
    """Returns which examples have a hypothesis that goes on."""
    is_open = state.is_open
    return jnp.any(is_open.reshape(is_open.shape[0], -1), axis=1)
