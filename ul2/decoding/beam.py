"""Beam search, by T5X's rule or Hugging Face's.

Every step extends the B live hypotheses of an example by all ids and takes the 2 B best
of them, so that B are left to go on even if all others end with EOS. The rules differ
in what an end is worth, and in when nothing better can come:

    t5x            a log probability over ((5 + length) / 6)^alpha; length counts forced
                   tokens, and EOS. Any of the 2 B may end. If none ever ends, the live
                   ones are returned with their bare log probabilities.
                   (t5x/decoding.py, beam_search)
    huggingface    over length^alpha, without the forced tokens. Only the B best may
                   end; all do at the last column. (transformers/generation/utils.py,
                   _beam_search)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ul2.decoding.search import Search
from ul2.decoding.top_k import top_k
from ul2.decoding.written import NOTHING, Written
from ul2.models.cache import Cache

# What an empty place is worth (T5X's number).
_WORTHLESS = -1e7


class Candidates(NamedTuple):
    """Hypotheses with what they are worth."""

    written: Written
    log_probs: Float[Array, "E B"]  # the model's own
    totals: Float[Array, "E B"]  # what hypotheses are extended by: penalties included
    scores: Float[Array, "E B"]  # what those that ended are ranked by
    finished: Bool[Array, "E B"]  # by EOS

    def take(self, origins: Int[Array, "E K"]) -> "Candidates":
        """Returns candidates `origins[e, k]` of each example."""
        numbers = (
            jnp.take_along_axis(array, origins, axis=1, mode="clip")
            for array in self[1:]
        )
        return Candidates(self.written.take(origins), *numbers)


class Beams(NamedTuple):
    """The search between two steps."""

    columns: Int[Array, " E"]  # tokens written behind the forced ones
    cache: Cache
    last: Int[Array, "E B"]
    live: Candidates
    ended: Candidates  # the best first; empty places are worth _WORTHLESS
    is_open: Bool[Array, " E"]


class BeamSearch(Search):
    """Keeps the likeliest beginnings; see the module."""

    @property
    def _beams(self) -> int:
        return self.settings.num_beams

    @property
    def _is_t5x(self) -> bool:
        return self.settings.length_rule == "t5x"

    def start(
        self, hidden: Float[Array, "E 1 D"], cache: Cache, written: Written
    ) -> Beams:
        """Chooses the first tokens, behind the prompts.

        Args:
            hidden: at the end of each prompt.
            cache: of the prompts.
            written: what is forced.
        """
        examples = hidden.shape[0]
        shape = (examples, self._beams)
        zeros = jnp.zeros(shape, jnp.float32)
        worthless = jnp.full(shape, _WORTHLESS, jnp.float32)
        # They are all the same yet, so only the first of them counts.
        first = worthless.at[:, 0].set(0.0)
        beams = Beams(
            columns=jnp.zeros((examples,), jnp.int32),
            cache=cache,
            last=jnp.zeros(shape, jnp.int32),
            live=Candidates(written, zeros, first, worthless, zeros > 0),
            ended=Candidates(written, zeros, worthless, worthless, zeros > 0),
            is_open=self.limits.rooms > 0,
        )
        hidden = jnp.broadcast_to(hidden, (*shape, hidden.shape[-1]))
        return self._choose(beams, hidden)

    def best(self, beams: Beams) -> Candidates:
        """Returns the outcome, the best first; empty places are worth _WORTHLESS."""
        if not self._is_t5x:
            return beams.ended
        none_ended = jnp.all(beams.ended.scores <= _WORTHLESS, axis=1)
        live = beams.live._replace(scores=beams.live.totals)
        best: Candidates = _select(none_ended, live, beams.ended)
        return best

    def _choose(self, beams: Beams, hidden: Float[Array, "E B D"]) -> Beams:
        """Takes one step of the search in all open examples."""
        candidates, origins, chosen = self._candidates(beams, hidden)
        columns = beams.columns + 1
        at_end = (columns >= self.limits.rooms)[:, None]
        ends = candidates.finished
        if not self._is_t5x:
            ends = ends | at_end
        # The best that do not end go on; `top_k` keeps the order among equals.
        totals = jnp.where(ends, _WORTHLESS + candidates.totals, candidates.totals)
        _, going = jax.lax.top_k(totals, self._beams)
        live = candidates._replace(totals=totals).take(going)
        ended = self._collect(beams, candidates, ends, columns)
        is_open = beams.is_open & ~at_end[:, 0]
        is_open &= ~self._is_settled(live, ended, columns)
        is_open &= ~jnp.all(jnp.take_along_axis(ends, going, axis=1), axis=1)
        origins = jnp.take_along_axis(origins, going, axis=1)
        return Beams(
            columns=columns,
            cache=beams.cache.reorder(origins),
            last=jnp.maximum(jnp.take_along_axis(chosen, going, axis=1), 0),
            live=_select(beams.is_open, live, beams.live),
            ended=_select(beams.is_open, ended, beams.ended),
            is_open=is_open,
        )

    def _candidates(
        self, beams: Beams, hidden: Float[Array, "E B D"]
    ) -> tuple[Candidates, Int[Array, "E C"], Int[Array, "E C"]]:
        """Returns the 2 B best extensions, whose they are, and by which ids."""
        logits = self.model.unembed(hidden)
        log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        live = beams.live
        allowed = self._allow(log_probs, live.written, beams.columns)
        # Of each hypothesis as many as of all, and of those the best.
        count = 2 * self._beams
        totals, ids = top_k(allowed + live.totals[..., None], count)
        own = jnp.take_along_axis(log_probs, ids, axis=-1, mode="clip")

        def flat(array: Float[Array, "E B C"]) -> Float[Array, "E BC"]:
            return array.reshape(array.shape[0], -1)

        totals, places = jax.lax.top_k(flat(totals), count)
        origins = places // count
        chosen = jnp.take_along_axis(flat(ids), places, axis=1)
        own = jnp.take_along_axis(flat(own), places, axis=1)
        extended = live.take(origins)
        length = live.written.tokens.shape[-1]
        places = length - beams.cache.columns + beams.columns
        written = extended.written.append(
            jnp.where(chosen == self.eos_id, NOTHING, chosen), places, self.limits
        )
        candidates = Candidates(
            written,
            extended.log_probs + own,
            totals,
            extended.scores,
            chosen == self.eos_id,
        )
        return candidates, origins, chosen.astype(jnp.int32)

    def _collect(
        self,
        beams: Beams,
        candidates: Candidates,
        ends: Bool[Array, "E C"],
        columns: Int[Array, " E"],
    ) -> Candidates:
        """Puts what just ended among what ended before, and keeps the best B."""
        if not self._is_t5x:
            ends = ends & (jnp.arange(ends.shape[1]) < self._beams)[None]
        scores = candidates.totals / self._worth(columns)
        if self.settings.early_stopping:
            full = jnp.all(beams.ended.scores > _WORTHLESS, axis=1)
            ends = ends & ~full[:, None]
        scores = jnp.where(ends, scores, _WORTHLESS)
        both = jax.tree.map(
            lambda before, new: jnp.concatenate([before, new], axis=1),
            beams.ended,
            candidates._replace(scores=scores),
        )
        _, best = jax.lax.top_k(both.scores, self._beams)
        kept: Candidates = both.take(best)
        return kept

    def _worth(self, columns: Int[Array, " E"]) -> Float[Array, "E 1"]:
        """Returns what log probabilities are divided by after so many tokens."""
        alpha = self.dials.length_penalty
        if self._is_t5x:
            lengths = (columns + self.limits.forced).astype(jnp.float32)
            return jnp.power((5 + lengths) / 6, alpha)[:, None]
        return jnp.power(columns.astype(jnp.float32), alpha)[:, None]

    def _is_settled(
        self, live: Candidates, ended: Candidates, columns: Int[Array, " E"]
    ) -> Bool[Array, " E"]:
        """Returns where no live hypothesis can become better than all that ended."""
        # T5X's search has room for one token more than it decodes.
        ahead = self.limits.rooms + 1 if self._is_t5x else columns
        possible = live.totals[:, :1] / self._worth(ahead)
        worst = jnp.min(ended.scores, axis=1, keepdims=True)
        full = jnp.all(ended.scores > _WORTHLESS, axis=1)
        settled = full & (worst >= possible)[:, 0]
        return settled | full if self.settings.early_stopping else settled


def _select(choice: Bool[Array, " E"], one: Any, other: Any) -> Any:
    """Returns one tree or the other, example by example."""
    return jax.tree.map(
        lambda a, b: jnp.where(jnp.expand_dims(choice, range(1, a.ndim)), a, b),
        one,
        other,
    )
