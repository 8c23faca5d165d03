"""Tiny checkpoints to export, and the vocabulary that they were made for."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ul2.interop.checkpoint import Checkpoint
from ul2.interop.model import define
from ul2.interop.tensors import from_array
from ul2.models.config import ModelConfig
from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.training.state import init_params
from ul2.vocab import Vocab

ARCHITECTURES = ("encoder_decoder", "decoder_only")
CLASSES = {"encoder_decoder": EncoderDecoder, "decoder_only": DecoderOnly}
PAD, EOS, START = 0, 1, 0
VOCAB = Vocab(
    size=60,
    padded_size=128,
    pad_id=PAD,
    eos_id=EOS,
    unk_id=2,
    start_id=START,
    sentinel_ids=(50, 51),
    mode_ids={"[R]": (52,), "[S]": (53,), "[X]": (54,)},
    mode_convention="paper",
    tokenizer_sha256="toy",
)


def make_checkpoint(architecture, **changes):
    layers = 2 if architecture == "encoder_decoder" else 0
    fields = {
        "vocab_size": 128,
        "embed_dim": 16,
        "num_heads": 4,
        "head_dim": 4,
        "mlp_dim": 32,
        "num_encoder_layers": layers,
        "num_decoder_layers": 2,
        "activation": "silu",
        "gated": True,
        "positions": "relative",
        "tied_embeddings": False,
        "dropout_rate": 0.1,
        "dtype": "float32",
        "remat": "full",
    }
    config = ModelConfig(**{**fields, **changes})
    model = CLASSES[architecture]
    params = init_params(lambda *, rngs: model(config, rngs=rngs), seed=3)
    flat = traverse_util.flatten_dict(params, sep=".")
    return Checkpoint(
        path=Path("toy"),
        format="ul2",
        layout="ul2",
        architecture=architecture,
        config=config,
        preset=None,
        vocab=VOCAB,
        tokenizer=b"pieces",
        step=7,
        params={path: from_array(path, np.asarray(v)) for path, v in flat.items()},
    )


def make_model(checkpoint):
    params = {path: jnp.asarray(t.read()) for path, t in checkpoint.params.items()}
    definition = define(checkpoint.architecture, checkpoint.config)
    return definition.merge(traverse_util.unflatten_dict(params, sep="."))
