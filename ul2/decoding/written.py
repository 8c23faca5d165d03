"""What hypotheses have written, and what each may write next.

    forced  . 7 8 | 5 6 . .       tokens [E, J, F + W]: forced ones end at column F,
                                  written ones begin there; -1 is nothing

E examples, J hypotheses of each, V ids. Everything here works on log probabilities and
on logits alike: what is not allowed becomes -inf.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ul2.decoding.settings import DecodingSettings

NOTHING = -1


class Limits(NamedTuple):
    """What holds for all hypotheses of an example.

    Blanks are filled in order: sentinel k + 1 comes after sentinel k, each once, and
    EOS after the last. A sentinel is forced where there is room for no other token.
    """

    numbers: Int[Array, " E"]  # what drawing depends on
    rooms: Int[Array, " E"]  # tokens that may follow the forced ones, EOS included
    forced: Int[Array, " E"]  # how many those are
    blanks: Int[Array, " E"]  # sentinels to write in order; NOTHING for any or none
    forbidden: Bool[Array, " V"]  # ids that are never written
    sentinel_ids: Int[Array, " M"]
    is_sentinel: Bool[Array, " V"]


class Written(NamedTuple):
    """The tokens of each hypothesis, and how many of its blanks are begun."""

    tokens: Int[Array, "E J L"]
    begun: Int[Array, "E J"]

    def append(
        self, chosen: Int[Array, "E J"], places: Int[Array, " E"], limits: Limits
    ) -> "Written":
        """Returns this with one more token each; NOTHING leaves one as it is."""
        begins = (chosen >= 0) & jnp.take(limits.is_sentinel, chosen, mode="clip")
        here = jnp.arange(self.tokens.shape[-1])[None, None] == places[:, None, None]
        tokens = jnp.where(here, chosen[..., None], self.tokens)
        return Written(tokens, self.begun + begins)

    def take(self, origins: Int[Array, "E K"]) -> "Written":
        """Returns hypotheses `origins[e, k]` of each example."""
        tokens = jnp.take_along_axis(
            self.tokens, origins[..., None], axis=1, mode="clip"
        )
        begun = jnp.take_along_axis(self.begun, origins, axis=1, mode="clip")
        return Written(tokens, begun)


def start(
    forced: Int[Array, "E F"], hypotheses: int, columns: int, limits: Limits
) -> Written:
    """Returns hypotheses that have written nothing yet.

    Args:
        forced: what outputs begin with, ending at column F; NOTHING before it.
        hypotheses: J.
        columns: W, tokens there is room for.
        limits: of the examples.
    """
    examples, length = forced.shape
    room = jnp.full((examples, columns), NOTHING, jnp.int32)
    tokens = jnp.concatenate([forced.astype(jnp.int32), room], axis=1)[:, None]
    begins = (forced >= 0) & jnp.take(limits.is_sentinel, forced, mode="clip")
    begun = jnp.sum(begins, axis=1)
    return Written(
        jnp.broadcast_to(tokens, (examples, hypotheses, length + columns)),
        jnp.broadcast_to(begun[:, None], (examples, hypotheses)),
    )


def restrict(
    scores: Float[Array, "E J V"],
    written: Written,
    columns: Int[Array, " E"],
    limits: Limits,
    settings: DecodingSettings,
    eos_id: int,
) -> Float[Array, "E J V"]:
    """Makes what may not be written next impossible.

    Args:
        scores: of every id.
        written: so far.
        columns: of the next token, counted from the first that was not forced.
        limits: of the examples.
        settings: for `no_repeat_ngram`.
        eos_id: what closes an output.
    """
    banned = limits.forbidden[None, None]
    if limits.sentinel_ids.shape[0]:
        banned = banned | _out_of_order(written, columns, limits, eos_id)
    if settings.no_repeat_ngram:
        banned = banned | _would_repeat(written, limits, settings.no_repeat_ngram)
    return jnp.where(banned, -jnp.inf, scores)


def penalize(
    scores: Float[Array, "E J V"], written: Written, penalty: Float[Array, ""]
) -> Float[Array, "E J V"]:
    """Makes what was written less likely (CTRL, arXiv 1909.05858, section 4.1).

    Positive scores are divided by the penalty, negative ones multiplied with it.
    """
    seen = _mark(written.tokens, scores.shape[-1])
    lower = jnp.where(scores > 0, scores / penalty, scores * penalty)
    return jnp.where(seen, lower, scores)


def _mark(ids: Int[Array, "E J L"], vocab_size: int) -> Bool[Array, "E J V"]:
    """Returns which ids occur; NOTHING occurs nowhere."""
    examples, hypotheses, _ = ids.shape
    rows = jnp.arange(examples)[:, None, None]
    columns = jnp.arange(hypotheses)[None, :, None]
    marks = jnp.zeros((examples, hypotheses, vocab_size), bool)
    # A negative index counts from the end; one that is too large is dropped.
    places = jnp.where(ids < 0, vocab_size, ids)
    return marks.at[rows, columns, places].set(True, mode="drop")


def _out_of_order(
    written: Written, columns: Int[Array, " E"], limits: Limits, eos_id: int
) -> Bool[Array, "E J V"]:
    """Returns what may not be written next by those who fill blanks."""
    ids = jnp.arange(limits.forbidden.shape[0])[None, None]
    missing = (limits.blanks[:, None] - written.begun)[..., None]
    filling = limits.blanks[:, None, None] >= 0
    wanted = jnp.take(limits.sentinel_ids, written.begun, mode="clip")[..., None]
    is_next = (ids == wanted) & (missing > 0)
    early = (limits.is_sentinel[None, None] & ~is_next) | (
        (ids == eos_id) & (missing > 0)
    )
    left = (limits.rooms - columns)[:, None, None]
    no_room = (missing > 0) & (left <= missing)
    return filling & (early | (no_room & ~is_next))


def _would_repeat(
    written: Written, limits: Limits, length: int
) -> Bool[Array, "E J V"]:
    """Returns what would complete a sequence of `length` tokens a second time."""
    tokens = written.tokens
    columns = jnp.arange(tokens.shape[-1])[None, None]
    last = jnp.max(jnp.where(tokens >= 0, columns, -1), axis=-1, keepdims=True)
    follows = tokens >= 0
    for back in range(1, length):
        before = jnp.roll(tokens, back, axis=-1)
        recent = jnp.take_along_axis(tokens, last - back + 1, axis=-1, mode="clip")
        known = (columns >= back) & (before >= 0) & (last - back + 1 >= 0)
        follows &= known & (before == recent)
    return _mark(jnp.where(follows, tokens, NOTHING), limits.forbidden.shape[0])
