"""The gin file of a model that was imported, to train it further."""

import dataclasses
from typing import Final

from ul2.models.config import ModelConfig

MODEL_GIN: Final = "model.gin"
_MACROS: Final = (
    "embed_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
    "num_encoder_layers",
    "num_decoder_layers",
    "activation",
    "gated",
    "positions",
    "tied_embeddings",
    "dropout_rate",
    "dtype",
    "remat",
)
# What no macro of `configs/models` sets.
_PARAMETERS: Final = (
    "relative_bias",
    "relative_buckets",
    "relative_max_distance",
    "rope_theta",
    "decoder_final_norm_scale",
    "norm_epsilon",
)


def model_gin(architecture: str, config: ModelConfig) -> str:
    """Returns a gin file that makes a model of this config.

    Args:
        architecture: of the model.
        config: of the model; the size of the vocabulary comes from the data.
    """
    fields = dataclasses.asdict(config)
    macros = [name for name in _MACROS if name != "num_encoder_layers"]
    if architecture == "encoder_decoder":
        macros = list(_MACROS)
    return "\n".join(
        [
            "# The model of the checkpoint beside this file.",
            "",
            "from __gin__ import dynamic_registration",
            "",
            "from ul2.models import config",
            "",
            f"include 'configs/models/{architecture}.gin'",
            "",
            *(f"{name.upper()} = {fields[name]!r}" for name in macros),
            "",
            *(f"config.ModelConfig.{name} = {fields[name]!r}" for name in _PARAMETERS),
            "",
        ]
    )
