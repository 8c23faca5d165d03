"""The logits of a model that does not fit into memory, one layer at a time.

The same modules as everywhere, but each stack is run as many times as it has layers,
with the parameters of one layer, and the head in pieces of the vocabulary. So a
checkpoint of any size can be run on a small host, which is how conversions are
certified.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

from ul2.batch import Batch
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.model import define
from ul2.interop.tensors import Tensor, transposed
from ul2.models.blocks import Memory, Side
from ul2.models.masks import Causal, Keys, Prefix
from ul2.models.parallel_projection import gather


def logits(checkpoint: Checkpoint, batch: Batch) -> np.ndarray:
    """Returns the logits [B, T, V] of a batch, in float32.

    Equal to those of the whole model but for the order of float sums.
    """
    # The table is no part of the small model: its rows are looked up in the file.
    small = dataclasses.replace(
        checkpoint.config,
        vocab_size=1,
        num_encoder_layers=min(checkpoint.config.num_encoder_layers, 1),
        num_decoder_layers=1,
        dropout_rate=0.0,
        dtype="float32",
        remat="none",
    )
    definition = define(checkpoint.architecture, small)
    model = definition.merge(definition.abstract_params)
    encoded = None
    if batch.encoder is not None:
        x = _embed(checkpoint, batch.encoder.tokens)
        encoded = _run(checkpoint, "encoder", model.encoder, x, batch, None)
    x = _embed(checkpoint, batch.decoder.tokens)
    hidden = _run(checkpoint, "decoder", model.decoder, x, batch, encoded)
    return _unembed(checkpoint, np.asarray(hidden))


def _embed(checkpoint: Checkpoint, tokens: np.ndarray) -> np.ndarray:
    """Reads the rows of the embedding table that a batch names."""
    table = checkpoint.params["embedder.embedding"]
    ids, places = np.unique(tokens, return_inverse=True)
    whole = slice(0, table.shape[1])
    rows = [table.read((slice(i, i + 1), whole)) for i in map(int, ids)]
    found: np.ndarray = np.concatenate(rows).astype(np.float32)
    return found[places.reshape(tokens.shape)]


def _run(
    checkpoint: Checkpoint,
    name: str,
    stack: Any,
    x: Any,
    batch: Batch,
    encoded: jax.Array | None,
) -> jax.Array:
    """Runs all layers of a stack, and its final norm."""
    graphdef, abstract = nnx.split(stack, nnx.Param)
    paths = traverse_util.flatten_dict(nnx.to_pure_dict(abstract), sep=".")
    params = {path: checkpoint.params[f"{name}.{path}"] for path in map(str, paths)}
    fixed = {
        path: _read(tensor)
        for path, tensor in params.items()
        if not path.startswith("layers.")
    }

    def with_layer(index: int) -> Any:
        layer = {
            path: _read(tensor, index)
            for path, tensor in params.items()
            if path.startswith("layers.")
        }
        return traverse_util.unflatten_dict({**fixed, **layer}, sep=".")

    run_layer = jax.jit(functools.partial(_run_layer, graphdef, name))
    for index in range(getattr(checkpoint.config, f"num_{name}_layers")):
        x = run_layer(with_layer(index), x, batch, encoded)
    merged = nnx.merge(graphdef, with_layer(0))
    out: jax.Array = merged.final_norm(x)
    return out


def _run_layer(
    graphdef: Any, name: str, params: Any, x: Any, batch: Batch, encoded: Any
) -> jax.Array:
    """Runs the one layer of a stack, as the architectures run all of them."""
    stack = nnx.merge(graphdef, params)
    inputs, memory = batch.encoder, None
    if name == "encoder":
        assert inputs is not None
        side = Side(inputs, Keys(inputs.columns >= 0))
    elif inputs is not None:
        memory = Memory(gather(encoded), inputs, Keys(inputs.columns >= 0))
        side = Side(batch.decoder, Causal())
    else:
        side = Side(batch.decoder, Causal() | Prefix(batch.prefix_lengths))
    out: jax.Array = stack.run_layers(x, side, memory, None)
    return out


def _unembed(checkpoint: Checkpoint, hidden: np.ndarray) -> np.ndarray:
    """Multiplies hidden states by the head, a piece of the vocabulary at a time."""
    config = checkpoint.config
    if config.tied_embeddings:
        hidden = hidden * np.float32(config.embed_dim**-0.5)
        table = transposed(checkpoint.params["embedder.embedding"])
    else:
        table = checkpoint.params["embedder.logits_kernel"]
    out = np.zeros((*hidden.shape[:-1], config.vocab_size), np.float32)
    for region in table.regions():
        embed, vocab = region
        out[..., vocab] += hidden[..., embed] @ table.read(region).astype(np.float32)
    return out


def _read(tensor: Tensor, layer: int | None = None) -> np.ndarray:
    """Reads an array, or one layer of a stack as a stack of one layer."""
    layers = slice(0, tensor.shape[0]) if layer is None else slice(layer, layer + 1)
    rest = (slice(0, size) for size in tensor.shape[1:])
    return tensor.read((layers, *rest)).astype(np.float32)
