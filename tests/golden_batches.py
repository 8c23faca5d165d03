"""Batches of the goldens, and the outputs that must come of them."""

import jax
import numpy as np
from model_fixtures import GOLDENS, cross_entropy, make_batch, packed_rows
from tolerances import LOGITS_ATOL, LOSS_RTOL

from ul2.batch import Batch

__all__ = [
    "COLUMNS",
    "GOLDENS",
    "assert_logits_match",
    "read_batch",
    "read_batch_at",
]

COLUMNS = np.arange(0, 512, 16)  # the columns of the logits that the goldens keep


def read_batch(golden, case, architecture="encoder_decoder", **shape):
    """Reads the batch of a case."""
    return read_batch_at(golden, f"{case}/in/", architecture, **shape)


def read_batch_at(golden, place, architecture="encoder_decoder", **shape):
    """Turns the features of seqio's converters into a `Batch`."""
    feature = {key: golden.get(f"{place}{key}") for key in _FEATURES}
    targets = feature["decoder_target_tokens"]
    segments = feature["decoder_segment_ids"]
    if segments is None:
        segments = (targets > 0).astype(np.int32)
        shape = {"length": targets.shape[1], **shape}
    decoder = packed_rows(feature["decoder_input_tokens"], segments, **shape)
    encoder = None
    if architecture == "encoder_decoder":
        inputs = feature["encoder_input_tokens"]
        segments = feature["encoder_segment_ids"]
        if segments is None:
            segments = (inputs > 0).astype(np.int32)
            shape = {**shape, "length": inputs.shape[1]}
        encoder = packed_rows(inputs, segments, **shape)
    prefix = None
    if feature["decoder_causal_attention"] is not None:
        marks = np.asarray(feature["decoder_causal_attention"])
        columns = np.asarray(decoder.columns)
        rows = np.arange(len(marks))[:, None, None]
        prefix = np.sum(np.where(columns >= 0, marks[rows, columns], 0), axis=-1)
    return make_batch(
        encoder,
        decoder,
        targets=targets,
        loss_weights=feature["decoder_loss_weights"],
        prefix_lengths=prefix,
    )


_FEATURES = (
    "encoder_input_tokens",
    "encoder_segment_ids",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_segment_ids",
    "decoder_loss_weights",
    "decoder_causal_attention",
)


def assert_logits_match(golden, case, model, batch: Batch):
    logits = np.asarray(jax.jit(type(model).logits)(model, batch))
    if f"{case}/out/loss" in golden.files:
        loss = cross_entropy(logits, batch)
        np.testing.assert_allclose(loss, golden[f"{case}/out/loss"], rtol=LOSS_RTOL)
    if logits.shape[-1] == 512:
        logits = logits[..., COLUMNS]
    valid = np.asarray(batch.targets) > 0
    if f"{case}/positions" in golden.files:
        at = golden[f"{case}/positions"]
        logits, valid = logits[:, at], valid[:, at]
    np.testing.assert_allclose(
        logits[valid], golden[f"{case}/out/logits"][valid], rtol=0, atol=LOGITS_ATOL
    )
