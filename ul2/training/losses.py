"""Cross entropy with integer labels, exact and without the [B, T, V] logits.

The logits of a whole batch are the largest array of a small model's step. They are
made here for a few columns at a time inside a scan, used and dropped. A loss is where
the backward pass begins: all that it will ever hear from there is one factor. So where
there will be one, each chunk's gradients are made beside its loss, while its logits
exist, and nothing is made twice. Everything after the logits is float32.

    loss    -log softmax(logits)[target]           summed where weight is 1
    z_loss  z_loss_weight * log(sum exp logits)^2   keeps the logits from drifting

Each chunk reads the head's kernel and adds to its gradient, which is then summed over
the devices that the rows are split over. So a chunk should have thousands of tokens on
each device; how many columns those are depends on the rows there (`chunk_columns`).

Sums, not means, leave this file: sums of microbatches and of hosts simply add up, and
the step divides once.
"""

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ul2.axes import BATCH, LENGTH, VOCAB
from ul2.models.constraints import constrain

AUTO: Final = "auto"
# What `auto` lets the logits of a chunk take on a device, in float32 and over the whole
# vocabulary: 4177 tokens of T5's 32128 ids. Where the vocabulary is split, it is less.
_CHUNK_BYTES: Final = 2**29


class _Labels(NamedTuple):
    """Of some columns."""

    targets: Int[Array, "*chunks B C"]
    weights: Float[Array, "*chunks B C"]
    denoiser_ids: Int[Array, "*chunks B C"]


# (kernels, hidden, labels) of a chunk to (objective, (sums, right columns)).
_ScoreChunk = Callable[..., tuple[Array, tuple[Any, Array]]]


class LossSums(NamedTuple):
    """Sums over target tokens; the first three per denoiser.

    `objective` alone can be differentiated.
    """

    loss: Float[Array, " K"]
    correct: Float[Array, " K"]
    tokens: Float[Array, " K"]
    z_loss: Float[Array, ""]
    weights: Float[Array, ""]  # all of them, with or without a denoiser
    objective: Float[Array, ""]  # loss + z_loss, what is differentiated


