"""Tiny checkpoints to export, and the vocabulary that they were made for."""

import numpy as np
from checkpoint_toys import checkpoint_of
from flax import traverse_util
from model_fixtures import tiny_config

from ul2.models.architectures import make_model
from ul2.training.state import init_params
from ul2.vocab import Vocab

ARCHITECTURES = ("encoder_decoder", "decoder_only")
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
    fields = {
        "vocab_size": 128,
        "embed_dim": 16,
        "head_dim": 4,
        "mlp_dim": 32,
        "num_encoder_layers": 2 if architecture == "encoder_decoder" else 0,
        "dropout_rate": 0.1,
        "remat": "full",
    }
    config = tiny_config(**{**fields, **changes})
    drawn = init_params(make_model(architecture, config), seed=3)
    flat = traverse_util.flatten_dict(drawn, sep=".")
    params = {path: np.asarray(values) for path, values in flat.items()}
    return checkpoint_of(architecture, config, params, VOCAB, b"pieces")
