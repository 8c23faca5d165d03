"""The functions that an export holds, on plain rows of tokens.

A serving system knows rows of ids, filled up with pad ids; `Batch` and `Packed` stay
inside. The pad ids at the end of a row are its padding, and no others are: T5's
decoder starts with the pad id, so a decoder row begins with a token that looks like
padding and is none.

    encoder-decoder    encode(input_tokens)                            -> encoded
                       decode(encoded, input_tokens, decoder_tokens)   -> logits
                       score(input_tokens, target_tokens)  -> log_probs, num_tokens
    decoder-only       decode(tokens, prefix_lengths)                  -> logits
                       score(tokens, prefix_lengths)       -> log_probs, num_tokens

The logits of a column are those of the token *after* it. The rows of a decoder-only
model begin with the start id, which `prefix_lengths` counts, for both functions:

    tokens            <start> 11 12 <eos> 14 15 <eos> <pad>      prefix length 4
    what score sums                       14 15 <eos>
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
from flax import traverse_util
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ul2.batch import Batch, Packed
from ul2.models.config import ModelConfig
from ul2.training.losses import token_losses
from ul2.training.state import ModelDef
from ul2.vocab import Vocab

# Columns whose logits exist at once while scoring.
CHUNK_LENGTH: Final = 32

FlatParams = dict[str, Array]
Scores = tuple[Float[Array, " b"], Int[Array, " b"]]


class Argument(NamedTuple):
    """An array that a function takes, or returns; dims are numbers or letters.

    b is the batch, s the length of inputs, t that of targets.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: str


class Function(NamedTuple):
    """What is exported under one name."""

    call: Callable[..., Any]  # call(parameters by dotted path, *arguments)
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]


def functions(
    architecture: str, config: ModelConfig, definition: ModelDef, vocab: Vocab
) -> dict[str, Function]:
    """Returns the functions of a model of this architecture, by name."""
    if architecture == "decoder_only":
        return _decoder_only(definition, vocab)
    return _encoder_decoder(config, definition, vocab)


def _encoder_decoder(
    config: ModelConfig, definition: ModelDef, vocab: Vocab
) -> dict[str, Function]:
    def encode(params: FlatParams, input_tokens: Array) -> Array:
        model = _merged(definition, params)
        encoded: Array = model.encode(_one_per_row(input_tokens, vocab))
        return encoded

    def hidden(model: Any, encoded: Array, inputs: Packed, tokens: Array) -> Array:
        no_prefix = jnp.zeros((tokens.shape[0], 1), jnp.int32)
        batch = _batch(inputs, _everywhere(tokens), no_prefix)
        states: Array = model.decode(batch, encoded)
        return states

    def decode(
        params: FlatParams, encoded: Array, input_tokens: Array, decoder_tokens: Array
    ) -> Array:
        model = _merged(definition, params)
        inputs = _one_per_row(input_tokens, vocab)
        states = hidden(model, encoded, inputs, decoder_tokens)
        logits: Array = model.unembed(states)
        return logits

    def score(params: FlatParams, input_tokens: Array, target_tokens: Array) -> Scores:
        model = _merged(definition, params)
        inputs = _one_per_row(input_tokens, vocab)
        start = jnp.full((target_tokens.shape[0], 1), vocab.start_id, jnp.int32)
        read = jnp.concatenate([start, target_tokens[:, :-1]], axis=1)
        states = hidden(model, model.encode(inputs), inputs, read)
        scored = _present(target_tokens, vocab)
        return _sums(model.unembed, states, target_tokens, scored)

    inputs = Argument("input_tokens", ("b", "s"), "int32")
    encoded = Argument("encoded", ("b", "s", config.embed_dim), config.dtype)
    read = Argument("decoder_input_tokens", ("b", "t"), "int32")
    targets = Argument("target_tokens", ("b", "t"), "int32")
    return {
        "encode": Function(encode, (inputs,), ("encoded",)),
        "decode": Function(decode, (encoded, inputs, read), ("logits",)),
        "score": Function(score, (inputs, targets), ("log_probs", "num_tokens")),
    }