def token_losses(
    logits: Float[Array, "... V"], targets: Int[Array, "..."], z_loss_weight: float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns the cross entropy and the z-loss of every token."""
    logits = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    label_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_normalizer - label_logit, z_loss_weight * jnp.square(log_normalizer)


def cross_entropy(
    unembed: Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    denoiser_ids: Int[Array, "B T"],
    *,
    num_denoisers: int,
    z_loss_weight: float,
    chunk_length: int,
) -> tuple[LossSums, Bool[Array, "B T"]]:
    """Returns the sums of the loss, and which columns are predicted right.

    Args:
        unembed: hidden -> logits.
        hidden: last hidden state of the decoder.
        targets: what each column must predict.
        weights: 0 where there is nothing to predict.
        denoiser_ids: which denoiser each target belongs to; -1 for none.
        num_denoisers: length of the sums per denoiser.
        z_loss_weight: factor of the squared log normalizer.
        chunk_length: columns whose logits exist at once; need not divide T.
    """
    hidden = constrain(hidden, BATCH, None, None)
    chunk_length = min(chunk_length, targets.shape[1])
    hidden, *labels = (
        _in_chunks(array, chunk_length)
        for array in (hidden, targets, weights.astype(jnp.float32), denoiser_ids)
    )
    # The head's parameters, of which the gradient is wanted too, as an argument.
    head, kernels = jax.closure_convert(unembed, hidden[0])

    def score_chunk(
        kernels: list[Array], hidden: Array, labels: _Labels
    ) -> tuple[Array, tuple[LossSums, Array]]:
        logits = constrain(head(hidden, *kernels), BATCH, LENGTH, VOCAB)
        sums, correct = _score(logits, labels, num_denoisers, z_loss_weight)
        return sums.objective, (sums, correct)

    sums, correct = _sum_chunks(
        score_chunk, zero_sums(num_denoisers), kernels, hidden, _Labels(*labels)
    )
    correct = jnp.moveaxis(correct, 0, 1).reshape(targets.shape[0], -1)
    return sums, correct[:, : targets.shape[1]]


def _score(
    logits: Float[Array, "B C V"],
    labels: _Labels,
    num_denoisers: int,
    z_loss_weight: float,
) -> tuple[LossSums, Bool[Array, "B C"]]:
    """Returns a chunk's sums, and which columns are predicted right."""
    targets, weights, denoiser_ids = labels
    loss, z_loss = token_losses(logits, targets, z_loss_weight)
    correct = _are_likeliest(logits, targets)
    ids_1 = jnp.arange(num_denoisers).reshape(1, 1, -1)
    mine = jnp.where(denoiser_ids[..., None] == ids_1, weights[..., None], 0.0)
    sums = LossSums(
        loss=jnp.sum(mine * loss[..., None], axis=(0, 1)),
        correct=jnp.sum(mine * correct[..., None], axis=(0, 1)),
        tokens=jnp.sum(mine, axis=(0, 1)),
        z_loss=jnp.sum(weights * z_loss),
        weights=jnp.sum(weights),
        objective=jnp.sum(weights * (loss + z_loss)),
    )
    return sums, correct


def _are_likeliest(
    logits: Float[Array, "B C V"], targets: Int[Array, "B C"]
) -> Bool[Array, "B C"]:
    """Returns where `jnp.argmax` would choose the target: it is the first of equals.

    Comparing all ids takes a sixth of the time of looking for the largest (on CPU, 256
    columns of 32128 ids: 2.5 and 16 ms).
    """
    label_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    is_later = ids >= targets[..., None]
    loses = (logits < label_logits) | ((logits == label_logits) & is_later)
    return jnp.all(loses, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_chunks(
    score_chunk: _ScoreChunk,
    zeros: LossSums,
    kernels: list[Array],
    hidden: Float[Array, "chunks B C D"],
    labels: _Labels,
) -> tuple[LossSums, Bool[Array, "chunks B C"]]:
    """Scores chunk after chunk."""

    def add_chunk(sums: LossSums, chunk: tuple[Array, _Labels]) -> Any:
        _, (new, correct) = score_chunk(kernels, *chunk)
        return jax.tree.map(jnp.add, sums, new), correct

    result: tuple[LossSums, Array] = jax.lax.scan(add_chunk, zeros, (hidden, labels))
    return result


def _sum_chunks_forward(
    score_chunk: _ScoreChunk,
    zeros: LossSums,
    kernels: list[Array],
    hidden: Float[Array, "chunks B C D"],
    labels: _Labels,
) -> tuple[tuple[LossSums, Array], tuple[list[Array], Array]]:
    """Scores chunk after chunk; keeps the gradients of the objective."""

    def add_chunk(
        carry: tuple[LossSums, list[Array]], chunk: tuple[Array, _Labels]
    ) -> Any:
        hidden, labels = chunk
        objective, pull_back, (new, correct) = jax.vjp(
            lambda *parts: score_chunk(*parts, labels), kernels, hidden, has_aux=True
        )
        of_kernels, of_hidden = pull_back(jnp.ones_like(objective))
        return jax.tree.map(jnp.add, carry, (new, of_kernels)), (correct, of_hidden)

    none = jax.tree.map(jnp.zeros_like, kernels)
    (sums, of_kernels), (correct, of_hidden) = jax.lax.scan(
        add_chunk, (zeros, none), (hidden, labels)
    )
    return (sums, correct), (of_kernels, of_hidden)


def _sum_chunks_backward(
    score_chunk: _ScoreChunk,
    gradients: tuple[list[Array], Array],
    cotangents: tuple[LossSums, Any],
) -> tuple[None, list[Array], Array, None]:
    """Multiplies the gradients by what the objective's own counts."""
    factor = cotangents[0].objective
    of_kernels, of_hidden = jax.tree.map(
        lambda gradient: gradient * factor.astype(gradient.dtype), gradients
    )
    return None, of_kernels, of_hidden, None


_sum_chunks.defvjp(_sum_chunks_forward, _sum_chunks_backward)


def chunk_columns(
    loss_chunk: int | str, *, rows: int, columns: int, vocab_size: int
) -> int:
    """Returns how many columns a chunk shall have.

    Args:
        loss_chunk: a number of columns, or `auto`.
        rows: of the batch on one device.
        columns: of a row.
        vocab_size: length of the logits of one token.
    """
    if isinstance(loss_chunk, int):
        return loss_chunk
    assert loss_chunk == AUTO, loss_chunk
    most = max(1, _CHUNK_BYTES // (4 * vocab_size * rows))
    # Chunks of one length: the last is filled up with zeros.
    return -(-columns // -(-columns // most))


def zero_sums(num_denoisers: int) -> LossSums:
    """Returns sums of nothing."""
    each = jnp.zeros((num_denoisers,), jnp.float32)
    total = jnp.zeros((), jnp.float32)
    return LossSums(each, each, each, total, total, total)


def _in_chunks(array: Array, chunk_length: int) -> Array:
    """Cuts [B, T, ...] into [chunks, B, chunk_length, ...]; zeros fill the last one."""
    rows, length, *rest = array.shape
    num_chunks = -(-length // chunk_length)
    widths = [(0, 0), (0, num_chunks * chunk_length - length), *[(0, 0)] * len(rest)]
    padded = jnp.pad(array, widths)
    cut = padded.reshape(rows, num_chunks, chunk_length, *rest)
    return jnp.moveaxis(cut, 1, 0)
