"""What decoding compiles: to begin, to take rows, to go on, to collect.

Between them the state of a search lies on the device: `Samples` or `Beams` of all rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ul2.batch import Batch
from ul2.decoding.beam import Beams, BeamSearch
from ul2.decoding.rows import empty_rows, placed_rows, take_rows
from ul2.decoding.sampling import Samples, Sampling
from ul2.decoding.search import Dials
from ul2.decoding.settings import DecodingSettings
from ul2.decoding.written import Limits, start


class Program(NamedTuple):
    """What is compiled in."""

    graphdef: Any
    settings: DecodingSettings
    columns: int  # tokens that each hypothesis may have
    read_columns: int  # that are kept of what was read
    eos_id: int

    @property
    def hypotheses(self) -> int:
        """How many of each example are written at once."""
        return self.settings.num_beams or self.settings.num_decodes

    def search(
        self, params: Any, limits: Limits, dials: Dials
    ) -> Sampling | BeamSearch:
        """Returns what chooses tokens."""
        kind = BeamSearch if self.settings.num_beams else Sampling
        model = nnx.merge(self.graphdef, params)
        return kind(model, self.settings, dials, limits, self.eos_id)


class Outputs(NamedTuple):
    """The outputs of all rows, in any order."""

    tokens: Int[Array, "E J L"]
    log_probs: Float[Array, "E J"]
    scores: Float[Array, "E J"]
    finished: Bool[Array, "E J"]


@functools.partial(jax.jit, static_argnums=0)
def begin(
    program: Program,
    params: Any,
    batch: Batch,
    ends: Int[Array, " E"],
    forced: Int[Array, "E F"],
    limits: Limits,
    dials: Dials,
) -> Samples | Beams:
    """Reads prompts and chooses the first tokens.

    Args:
        program: what is compiled in.
        params: of the model.
        batch: one prompt per row.
        ends: column of the last token of each prompt.
        forced: what outputs begin with.
        limits: of the examples.
        dials: of the settings.
    """
    model = nnx.merge(program.graphdef, params)
    hidden, cache = model.prefill(
        batch,
        hypotheses=program.hypotheses,
        columns=program.columns,
        read_columns=program.read_columns,
        may_reorder=program.settings.num_beams > 0,
    )
    last = jnp.take_along_axis(hidden, ends[:, None, None], axis=1)
    written = start(forced, program.hypotheses, program.columns, limits)
    search = program.search(params, limits, dials)
    begun: Samples | Beams = placed_rows(search.start(last, cache, written))
    return begun


@functools.partial(jax.jit, static_argnums=1)
def make_room(begun: Any, rows: int) -> Any:
    """Returns a state like another, of `rows` rows that are all closed."""
    return placed_rows(empty_rows(begun, rows))


@functools.partial(jax.jit, donate_argnums=0)
def insert(state: Any, begun: Any, origins: Int[Array, " E"]) -> Any:
    """Puts examples that have begun into rows of a state; see `take_rows`."""
    return placed_rows(take_rows(state, begun, origins))


@functools.partial(jax.jit, static_argnums=0)
def cut_layers(graphdef: Any, params: Any) -> tuple[Any, ...] | None:
    """Cuts the decoder's layers apart, once for all calls of `go_on`."""
    layers: tuple[Any, ...] | None = nnx.merge(graphdef, params).cut_layers()
    return layers


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def go_on(
    program: Program,
    params: Any,
    layers: tuple[Any, ...] | None,
    state: Any,
    limits: Limits,
    dials: Dials,
    steps: Int[Array, ""],
    enough: Int[Array, ""],
) -> Any:
    """Writes on, until no more than `enough` rows are open or all steps are taken."""
    search = program.search(params, limits, dials)
    return placed_rows(search.advance(layers, state, steps, enough))


@functools.partial(jax.jit, static_argnums=0)
def collect(
    program: Program, params: Any, state: Any, limits: Limits, dials: Dials
) -> Outputs:
    """Returns the outputs of what has come to its end."""
    search = program.search(params, limits, dials)
    if isinstance(search, BeamSearch):
        best = search.best(state)
        return Outputs(best.written.tokens, best.log_probs, best.scores, best.finished)
    return Outputs(
        state.written.tokens, state.log_probs, state.log_probs, state.finished
    )
