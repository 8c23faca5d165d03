"""Greedy decoding and sampling: one token after another, each hypothesis on its own."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ul2.decoding.search import Search
from ul2.decoding.top_k import largest, top_k
from ul2.decoding.written import NOTHING, Written
from ul2.models.cache import Cache


class Samples(NamedTuple):
    """All hypotheses between two steps."""

    columns: Int[Array, " E"]  # tokens written behind the forced ones
    cache: Cache
    written: Written
    last: Int[Array, "E J"]  # what was written last, and is read next
    log_probs: Float[Array, "E J"]
    is_open: Bool[Array, "E J"]
    finished: Bool[Array, "E J"]  # by EOS


class Sampling(Search):
    """Chooses each token by the one before it: the likeliest, or one that is drawn."""

    def start(
        self, hidden: Float[Array, "E 1 D"], cache: Cache, written: Written
    ) -> Samples:
        """Chooses the first tokens, behind the prompts.

        Args:
            hidden: at the end of each prompt.
            cache: of the prompts.
            written: what is forced.
        """
        shape = (hidden.shape[0], self.settings.num_decodes)
        hidden = jnp.broadcast_to(hidden, (*shape, hidden.shape[-1]))
        open_rows = jnp.broadcast_to(self.limits.rooms[:, None] > 0, shape)
        samples = Samples(
            columns=jnp.zeros(shape[:1], jnp.int32),
            cache=cache,
            written=written,
            last=jnp.zeros(shape, jnp.int32),
            log_probs=jnp.zeros(shape, jnp.float32),
            is_open=open_rows,
            finished=jnp.zeros(shape, bool),
        )
        return self._choose(samples, hidden)

    def _choose(self, samples: Samples, hidden: Float[Array, "E J D"]) -> Samples:
        """Writes one more token of every open hypothesis."""
        logits = self.model.unembed(hidden)
        allowed = self._allow(logits, samples.written, samples.columns)
        chosen = self._draw(allowed, samples).astype(jnp.int32)
        picked = jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]
        log_probs = picked - jax.nn.logsumexp(logits, axis=-1)
        closes = samples.is_open & (chosen == self.eos_id)
        writes = samples.is_open & ~closes
        place = samples.written.tokens.shape[-1] - samples.cache.columns
        columns = samples.columns + 1
        return samples._replace(
            columns=columns,
            written=samples.written.append(
                jnp.where(writes, chosen, NOTHING),
                place + samples.columns,
                self.limits,
            ),
            last=jnp.where(writes, chosen, samples.last),
            log_probs=samples.log_probs + jnp.where(samples.is_open, log_probs, 0.0),
            is_open=writes & (columns < self.limits.rooms)[:, None],
            finished=samples.finished | closes,
        )

    def _draw(
        self, logits: Float[Array, "E J V"], samples: Samples
    ) -> Int[Array, "E J"]:
        """Returns the likeliest ids, or draws among the likely ones."""
        if not self.settings.temperature:
            return largest(logits)
        logits = logits / self.dials.temperature
        if self.settings.top_k:
            logits = keep_top_k(logits, self.settings.top_k)
        if self.settings.top_p < 1:
            logits = keep_top_p(logits, self.dials.top_p)
        # A hypothesis draws by its own key and place: the batch has no say in it.
        draw = functools.partial(jax.random.gumbel, shape=logits.shape[-1:])
        keys = make_keys(self.dials.seed, self.limits.numbers, logits.shape[1])
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)))
        noise = jax.vmap(jax.vmap(draw))(fold(keys, samples.columns))
        return largest(logits + noise)


def make_keys(
    seed: Int[Array, ""], numbers: Int[Array, " E"], hypotheses: int
) -> Key[Array, "E J"]:
    """Returns a key for each hypothesis of the examples with these numbers."""
    base = jax.random.key(seed)
    of_example = jax.vmap(jax.random.fold_in, (None, 0))(base, numbers)
    one = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(one, (0, None))(of_example, jnp.arange(hypotheses))


def keep_top_k(logits: Float[Array, "*rows V"], k: int) -> Float[Array, "*rows V"]:
    """Makes all but the k likeliest ids impossible; ties with the last stay."""
    least = top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(
    logits: Float[Array, "*rows V"], top_p: Float[Array, ""]
) -> Float[Array, "*rows V"]:
    """Keeps the fewest likeliest ids that together have at least `top_p`.

    That is, those with at least a certain probability: the greatest that leaves
    enough. It is found bit by bit, for floats that are not negative are ordered as
    their bits are; a sort of the vocabulary takes many times as long.

        probabilities  0.5 0.3 0.1 0.1, top_p 0.7  ->  the first two
    """
    probs = jax.nn.softmax(logits, axis=-1)
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def try_bit(index: int, least: Array) -> Array:
        candidate = least | (1 << (30 - index))
        kept = jnp.sum(jnp.where(bits >= candidate, probs, 0), axis=-1, keepdims=True)
        return jnp.where(kept >= top_p, candidate, least)

    least = jax.lax.fori_loop(0, 31, try_bit, jnp.zeros_like(bits[..., :1]))
    return jnp.where(bits < least, -jnp.inf, logits)