def _decoder_only(definition: ModelDef, vocab: Vocab) -> dict[str, Function]:
    def hidden(model: Any, tokens: Array, prefix_lengths: Array) -> Array:
        batch = _batch(None, _everywhere(tokens), prefix_lengths[:, None])
        states: Array = model(batch)
        return states

    def decode(params: FlatParams, tokens: Array, prefix_lengths: Array) -> Array:
        model = _merged(definition, params)
        logits: Array = model.unembed(hidden(model, tokens, prefix_lengths))
        return logits

    def score(params: FlatParams, tokens: Array, prefix_lengths: Array) -> Scores:
        model = _merged(definition, params)
        states = hidden(model, tokens, prefix_lengths)
        # What is after the last column is padding: nobody is asked for it.
        end = jnp.full((tokens.shape[0], 1), vocab.pad_id, jnp.int32)
        targets = jnp.concatenate([tokens[:, 1:], end], axis=1)
        columns = jnp.arange(tokens.shape[1])[None]
        # The last place of the prefix predicts the first target.
        learned = columns >= prefix_lengths[:, None] - 1
        scored = learned & _present(targets, vocab)
        return _sums(model.unembed, states, targets, scored)

    tokens = Argument("tokens", ("b", "t"), "int32")
    prefix_lengths = Argument("prefix_lengths", ("b",), "int32")
    return {
        "decode": Function(decode, (tokens, prefix_lengths), ("logits",)),
        "score": Function(score, (tokens, prefix_lengths), ("log_probs", "num_tokens")),
    }


def _merged(definition: ModelDef, params: FlatParams) -> Any:
    return definition.merge(traverse_util.unflatten_dict(params, sep="."))


def _present(tokens: Int[Array, "b t"], vocab: Vocab) -> Bool[Array, "b t"]:
    """Returns where there is a token: up to the last one that is not the pad id."""
    columns = jnp.arange(tokens.shape[1])[None]
    is_token = tokens != vocab.pad_id
    ends = jnp.max(jnp.where(is_token, columns + 1, 0), axis=1, keepdims=True)
    return columns < ends


def _one_per_row(tokens: Int[Array, "b t"], vocab: Vocab) -> Packed:
    return _packed(tokens, _present(tokens, vocab))


def _everywhere(tokens: Int[Array, "b t"]) -> Packed:
    """Describes rows that nobody reads beyond their end: causality hides padding."""
    return _packed(tokens, jnp.ones(tokens.shape, bool))


def _packed(tokens: Int[Array, "b t"], present: Bool[Array, "b t"]) -> Packed:
    """Describes rows of one example each, as `ul2.batch.one_per_row` does."""
    columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    return Packed(
        tokens=tokens,
        segment_ids=present.astype(jnp.int32),
        positions=jnp.where(present, columns, 0),
        columns=jnp.where(present, columns, -1)[:, None],
    )


def _batch(
    encoder: Packed | None, decoder: Packed, prefix_lengths: Int[Array, "b 1"]
) -> Batch:
    """Returns a batch for a model; only a loss reads the other fields."""
    unread = jnp.zeros(decoder.tokens.shape, jnp.int32)
    return Batch(encoder, decoder, unread, unread, unread, prefix_lengths)


def _sums(
    unembed: Callable[[Array], Array],
    hidden: Float[Array, "b t d"],
    targets: Int[Array, "b t"],
    scored: Bool[Array, "b t"],
) -> Scores:
    """Sums log probabilities; the logits exist for a few columns at a time."""

    def add_chunk(total: Array, chunk: tuple[Array, ...]) -> tuple[Array, None]:
        hidden, targets, scored = chunk
        losses, _ = token_losses(unembed(hidden), targets, 0.0)
        return total - jnp.sum(jnp.where(scored, losses, 0.0), axis=1), None

    nothing = jnp.zeros((targets.shape[0],), jnp.float32)
    chunks = tuple(_in_chunks(array) for array in (hidden, targets, scored))
    log_probs, _ = lax.scan(add_chunk, nothing, chunks)
    return log_probs, jnp.sum(scored, axis=1, dtype=jnp.int32)


def _in_chunks(array: Array) -> Array:
    """Cuts [b, t, ...] into [chunks, b, CHUNK_LENGTH, ...]; zeros fill the last."""
    rows, length, *rest = array.shape
    num_chunks = -(-length // CHUNK_LENGTH)
    widths = [(0, 0), (0, num_chunks * CHUNK_LENGTH - length), *[(0, 0)] * len(rest)]
    cut = jnp.pad(array, widths).reshape(rows, num_chunks, CHUNK_LENGTH, *rest)
    return jnp.moveaxis(cut, 1, 0)
