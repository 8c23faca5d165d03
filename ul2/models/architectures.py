"""Which architectures there are, by name, and a model as JSON.

    {"architecture": "decoder_only", "config": {"embed_dim": 768, ...}}

This is all that is needed to build a model, so it lies beside every checkpoint.
"""

from collections.abc import Callable
from typing import Any, Final

from flax import nnx

from ul2.models.config import ModelConfig
from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder

ARCHITECTURES: Final = {
    model.architecture: model for model in (EncoderDecoder, DecoderOnly)
}


def make_model(architecture: str, config: ModelConfig) -> Callable[..., nnx.Module]:
    """Returns a function that draws the parameters: `make_model(rngs=...)`."""
    model = ARCHITECTURES[architecture]
    return lambda *, rngs: model(config, rngs=rngs)


def to_json(architecture: str, config: ModelConfig) -> dict[str, Any]:
    """Returns a model, without its parameters, as plain JSON values."""
    assert architecture in ARCHITECTURES
    return {"architecture": architecture, "config": config.to_json()}


def from_json(fields: dict[str, Any]) -> tuple[str, ModelConfig]:
    """Reads what `to_json` wrote.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(fields, dict) or set(fields) != {"architecture", "config"}:
        raise ValueError("the model is not described by architecture and config.")
    architecture = fields["architecture"]
    if architecture not in list(ARCHITECTURES):
        raise ValueError(
            f"architecture {architecture!r} is not one of {list(ARCHITECTURES)}."
        )
    return architecture, ModelConfig.from_json(fields["config"])
