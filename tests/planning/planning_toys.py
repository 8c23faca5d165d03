"""Recipes of tiny models, for plans."""

from ul2.models.architectures import ARCHITECTURES
from ul2.models.config import ModelConfig
from ul2.planning.from_gin import read_recipe
from ul2.planning.shapes import BatchShape
from ul2.vocab import Vocab

FILES = ("configs/objectives/ul2.gin", "configs/runs/pretrain.gin")
SMALL = {
    "EMBED_DIM": 64,
    "NUM_HEADS": 4,
    "HEAD_DIM": 16,
    "MLP_DIM": 128,
    "INPUTS_LENGTH": 32,
    "TARGETS_LENGTH": 32,
    "BATCH_SIZE": 56,
    "LOSS_CHUNK": 64,
}


def make_vocab(size=1024):
    return Vocab(
        size=size,
        padded_size=size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        start_id=0,
        sentinel_ids=tuple(range(size - 1, size - 200, -1)),
        mode_ids={"[R]": (3,), "[S]": (4,), "[X]": (5,)},
        mode_convention="paper",
        tokenizer_sha256="",
    )


def make_config(architecture="encoder_decoder", **changes):
    fields = {
        "vocab_size": 1024,
        "embed_dim": 256,
        "num_heads": 4,
        "head_dim": 64,
        "mlp_dim": 512,
        "num_encoder_layers": 1 if architecture == "encoder_decoder" else 0,
        "num_decoder_layers": 1,
        "activation": "relu",
        "gated": True,
        "positions": "relative",
        "tied_embeddings": True,
        "dropout_rate": 0.0,
        "dtype": "float32",
        "remat": "none",
    }
    return ModelConfig(**{**fields, **changes})


def make_shape(architecture="encoder_decoder", **changes):
    both = architecture == "encoder_decoder"
    fields = {
        "rows": 8,
        "examples_per_row": 3,
        "widths": (80, 64) if both else (128,),
        "views": (32, 24) if both else (48,),
        "padding_fraction": 0.0,
        "num_denoisers": 3,
        "vocab": make_vocab(),
    }
    return BatchShape(**{**fields, **changes})


def make_model(config, architecture):
    return lambda *, rngs: ARCHITECTURES[architecture](config, rngs=rngs)


def flags(model="enc_dec_tiny", **macros):
    """Returns the flags of a small recipe without data."""
    macros = {**SMALL, **macros}
    files = (f"configs/models/{model}.gin", *FILES)
    return [
        *(f"--gin_file={name}" for name in files),
        *(f"--gin.{name}={value}" for name, value in macros.items()),
    ]


def read(arguments):
    """Returns what `read_recipe` makes of flags."""
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return read_recipe(files, [tuple(pair.split("=", 1)) for pair in pairs])
