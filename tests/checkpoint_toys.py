"""Checkpoints with parameters that hide no mistake, and models made of them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from ul2.interop import model
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.staging import Staging
from ul2.interop.tensors import dtype_of, from_array
from ul2.models.config import ModelConfig
from ul2.sharding.mesh import make_mesh
from ul2.vocab import Vocab

SIZES = {
    "vocab_size": 128,
    "embed_dim": 32,
    "num_heads": 3,
    "head_dim": 8,
    "mlp_dim": 40,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "positions": "relative",
    "dropout_rate": 0.0,
    "dtype": "float32",
    "remat": "none",
}
T5_1_0 = {"activation": "relu", "gated": False, "tied_embeddings": True}
T5_1_1 = {"activation": "gelu", "gated": True, "tied_embeddings": False}
UL2 = {"activation": "silu", "gated": True, "tied_embeddings": True}
UMT5 = {**T5_1_1, "tied_embeddings": True, "relative_bias": "per_layer"}
UMT5_UNTIED = {**UMT5, "tied_embeddings": False}
KINDS = {
    "t5_1_0": T5_1_0,
    "t5_1_1": T5_1_1,
    "ul2": UL2,
    "ul2_no_norm_scale": {**UL2, "decoder_final_norm_scale": False},
    "umt5": UMT5,
    # The square root of 64 is exact, that of 32 is not.
    "umt5_untied": UMT5_UNTIED,
    "umt5_untied_64": {**UMT5_UNTIED, "embed_dim": 64},
}
VOCAB = Vocab(
    size=120,
    padded_size=128,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    start_id=0,
    sentinel_ids=(119, 118, 117),
    mode_ids={},
    mode_convention="released",
    tokenizer_sha256="",
)


def random_params(architecture, config, seed=0, dtype="float32"):
    """Draws parameters, each with a gain per column, so that a transpose shows."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in model.param_shapes(architecture, config).items():
        if path.endswith("scale"):
            values = rng.uniform(0.5, 1.5, shape)
        elif path.endswith("rel_embedding"):
            values = rng.normal(size=shape)
        else:
            values = rng.normal(size=shape) * rng.uniform(0.5, 1.5, shape[-1])
            values *= 1 if path == "embedder.embedding" else shape[-2] ** -0.5
        params[path] = values.astype(np.float32).astype(dtype_of(dtype))
    return params


def make_checkpoint(
    kind, *, architecture="encoder_decoder", dtype="float32", **changes
):
    config = ModelConfig(**{**SIZES, **KINDS[kind], **changes})
    params = random_params(architecture, config, dtype=dtype)
    vocab = dataclasses.replace(VOCAB, padded_size=config.vocab_size)
    return checkpoint_of(architecture, config, params, vocab)


def checkpoint_of(architecture, config, params, vocab, tokenizer=None):
    """Returns a checkpoint of arrays in memory."""
    return Checkpoint(
        path=Path("toy"),
        format="ul2",
        layout="ul2",
        architecture=architecture,
        config=config,
        preset=None,
        vocab=vocab,
        tokenizer=tokenizer,
        step=7,
        params={path: from_array(path, value) for path, value in params.items()},
    )


def with_param(checkpoint, path, values):
    """Returns the checkpoint with other values for one parameter."""
    params = {**checkpoint.params, path: from_array(path, values)}
    return dataclasses.replace(checkpoint, params=params)


def save(write, checkpoint, out, dtype=None, **options):
    """Writes a checkpoint with the `write` of a format; returns where it is."""
    staging = Staging(out, {})
    write(checkpoint, staging, dtype, **options)
    staging.commit()
    return out


def build(checkpoint):
    """Returns the model of a checkpoint, on one device, which computes in float32."""
    config = dataclasses.replace(checkpoint.config, dtype="float32")
    checkpoint = dataclasses.replace(checkpoint, config=config)
    return model.build(checkpoint, make_mesh("auto", jax.devices()[:1]))
