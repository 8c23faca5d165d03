"""Tiny models, batches of known examples, and the parameters of the goldens."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ul2.batch import Batch, Packed
from ul2.models.config import ModelConfig
from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder

GOLDENS = pathlib.Path(__file__).parent / "goldens"


def tiny_config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "vocab_size": 512,
        "embed_dim": 32,
        "num_heads": 4,
        "head_dim": 8,
        "mlp_dim": 64,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "activation": "silu",
        "gated": True,
        "positions": "relative",
        "tied_embeddings": False,
        "dropout_rate": 0.0,
        "dtype": "float32",
        "remat": "none",
    }
    return ModelConfig(**{**fields, **changes})


def tiny_model(architecture: str, **changes: Any) -> Any:
    if architecture == "decoder_only":
        config = tiny_config(**{"num_encoder_layers": 0, **changes})
        return DecoderOnly(config, rngs=nnx.Rngs(0))
    return EncoderDecoder(tiny_config(**changes), rngs=nnx.Rngs(0))


def packed_rows(
    tokens: np.ndarray,
    segment_ids: np.ndarray,
    *,
    num_examples: int | None = None,
    length: int | None = None,
) -> Packed:
    """Describes rows whose examples are marked by segment ids."""
    num_examples = num_examples or int(segment_ids.max())
    rows = [
        [np.flatnonzero(row == n + 1) for n in range(num_examples)]
        for row in segment_ids
    ]
    length = length or max(len(example) for row in rows for example in row)
    columns = np.full((len(rows), num_examples, length), -1, np.int32)
    positions = np.zeros_like(segment_ids)
    for b, row in enumerate(rows):
        for n, example in enumerate(row):
            columns[b, n, : len(example)] = example
            positions[b, example] = np.arange(len(example))
    arrays = (tokens, segment_ids, positions, columns)
    return Packed(*(jnp.asarray(array, jnp.int32) for array in arrays))


def pack_examples(
    rows: Sequence[Sequence[Sequence[int]]], width: int, **shape: int
) -> Packed:
    """Lays examples, lists of tokens, into rows of `width` columns."""
    tokens = np.zeros((len(rows), width), np.int32)
    segment_ids = np.zeros((len(rows), width), np.int32)
    for b, row in enumerate(rows):
        joined = [(t, n + 1) for n, example in enumerate(row) for t in example]
        for column, (token, segment) in enumerate(joined):
            tokens[b, column], segment_ids[b, column] = token, segment
    return packed_rows(tokens, segment_ids, **shape)


def make_batch(
    encoder: Packed | None,
    decoder: Packed,
    *,
    targets: np.ndarray | None = None,
    loss_weights: np.ndarray | None = None,
    prefix_lengths: np.ndarray | None = None,
) -> Batch:
    valid = decoder.segment_ids > 0
    if targets is None:
        targets = np.asarray(jnp.where(valid, jnp.roll(decoder.tokens, -1, 1), 0))
    if loss_weights is None:
        loss_weights = np.asarray(valid)
    if prefix_lengths is None:
        prefix_lengths = np.zeros(decoder.columns.shape[:2], np.int32)
    return Batch(
        encoder=encoder,
        decoder=decoder,
        targets=jnp.asarray(targets, jnp.int32),
        loss_weights=jnp.asarray(loss_weights, jnp.float32),
        denoiser_ids=jnp.where(valid, 0, -1),
        prefix_lengths=jnp.asarray(prefix_lengths, jnp.int32),
    )


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Returns T5's loss: cross entropy plus 1e-4 z-loss, summed over tokens."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    losses = log_z - picked + 1e-4 * jnp.square(log_z)
    return jnp.sum(losses * batch.loss_weights)


def loss_gradients(model: Any, batch: Batch) -> tuple[jax.Array, dict[Any, jax.Array]]:
    """Returns the loss and its gradient for every parameter, by path."""
    graphdef, state = nnx.split(model)
    value, gradients = jax.jit(
        jax.value_and_grad(
            lambda state: cross_entropy(nnx.merge(graphdef, state).logits(batch), batch)
        )
    )(state)
    return value, {path: leaf[...] for path, leaf in nnx.to_flat_state(gradients)}


def golden_model(golden: Any, architecture: str, **changes: Any) -> Any:
    """Builds a tiny model with the parameters of a golden file."""
    model = tiny_model(architecture, **changes)
    graphdef, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    for path, variable in flat.items():
        if path == ("embedder", "embedding") and "rows" in golden.files:
            (name,) = t5x_names(path, architecture)
            table = np.zeros(variable.shape, np.float32)
            table[golden["rows"]] = golden[f"param/{name}"]
        elif path == ("embedder", "logits_kernel"):
            # Some goldens keep a few columns of it alone.
            table = _read(golden, path, architecture)
        else:
            table = _read(golden, path, architecture).reshape(variable.shape)
        flat[path] = variable.replace(jnp.asarray(table))
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _read(golden: Any, path: tuple[Any, ...], architecture: str) -> np.ndarray:
    scanned = f"param/{_scanned_name(path)}"
    if scanned in golden.files:
        return np.moveaxis(golden[scanned], 1, 0)
    arrays = [golden[f"param/{name}"] for name in t5x_names(path, architecture)]
    return np.stack(arrays) if "layers" in path else arrays[0]


def t5x_names(path: tuple[Any, ...], architecture: str) -> Iterator[str]:
    """Yields T5X's name of a parameter; one for each layer of a stacked one."""
    stack, *rest = path
    if path == ("embedder", "logits_kernel"):
        yield "decoder/logits_dense/kernel"
    elif stack == "embedder":
        prefix = "decoder/" if architecture == "decoder_only" else ""
        yield f"{prefix}token_embedder/embedding"
    elif rest[0] == "layers":
        for layer in range(2):
            yield f"{stack}/layers_{layer}/{_layer_name(stack, rest[1:], architecture)}"
    elif rest[0] == "final_norm":
        yield f"{stack}/{stack}_norm/scale"
    else:
        yield f"{stack}/relpos_bias/rel_embedding"


def _scanned_name(path: tuple[Any, ...]) -> str | None:
    if "layers" not in path:
        return None
    stack, _, *rest = path
    return f"{stack}/{stack}/{_layer_name(stack, rest, 'encoder_decoder')}"


def _layer_name(stack: str, rest: Sequence[Any], architecture: str) -> str:
    encoder = stack == "encoder"
    decoder_only = architecture == "decoder_only"
    module = {
        "attention": "attention" if encoder else "self_attention",
        "cross_attention": "encoder_decoder_attention",
        "mlp": "mlp",
        "relative_bias": "relpos_bias",
        "pre_attention_norm": f"pre_{'' if encoder else 'self_'}attention_layer_norm",
        "pre_cross_attention_norm": "pre_cross_attention_layer_norm",
        "pre_mlp_norm": "pre_mlp_layer_norm",
    }[rest[0]]
    assert not (decoder_only and encoder)
    leaf = rest[1]
    return (
        f"{module}/{leaf if leaf in ('scale', 'rel_embedding') else f'{leaf}/kernel'}"
    )
