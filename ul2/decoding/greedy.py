"""The likeliest next token, again and again, for both architectures."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from ul2.batch import Batch, one_per_row
from ul2.vocab import Vocab, round_up

# Lengths are rounded up to a multiple of this, so that few programs are compiled.
_LENGTH_MULTIPLE = 32


def greedy(
    model: Any,
    inputs: Sequence[Sequence[int]],
    vocab: Vocab,
    *,
    max_tokens: int,
    forced: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Returns what the model writes for each input, up to EOS or `max_tokens`.

    Every step runs the decoder over all that was written before; there is no cache.

    Args:
        model: an `EncoderDecoder` or a `DecoderOnly`.
        inputs: ids of each example, mode and EOS included.
        vocab: start, EOS and pad ids.
        max_tokens: longest output.
        forced: ids each output must start with; they count as part of it.
    """
    starts = [list(start) for start in forced or [()] * len(inputs)]
    written = [[vocab.start_id, *start] for start in starts]
    inputs = [list(row) for row in inputs]
    if model.architecture == "decoder_only":
        # The decoder reads the start id, the inputs, and then what it wrote.
        written = [
            [vocab.start_id, *row, *start]
            for row, start in zip(inputs, starts, strict=True)
        ]
        encoder = None
    else:
        longest = round_up(max(map(len, inputs)), _LENGTH_MULTIPLE)
        encoder = one_per_row(inputs, longest, pad_id=vocab.pad_id)
    cursors = np.array([len(row) - 1 for row in written])
    ends = cursors - [len(start) for start in starts] + max_tokens
    length = round_up(int(ends.max()) + 1, _LENGTH_MULTIPLE)
    tokens = one_per_row(written, length, pad_id=vocab.pad_id).tokens
    everywhere = one_per_row([range(length)] * len(inputs))
    prefixes = cursors + 1 - [len(start) for start in starts]
    batch = Batch(
        encoder=encoder,
        decoder=everywhere,  # what comes after the cursor is hidden by causality
        targets=tokens,
        loss_weights=np.zeros(tokens.shape, np.float32),
        denoiser_ids=np.full(tokens.shape, -1, np.int32),
        prefix_lengths=(prefixes * (encoder is None)).astype(np.int32)[:, None],
    )
    graphdef, state = nnx.split(model)
    done = np.asarray(
        _write(graphdef, state, batch, tokens, cursors, ends, vocab.eos_id)
    )
    return [
        _until_eos(row[first:end].tolist(), vocab.eos_id)
        for row, first, end in zip(done, prefixes, ends + 1, strict=True)
    ]


# Tokens [B, T]; column [B] last written; whether [B] the row goes on.
_Carry = tuple[jax.Array, jax.Array, jax.Array]


def _until_eos(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


@functools.partial(jax.jit, static_argnums=(0, 6))
def _write(
    graphdef: Any,
    state: Any,
    batch: Batch,
    tokens: Int[Array, "B T"],
    cursors: Int[Array, " B"],
    ends: Int[Array, " B"],
    eos_id: int,
) -> Int[Array, "B T"]:
    """Writes behind each cursor until all rows are at an EOS or their end."""
    model = nnx.merge(graphdef, state)
    rows = jnp.arange(tokens.shape[0])
    encoded = None if batch.encoder is None else model.encode(batch.encoder)

    def write_one(carry: _Carry) -> _Carry:
        tokens, cursors, is_open = carry
        read = batch._replace(decoder=batch.decoder._replace(tokens=tokens))
        hidden = model(read) if encoded is None else model.decode(read, encoded)
        likeliest = jnp.argmax(model.unembed(hidden[rows, cursors]), axis=-1)
        after = jnp.where(is_open, cursors + 1, cursors)
        chosen = jnp.where(is_open, likeliest.astype(tokens.dtype), tokens[rows, after])
        tokens = tokens.at[rows, after].set(chosen)
        return tokens, after, is_open & (chosen != eos_id) & (after < ends)

    first = (tokens, cursors, cursors < ends)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[2]), write_one, first)[0]
